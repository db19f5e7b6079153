"""THINGS-EEG2 files of the true layout, written by NumPy and pickle, and hostile ones."""

import os
import pickle

import numpy as np
import pytest

from bmfl_lab.data.pickles import read_pickled_arrays
from bmfl_lab.data.things_eeg import EEG, eeg_stimuli, read_things_eeg, read_with_images
from bmfl_lab.errors import DataError


def content(n=6, order="C"):
    g = np.random.default_rng(0)
    return {
        "preprocessed_eeg_data": np.asarray(g.normal(size=(n, 4, 3, 10)), order=order),
        "ch_names": ["O1", "Oz", "P3"],
        "times": np.linspace(-0.2, 0.8, 10),
    }


@pytest.mark.parametrize("protocol", [3, 4, 5])
@pytest.mark.parametrize("order", ["C", "F"])
def test_reads_bare_pickles_as_the_dataset_has_them(tmp_path, protocol, order):
    want = content(order=order)
    with open(tmp_path / "preprocessed_eeg_test.npy", "wb") as stream:
        pickle.dump(want, stream, protocol=protocol)
    found = read_things_eeg(tmp_path, "test")
    np.testing.assert_array_equal(found.data, want["preprocessed_eeg_data"])
    np.testing.assert_array_equal(found.times, want["times"])
    assert found.channels == ("O1", "Oz", "P3") and found.ids[1] == "test-00001"
    np.testing.assert_allclose(found.mean(), want["preprocessed_eeg_data"].mean(1), atol=1e-6)


def test_reads_numpy_saved_dictionaries_and_ids_from_metadata(tmp_path):
    np.save(tmp_path / "preprocessed_eeg_training.npy", content(3))
    np.save(
        tmp_path / "image_metadata.npy",
        {"train_img_files": ["aardvark_01b.jpg", "abacus_01b.jpg", "zebra_02s.jpg"]},
    )
    found = read_things_eeg(tmp_path, "train", metadata=tmp_path / "image_metadata.npy")
    assert list(found.ids) == ["aardvark_01b", "abacus_01b", "zebra_02s"] and found.data.shape == (
        3,
        4,
        3,
        10,
    )
    with pytest.raises(DataError, match=r"'test_img_files' in image_metadata\.npy"):
        read_things_eeg(
            tmp_path / "preprocessed_eeg_training.npy", metadata=tmp_path / "image_metadata.npy"
        )


def test_positions_of_the_sensors_are_read_where_the_user_gives_them(tmp_path):
    np.save(tmp_path / "preprocessed_eeg_test.npy", content())
    table = tmp_path / "electrodes.tsv"
    assert read_things_eeg(tmp_path).positions is None
    table.write_text("name\tx\ty\tz\nP3\t-4\t-5\t6\nO1\t-3\t-8\t1\nOz\t0\t-9\t1\n")
    found = read_things_eeg(tmp_path)  # in the order of the channels, not of the table
    np.testing.assert_array_equal(found.positions, [[-3, -8, 1], [0, -9, 1], [-4, -5, 6]])
    assert (found.layout()[:, 1] < 0).all()
    table.write_text("name\tx\ty\nO1\t-3\t-8\n")
    with pytest.raises(DataError, match=r"each of the 3 sensors; got none for \['Oz', 'P3'\]"):
        read_things_eeg(tmp_path)
    table.write_text("name\tx\ty\nO1\tn/a\t-8\nOz\t0\t1\nP3\t1\t1\n")
    with pytest.raises(DataError, match=r"numbers in electrodes\.tsv"):
        read_things_eeg(tmp_path)


def test_types_and_byte_orders_come_through(tmp_path):
    want = {
        "a": np.arange(4, dtype=">f4"),
        "b": np.array(["O1", "Pz"]),
        "c": np.float32(2.5),
        "d": np.zeros((0, 3)),
        "e": 3,
    }
    for protocol in (3, 4, 5):
        (tmp_path / "x").write_bytes(pickle.dumps(want, protocol))
        found = read_pickled_arrays(tmp_path / "x")
        for key, value in want.items():
            np.testing.assert_array_equal(found[key], value)


