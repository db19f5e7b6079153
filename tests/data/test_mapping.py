"""ROI mapping files are read without running anything in them."""

import os
import pickle
import re

import numpy as np
import pytest

from bmfl_lab.data import pickles as module
from bmfl_lab.errors import DataError

BODIES = {0: "Unknown", 1: "EBA", 2: "FBA-1", 3: "FBA-2", 4: "mTL-bodies"}


def npy_of(value, protocol=4):
    """The bytes that numpy.save makes of an object array, with any pickle protocol."""
    array = np.empty((), dtype=object)
    array[()] = value
    header = b"{'descr': '|O', 'fortran_order': False, 'shape': (), }"
    header += b" " * (64 - (len(header) + 11) % 64) + b"\n"
    return (
        b"\x93NUMPY\x01\x00"
        + len(header).to_bytes(2, "little")
        + header
        + pickle.dumps(array, protocol=protocol)
    )


@pytest.mark.parametrize("protocol", range(6))
def test_every_protocol_reads_the_same(protocol):
    assert module.parse_mapping(npy_of(BODIES, protocol)) == BODIES


def test_file_of_numpy_itself_and_numpy_integers(tmp_path):
    np.save(tmp_path / "mapping_a.npy", {np.int64(k): v for k, v in BODIES.items()})
    assert module.read_mapping(tmp_path / "mapping_a.npy") == BODIES
    np.save(tmp_path / "mapping_b.npy", {np.uint8(200): "a", np.int16(-3): "b"})
    assert module.read_mapping(tmp_path / "mapping_b.npy") == {-3: "b", 200: "a"}


def test_written_file_is_what_numpy_would_read(tmp_path):
    module.write_mapping(tmp_path / "m.npy", BODIES)
    np.save(tmp_path / "peer.npy", BODIES)
    assert (tmp_path / "m.npy").read_bytes() == (tmp_path / "peer.npy").read_bytes()
    assert module.read_mapping(tmp_path / "m.npy") == BODIES


class Attack:
    def __init__(self, target):
        self.target = target

    def __reduce__(self):
        return os.system, (f"touch {self.target}",)


@pytest.mark.parametrize("protocol", [0, 2, 4])
def test_malicious_file_is_refused_by_name_without_effect(tmp_path, protocol):
    target = tmp_path / "ran"
    (tmp_path / "m.npy").write_bytes(npy_of(Attack(target), protocol))
    with pytest.raises(DataError, match=r"global '(posix|os)\.system'.*nothing in it was run"):
        module.read_mapping(tmp_path / "m.npy")
    assert not target.exists()


@pytest.mark.parametrize(
    "value, match",
    [
        ({1: 2}, "an entry of types int and int"),
        ({"a": "b"}, "an entry of types str and str"),
        ([1, 2], "a list"),
        ({1: np.float64(2)}, "an entry of types int and float64"),
        ({(1, 2): "a"}, "a label of type tuple"),
        ({i: "x" for i in range(257)}, "more than 256 entries"),
        ({1 << 40: "x"}, "out of bounds"),
    ],
)
def test_wrong_content_is_refused(value, match):
    with pytest.raises(DataError, match=re.escape(match)):
        module.parse_mapping(npy_of(value))


def test_wrong_files_are_refused(tmp_path):
    with pytest.raises(DataError, match="nothing at"):
        module.read_mapping(tmp_path / "none.npy")
    (tmp_path / "big.npy").write_bytes(b"\0" * (module.MAX_BYTES + 1))
    with pytest.raises(DataError, match="at most 65536 bytes"):
        module.read_mapping(tmp_path / "big.npy")
    np.save(tmp_path / "numbers.npy", np.zeros(3))
    with pytest.raises(DataError, match=r"an array of float64 with shape \(3,\)"):
        module.read_mapping(tmp_path / "numbers.npy")
    with pytest.raises(DataError, match=r"damaged pickle|without an end"):
        module.parse_mapping(npy_of(BODIES)[:-10])
    with pytest.raises(DataError, match=r"a label|types"):
        module.write_mapping(tmp_path / "w.npy", {"1": "EBA"})


def test_deeply_nested_pickle_does_not_crash():
    bomb = npy_of({})[:128] + b"\x80\x04" + b")" + b"\x85" * 19_000 + b"}" + b"h\x00."
    with pytest.raises(DataError):
        module.parse_mapping(bomb)


def mutate(seed, count):
    """Return how many of `count` random mutations still read as mappings."""
    rng = np.random.default_rng(seed)
    originals = [np.frombuffer(npy_of(BODIES, p), np.uint8) for p in range(6)]
    valid = 0
    for i in range(count):
        data = originals[i % 6].copy()
        for _ in range(rng.integers(1, 4)):
            data[rng.integers(0 if i % 10 == 0 else 128, len(data))] = rng.integers(256)
        raw = data.tobytes()
        if i % 7 == 0:
            cut = int(rng.integers(len(raw)))
            raw = raw[:cut] + raw[cut + int(rng.integers(1, 9)) :]
        try:
            found = module.parse_mapping(raw)
        except DataError:
            continue
        assert type(found) is dict and all(
            type(k) is int and type(v) is str for k, v in found.items()
        )
        valid += 1
    return valid


def test_ten_thousand_mutations():
    valid = mutate(0, 10_000)
    assert 0 < valid < 10_000


@pytest.mark.slow
@pytest.mark.timeout(1800)
def test_a_hundred_thousand_mutations():
    valid = mutate(1, 100_000)
    assert 0 < valid < 100_000
