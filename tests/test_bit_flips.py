"""A single flipped bit in anything that is kept on disk is seen when it is read."""

import hashlib
import zipfile

import numpy as np
import pytest
import torch

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.backbones.cornet import CORnetS, load_cornet
from bmfl_lab.backbones.weights import read_tensors
from bmfl_lab.data import fetch
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import BmflError, CheckpointError
from bmfl_lab.files import load_arrays, store_arrays
from bmfl_lab.records import Record, read_record
from bmfl_lab.training import checkpoint


def checkpoint_bundle(folder):
    """Return the reader of a training checkpoint."""
    tensors = {
        "a": torch.arange(60.0).reshape(12, 5),
        "b": torch.tensor([1, 2]),
        "c": torch.zeros(7).bfloat16(),
    }
    checkpoint.write_bundle(
        folder, "step-00000001", tensors, {"step": 1, "history": [{"loss": 0.1, "name": "ü"}]}
    )
    return lambda: checkpoint.read_bundle(folder, "step-00000001")


def feature_set(folder):
    """Return the reader of a set of tokens; without the images it cannot be made again behind our back."""
    images = np.random.default_rng(0).integers(0, 256, (6, 32, 32, 3), dtype=np.uint8)
    stimuli = from_arrays("noise", images, [f"n{i}" for i in range(6)], np.zeros(6, dtype=int))
    backbone = load_backbone("vit_tiny14_reg", image_size=28)
    FeatureStore(folder).get(backbone, stimuli, "pooled:1")
    return lambda: FeatureStore(folder).get(backbone, stimuli, "pooled:1")


def stored_arrays(folder):
    """Return the reader of a generated study's arrays, which answers None when they must be made again."""
    store_arrays(
        folder / "study",
        {"responses": np.arange(300.0), "rois": np.zeros(9, bool)},
        {"seed": 1, "rows": [3]},
    )

    def read():
        if load_arrays(folder / "study") is None:
            raise BmflError("to be made again")

    return read


def run_record(folder):
    """Return the reader of a run's record."""
    record = Record(
        "nb", {"study": "planted"}, {"name": "planted", "fingerprint": "0", "simulated": True}
    )
    record.add(
        "accuracy",
        0.5,
        unit="fraction",
        split="test",
        n=4,
        selection="none",
        ci_low=0.25,
        notes="ü",
    )
    path = record.finish(folder)
    return lambda: read_record(path)


def fetched_archive(folder, monkeypatch):
    """Return the reader of a downloaded package, which asks the package's client again when it is damaged."""
    content = bytes(range(256)) * 3
    with zipfile.ZipFile(folder / "whole.whl", "w") as out:
        out.writestr("p/a", content)
    sha = hashlib.sha256((folder / "whole.whl").read_bytes()).hexdigest()

    def client(*arguments):
        if (folder / "home").exists():
            raise BmflError("asked again")
        target = arguments[-1] / "delivered"
        target.write_bytes((folder / "whole.whl").read_bytes())
        return target

    monkeypatch.setattr(fetch, "_run_client", client)
    monkeypatch.delenv("BMFL_OFFLINE", raising=False)
    monkeypatch.setenv("BMFL_HOME", str(folder / "cache"))
    fetch.fetch_archive("thing", "1.0", "pip", sha)
    (folder / "whole.whl").unlink()
    (folder / "home").mkdir()
    return lambda: fetch.fetch_archive("thing", "1.0", "pip", sha)


def torch_files(folder):
    """Return the reader of two users' files of weights, by the guarded loaders."""
    tensors = {"conv.weight": torch.arange(400.0).reshape(20, 20), "bias": torch.ones(3)}
    torch.save(tensors, folder / "backbone.pth")
    model = CORnetS(n_classes=2, width=1)
    torch.save({"state_dict": model.state_dict()}, folder / "cornet.pth")
    return lambda: (
        read_tensors(folder / "backbone.pth"),
        load_cornet(folder / "cornet.pth", n_classes=2, width=1),
    )


KINDS = (checkpoint_bundle, feature_set, stored_arrays, run_record)


def flip_and_read(folder, read, n, seed):
    """Return how many of `n` random flips the reader saw; after each the file is whole again."""
    files = [p for p in sorted(folder.rglob("*")) if p.is_file() and not p.name.endswith(".lock")]
    whole = {p: p.read_bytes() for p in files}
    sizes = np.array([len(whole[p]) for p in files])
    generator, seen = np.random.default_rng(seed), 0
    read()
    for _ in range(n):
        # small files and large ones alike, and within a file every bit
        path = (
            files[generator.integers(len(files))]
            if generator.random() < 0.5
            else generator.choice(files, p=sizes / sizes.sum())
        )
        broken = bytearray(whole[path])
        broken[generator.integers(len(broken))] ^= 1 << int(generator.integers(8))
        path.write_bytes(bytes(broken))
        try:
            read()
        except BmflError:
            seen += 1
        finally:
            path.parent.mkdir(parents=True, exist_ok=True)
            path.write_bytes(whole[path])
    read()
    return seen


@pytest.mark.parametrize("kind", KINDS)
def test_two_hundred_random_flips_are_all_seen(kind, tmp_path, capsys):
    assert flip_and_read(tmp_path, kind(tmp_path), 200, 1) == 200


def test_flips_in_the_tensors_of_torch_files_are_all_seen(tmp_path):
    # the blanks between the parts of the archive belong to nothing and carry no checksum
    read, generator, seen = torch_files(tmp_path), np.random.default_rng(4), 0
    read()
    for trial in range(100):
        path = tmp_path / ("backbone.pth", "cornet.pth")[trial % 2]
        whole = path.read_bytes()
        with zipfile.ZipFile(path) as opened:
            parts = [p for p in opened.infolist() if p.file_size]
        part = parts[generator.integers(len(parts))]
        names = int.from_bytes(whole[part.header_offset + 26 : part.header_offset + 28], "little")
        extra = int.from_bytes(whole[part.header_offset + 28 : part.header_offset + 30], "little")
        at = part.header_offset + 30 + names + extra + int(generator.integers(part.file_size))
        path.write_bytes(
            whole[:at] + bytes([whole[at] ^ 1 << int(generator.integers(8))]) + whole[at + 1 :]
        )
        with pytest.raises(CheckpointError, match="the file is damaged"):
            read()
        path.write_bytes(whole)
        seen += 1
    read()
    assert seen == 100


@pytest.mark.slow
@pytest.mark.timeout(1800)
@pytest.mark.parametrize("kind", KINDS)
def test_ten_thousand_random_flips_are_all_seen(kind, tmp_path, capsys):
    assert flip_and_read(tmp_path, kind(tmp_path), 10_000, 2) == 10_000


def test_flips_in_a_fetched_archive_are_all_seen(tmp_path, monkeypatch):
    read = fetched_archive(tmp_path, monkeypatch)
    (archive,) = (tmp_path / "cache").rglob("archive-*")
    whole, generator = archive.read_bytes(), np.random.default_rng(3)
    for _ in range(200):
        broken = bytearray(whole)
        broken[generator.integers(len(broken))] ^= 1 << int(generator.integers(8))
        archive.write_bytes(bytes(broken))
        with pytest.raises(BmflError, match="asked again"):
            read()
        assert not archive.exists()  # what is damaged does not stay
    archive.write_bytes(whole)
    assert read() == archive