class Bomb:
    def __init__(self, path):
        self.path = path

    def __reduce__(self):
        return (os.mkdir, (str(self.path),))


def test_code_is_never_run(tmp_path):
    target = tmp_path / "ran"
    for payload in (Bomb(target), {"preprocessed_eeg_data": Bomb(target)}, {"a": [Bomb(target)]}):
        (tmp_path / "x.npy").write_bytes(pickle.dumps(payload, 4))
        with pytest.raises(DataError, match=r"global 'posix\.mkdir'"):
            read_things_eeg(tmp_path / "x.npy")
        np.save(tmp_path / "y.npy", np.array(payload, dtype=object))
        with pytest.raises(DataError, match="nothing in it was run"):
            read_things_eeg(tmp_path / "y.npy")
    assert not target.exists()


def test_mutated_files_are_read_or_refused_never_else(tmp_path):
    data = bytearray(pickle.dumps(content(2), 4))
    g = np.random.default_rng(0)
    head = [i for i in range(len(data)) if i < 160 or i > len(data) - 300]
    for _ in range(1500):
        broken = bytearray(data)
        for i in g.choice(head, size=g.integers(1, 4)):
            broken[i] = g.integers(256)
        (tmp_path / "m").write_bytes(broken[: len(broken) - int(g.integers(0, 3)) * 7])
        try:
            assert isinstance(read_pickled_arrays(tmp_path / "m"), dict)
        except DataError:
            pass


@pytest.mark.parametrize(
    ("value", "match"),
    [
        ([1, 2], "got a list"),
        ({"a": np.array([None, 1], dtype=object)}, "an array of type 'O8'"),
        ({"a": np.zeros(2, dtype=[("x", "f4")])}, "got a"),
        ({"a": {1, 2}}, "opcode EMPTY_SET"),
        ({1: 2}, "got a dict"),
    ],
)
def test_other_content_is_refused(tmp_path, value, match):
    (tmp_path / "x").write_bytes(pickle.dumps(value, 4))
    with pytest.raises(DataError, match=match):
        read_pickled_arrays(tmp_path / "x")


def test_wrong_layouts_are_refused(tmp_path):
    np.save(tmp_path / "plain.npy", np.zeros(3))
    with pytest.raises(DataError, match="read it with load_npy"):
        read_things_eeg(tmp_path / "plain.npy")
    with pytest.raises(DataError, match="nothing at"):
        read_things_eeg(tmp_path, "test")
    with pytest.raises(DataError, match="split 'train' or 'test'"):
        read_things_eeg(tmp_path, "val")
    for change, match in (
        ({"times": np.zeros(4)}, "n_times=4"),
        ({"preprocessed_eeg_data": np.full((2, 1, 3, 10), np.nan)}, "finite EEG"),
    ):
        (tmp_path / "x.npy").write_bytes(pickle.dumps(content(2) | change, 4))
        with pytest.raises(DataError, match=match):
            read_things_eeg(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(pickle.dumps({"times": np.zeros(2)}, 4))
    with pytest.raises(DataError, match="the \\*preprocessed\\* EEG"):
        read_things_eeg(tmp_path / "x.npy")
    (tmp_path / "x.npy").write_bytes(pickle.dumps(content(2), 4))
    with pytest.raises(DataError, match="n_stimuli=1"):
        read_things_eeg(tmp_path / "x.npy", ids=["one"])


@pytest.mark.parametrize("damage", [b"\x11", b"(", b"'", b"\n\t"])
def test_a_damaged_numpy_header_is_refused(tmp_path, damage):
    np.save(tmp_path / "x.npy", np.array(content(2), dtype=object))
    data = (tmp_path / "x.npy").read_bytes()
    at = data.index(b"}")
    (tmp_path / "x.npy").write_bytes(data[:at] + damage + data[at + len(damage) :])
    with pytest.raises(DataError, match="nothing in it was run"):
        read_things_eeg(tmp_path / "x.npy")


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.filterwarnings("ignore")
def test_a_hundred_thousand_mutations_are_read_or_refused(tmp_path):
    files = [
        bytearray(pickle.dumps(content(2, order), p)) for p in (3, 4, 5) for order in ("C", "F")
    ]
    np.save(tmp_path / "whole.npy", np.array(content(2), dtype=object))
    files.append(bytearray((tmp_path / "whole.npy").read_bytes()))
    g, outcomes = np.random.default_rng(1), {"read": 0, "refused": 0}
    for k in range(100_000):
        data = files[k % len(files)]
        broken = bytearray(data)
        # half of the changes hit the head and the tail, where the structure is
        near = g.random() < 0.5
        for _ in range(int(g.integers(1, 5))):
            at = int(g.integers(min(400, len(data)))) if near else int(g.integers(len(data)))
            broken[at if g.random() < 0.5 else -1 - at] = int(g.integers(256))
        stop = len(broken) if g.random() < 0.8 else int(g.integers(len(broken) + 1))
        (tmp_path / "m.npy").write_bytes(broken[:stop])
        try:
            read_things_eeg(tmp_path / "m.npy")
            outcomes["read"] += 1
        except DataError:
            outcomes["refused"] += 1
    assert min(outcomes.values()) > 1000, outcomes


def test_images_of_an_eeg_are_found_by_name(tmp_path):
    from PIL import Image

    (tmp_path / "images" / "aardvark").mkdir(parents=True)
    for i, name in enumerate(("aardvark/a_01.png", "b_02.png")):
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(tmp_path / "images" / name)
    eeg = EEG(
        np.zeros((2, 1, 1, 3)), ("O1",), np.arange(3.0), np.array(["b_02", "a_01"], dtype=object)
    )
    shown = eeg_stimuli(eeg, tmp_path / "images")
    assert (
        list(shown.ids) == ["b_02", "a_01"] and shown.image(0)[0, 0, 0] == 40 and not eeg.simulated
    )
    lost = EEG(np.zeros((1, 1, 1, 3)), ("O1",), np.arange(3.0), np.array(["c"], dtype=object))
    with pytest.raises(DataError, match=r"1 missing, e\.g\. \['c'\]"):
        eeg_stimuli(lost, tmp_path / "images")


def test_a_recording_is_read_with_its_images_from_the_dataset_as_unpacked(tmp_path):
    from PIL import Image

    names = ["00001_aircraft/aircraft_06s.jpg", "00002_ant/ant_11s.jpg"]
    where = tmp_path / "image_set" / "test_images"
    for i, name in enumerate(names):
        (where / name).parent.mkdir(parents=True)
        Image.fromarray(np.full((4, 4, 3), 40 * i, np.uint8)).save(where / name)
    folder = tmp_path / "eeg_dataset" / "preprocessed_data" / "sub-01"
    folder.mkdir(parents=True)
    np.save(folder / "preprocessed_eeg_test.npy", content(2))
    with pytest.raises(DataError, match=r"image_set/image_metadata\.npy above sub-01; got none"):
        read_with_images(folder)
    np.save(
        tmp_path / "image_set" / "image_metadata.npy",
        {"test_img_files": [n.split("/")[1] for n in names]},
    )
    eeg, shown = read_with_images(folder)
    assert list(eeg.ids) == list(shown.ids) == ["aircraft_06s", "ant_11s"] and not eeg.simulated
    assert eeg.data.shape == (2, 4, 3, 10) and abs(int(shown.image(1)[0, 0, 0]) - 40) <= 2
    linked = [
        folder / "preprocessed_eeg_test.npy",
        where / names[0],
        tmp_path / "image_set" / "image_metadata.npy",
    ]
    for number, path in enumerate(linked):
        outside = tmp_path / f"outside{number}{path.suffix}"
        path.rename(outside)
        path.symlink_to(outside)
        with pytest.raises(DataError, match=rf"{path.name}, a link to .*follow_links=True"):
            read_with_images(folder)
        assert len(read_with_images(folder, follow_links=True)[1]) == 2
        path.unlink()
        outside.rename(path)
