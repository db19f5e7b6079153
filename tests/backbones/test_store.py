"""The feature store: tokens from disk equal computed ones, and no incomplete set is ever read."""

import dataclasses
import itertools
import json
import os
import shutil
import threading
import time

import numpy as np
import pytest
import torch
from extraction_process import failing
from extraction_process import stimuli as noise
from PIL import Image

from bmfl_lab.backbones import FeatureStore, extract, load_backbone
from bmfl_lab.backbones import tokens as module
from bmfl_lab.data.stimuli import from_files
from bmfl_lab.errors import ConfigError, DataError, NumericsError
from bmfl_lab.files import files_below, sha256_json, write_sealed_json


@pytest.fixture(scope="module")
def backbone():
    return load_backbone("vit_tiny14_reg", image_size=28, resize="direct")


def direct(backbone, stimuli, **options):
    """Return tokens the plain way, all images in one batch."""
    return backbone(
        torch.stack([backbone.preprocess(stimuli.image(i)) for i in range(len(stimuli))]), **options
    )


@pytest.mark.parametrize("n", [1, 5, 37])
def test_full_tokens_equal_a_plain_forward_pass(tmp_path, backbone, n):
    stored = FeatureStore(tmp_path).get(backbone, noise(n), dtype="float32", batch_size=4)
    expected = direct(backbone, noise(n))
    assert stored.grid == (2, 2)
    assert len(stored) == n
    assert np.allclose(stored.cls, expected.cls, atol=1e-5)
    assert np.allclose(stored.patches, expected.patches, atol=1e-5)
    assert np.allclose(stored.mean, expected.patches.mean(1), atol=1e-5)
    assert stored.features().shape == (n, 96)
    assert stored.features().dtype == np.float32


def test_batches_that_threads_share_out_keep_their_order_and_bits(backbone, monkeypatch):
    threads, seen, turns = torch.get_num_threads(), set(), itertools.count()
    monkeypatch.setattr(torch, "get_num_threads", lambda: 3)

    class Seen(type(backbone)):
        def forward(self, *images, **options):
            seen.add(threading.current_thread().name)
            time.sleep((0.2, 0.05)[next(turns) % 2])  # they do not end in their order
            return super().forward(*images, **options)

    monkeypatch.setattr(backbone, "__class__", Seen)
    shared = extract(backbone, noise(37), batch_size=4)
    assert len(seen) > 1 and threading.current_thread().name not in seen
    monkeypatch.setattr(Seen, "reentrant", False)
    seen.clear()
    alone = extract(backbone, noise(37), batch_size=4)
    assert seen == {threading.current_thread().name}
    np.testing.assert_array_equal(shared.patches, alone.patches)
    np.testing.assert_array_equal(shared.cls, alone.cls)
    monkeypatch.undo()
    assert torch.get_num_threads() == threads


def test_each_kind_keeps_what_it_says(tmp_path):
    backbone = load_backbone("vit_tiny14", image_size=56)
    expected = direct(backbone, noise(6)).patches.unflatten(1, (4, 4))
    store = FeatureStore(tmp_path)
    cls = store.get(backbone, noise(6), "cls", dtype="float32")
    both = store.get(backbone, noise(6), "cls+mean", dtype="float32")
    pooled = store.get(backbone, noise(6), "pooled:2", dtype="float32")
    assert cls.mean is None and cls.patches is None and both.patches is None
    assert cls.features().shape == (6, 48)
    assert pooled.grid == (2, 2)
    for r in range(2):
        for c in range(2):
            cell = expected[:, 2 * r : 2 * r + 2, 2 * c : 2 * c + 2].mean((1, 2))
            assert np.allclose(pooled.patches[:, 2 * r + c], cell, atol=1e-5)
    assert np.allclose(pooled.mean, expected.mean((1, 2)), atol=1e-5)
    with pytest.raises(ConfigError, match="a pooled grid of at most 4"):
        store.get(backbone, noise(6), "pooled:5")


@pytest.mark.parametrize("dtype", ["float16", "float32"])
def test_other_kinds_are_derived_from_the_patches_at_hand(tmp_path, dtype, monkeypatch):
    backbone = load_backbone("vit_tiny14", image_size=56)
    kinds = ("cls", "cls+mean", "pooled:2", "pooled:3")
    store = FeatureStore(tmp_path / "whole")
    whole = store.get(backbone, noise(9), dtype=dtype)
    asked = {
        k: FeatureStore(tmp_path / "asked").get(backbone, noise(9), k, dtype=dtype) for k in kinds
    }
    monkeypatch.setattr(module, "run", lambda *_: pytest.fail("the backbone ran again"))
    for kind, plain in asked.items():
        derived = store.get(backbone, noise(9), kind, dtype=dtype, batch_size=4)
        assert (
            derived.manifest["derived_from"] == whole.key and plain.manifest["derived_from"] is None
        )
        assert derived.key == plain.key and derived.grid == plain.grid
        assert np.array_equal(derived.cls, plain.cls)
        assert (derived.mean is None) == (plain.mean is None)
        assert kind == "cls" or np.array_equal(derived.mean, plain.mean)
        if plain.patches is not None:
            worst = np.abs(derived.patches.astype(np.float64) - plain.patches).max()
            assert worst <= 2 * np.finfo(dtype).eps * np.abs(plain.patches).max()


def test_tokens_are_not_derived_from_coarser_numbers_or_other_blocks(tmp_path, backbone):
    store = FeatureStore(tmp_path)
    store.get(backbone, noise(6), dtype="float16")
    store.get(backbone, noise(6), dtype="float32", block=0)
    assert store.get(backbone, noise(6), "cls", dtype="float32").manifest["derived_from"] is None
    assert store.get(backbone, noise(5), "cls").manifest["derived_from"] is None
    assert store.get(backbone, noise(6), "cls", block=0).manifest["derived_from"] is not None


def test_a_set_is_hashed_once_and_a_changed_file_again(tmp_path, backbone, monkeypatch):
    from bmfl_lab.data import stimuli as module

    hashed = []
    original = module.sha256_file
    monkeypatch.setattr(module, "sha256_file", lambda p: (hashed.append(str(p)), original(p))[1])
    for i in range(3):
        Image.fromarray(noise(3).image(i)).save(tmp_path / f"{i}.png")
    files = from_files(
        "files", [tmp_path / f"{i}.png" for i in range(3)], ["a", "b", "c"], [0, 0, 0]
    )
    store = FeatureStore(tmp_path / "store")
    first = store.get(backbone, files)
    assert store.get(backbone, files).key == first.key and len(hashed) == 3
    Image.fromarray(noise(3).image(0)).save(tmp_path / "2.png")
    assert store.get(backbone, files).key != first.key and len(hashed) == 4


def test_an_image_replaced_while_tokens_are_made_is_refused_and_nothing_is_kept(tmp_path, backbone):
    paths = [tmp_path / f"{i}.png" for i in range(3)]
    for i, path in enumerate(paths):
        Image.fromarray(np.full((30, 30, 3), 40 * i, np.uint8)).save(path)
    files = from_files("files", paths, ["a", "b", "c"], [0, 0, 0])
    original = files.read

    def swapping(i):
        if i == 2:
            Image.fromarray(np.full((30, 30, 3), 200, np.uint8)).save(tmp_path / "new.png")
            (tmp_path / "new.png").replace(paths[1])  # at once: another thread may be reading it
        return original(i)

    store = FeatureStore(tmp_path / "store")
    with pytest.raises(
        DataError, match="images of 'files' as they were when asked for; got others"
    ):
        store.get(backbone, dataclasses.replace(files, read=swapping), "pooled:1")
    assert not list((tmp_path / "store").glob("*/*.npy"))
    np.testing.assert_allclose(
        store.get(backbone, files, "pooled:1").cls,
        store.get(backbone, files, "patches").cls,
        atol=1e-3,
    )


def test_half_precision_is_within_its_rounding(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(8))
    expected = direct(backbone, noise(8)).patches.numpy()
    assert stored.patches.dtype == np.float16
    assert np.abs(stored.patches - expected).max() <= 2**-11 * np.abs(expected).max() + 1e-6


def test_other_blocks_and_projections(tmp_path, backbone):
    store = FeatureStore(tmp_path)
    first = store.get(backbone, noise(5), block=0, dtype="float32")
    query = store.get(backbone, noise(5), block=-3, dtype="float32", features="q")
    assert np.allclose(first.patches, direct(backbone, noise(5), blocks=(0,))[0].patches, atol=1e-5)
    assert np.allclose(
        query.patches, direct(backbone, noise(5), blocks=(0,), features="q")[0].patches, atol=1e-5
    )
    assert first.key != query.key


def test_tokens_in_memory_are_the_same(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(9), dtype="float32", batch_size=4)
    found = extract(backbone, noise(9), batch_size=4)
    assert np.array_equal(stored.patches, found.patches)
    assert found.key == ""
    assert found.manifest["identity"]["backbone"] == stored.manifest["identity"]["backbone"]


def test_the_second_time_nothing_is_computed_and_nothing_can_be_written(
    tmp_path, backbone, monkeypatch
):
    first = FeatureStore(tmp_path).get(backbone, noise(10))
    monkeypatch.setattr(FeatureStore, "_extract", lambda *_: pytest.fail("extracted again"))
    again = FeatureStore(tmp_path).get(backbone, noise(10), batch_size=3, block=2)
    assert again.key == first.key
    assert np.array_equal(again.patches, first.patches)
    with pytest.raises(ValueError, match="read-only"):
        again.patches[0] = 0


def test_whatever_determines_the_tokens_changes_the_key(tmp_path, backbone):
    store = FeatureStore(tmp_path)
    base = noise(4)
    changed = base.mapped(lambda image, _: image ^ 1, key="flip")
    variants = [
        store.get(backbone, base),
        store.get(backbone, base, "cls+mean"),
        store.get(backbone, base, block=1),
        store.get(backbone, base, dtype="float32"),
        store.get(backbone, base.subset([1, 0, 2, 3])),
        store.get(backbone, changed),
        store.get(load_backbone("vit_tiny14_reg", image_size=28, resize="short"), base),
        store.get(load_backbone("vit_tiny14_reg", image_size=42, resize="direct"), base),
        store.get(
            load_backbone("vit_tiny14_reg", weights="random:1", image_size=28, resize="direct"),
            base,
        ),
        store.get(load_backbone("vit_tiny14", image_size=28, resize="direct"), base),
    ]
    assert len({v.key for v in variants}) == len(variants)


def test_the_content_of_a_set_is_hashed_without_a_list_of_it():
    assert module._content(noise(3)) == sha256_json(noise(3).digests())
    assert module._content(noise(0)) == sha256_json([])


def test_the_expected_size_is_said_before_and_true(tmp_path, backbone, capsys):
    stored = FeatureStore(tmp_path).get(backbone, noise(100))
    said = capsys.readouterr().out
    expected = 100 * (1 + 1 + 4) * 48 * 2
    assert f"{expected / 1e6:.1f} MB" in said and "random weights (seed 0)" in said
    on_disk = sum(p.stat().st_size for p in (tmp_path / stored.key).glob("*.npy"))
    assert expected <= on_disk <= expected + 3 * 128


def test_beyond_the_limit_or_the_disk_nothing_is_begun(tmp_path, backbone, monkeypatch):
    with pytest.raises(ConfigError, match=r"room for .* GB of tokens.*limit of 1e-05 GB"):
        FeatureStore(tmp_path, limit_gb=1e-5).get(backbone, noise(100))
    held = FeatureStore(tmp_path, limit_gb=1e-4).get(backbone, noise(100))
    with pytest.raises(ConfigError, match="GB used of a limit"):
        FeatureStore(tmp_path, limit_gb=1e-4).get(backbone, noise(99))
    monkeypatch.setattr("shutil.disk_usage", lambda _: type("U", (), {"free": 1000})())
    with pytest.raises(ConfigError, match="1e-06 GB free on the disk"):
        FeatureStore(tmp_path).get(backbone, noise(98))
    assert len(list(tmp_path.glob("*/manifest.json"))) == 1 and len(held) == 100
    assert not list(tmp_path.glob("*.partial"))


def keys(store):
    return {path.parent.name for path in store.root.glob("*/manifest.json")}


def test_sets_that_were_used_longest_ago_are_evicted_and_named(tmp_path, backbone, capsys):
    store = FeatureStore(tmp_path, limit_gb=2e-4)  # room for three sets of 100 images
    first, second, third = (store.get(backbone, noise(n)).key for n in (100, 99, 98))
    for day, key in enumerate((second, first, third)):
        os.utime(tmp_path / key / "manifest.json", (day * 86400, day * 86400))
    capsys.readouterr()
    part = store.get(backbone, noise(97)).patches[5:]  # a slice keeps its set
    said = capsys.readouterr().out
    assert "deleted patches of 'noise' by vit_tiny14_reg (0.1 MB, last used 1970-01-01" in said
    assert "to make room within 0.0002 GB; raise limit_gb or BMFL_STORE_GB" in said
    assert second not in keys(store) and {first, third} < keys(store)
    store.get(backbone, noise(100))  # a use
    fourth = next(iter(keys(store) - {first, third}))
    store.get(backbone, noise(96))
    assert keys(store) > {first, fourth} and third not in keys(store) and len(part) == 92
    before = keys(store)
    with pytest.raises(ConfigError, match="room for"):  # nothing is deleted in vain
        store.get(backbone, noise(400))
    assert keys(store) == before and store.room() < 6e4 < 1e5 < store.room(evicting=True)


def test_a_set_that_another_process_uses_is_not_evicted(tmp_path, backbone):
    store = FeatureStore(tmp_path, limit_gb=1e-4)
    key = store.get(backbone, noise(100)).key
    ready, done = os.pipe(), os.pipe()
    child = os.fork()
    if not child:
        mapped = FeatureStore(tmp_path).get(backbone, noise(100)).cls
        os.write(ready[1], b"x")
        os.read(done[0], 1)
        os._exit(len(mapped) != 100)
    os.read(ready[0], 1)
    with pytest.raises(ConfigError, match="GB used of a limit"):
        store.get(backbone, noise(99))
    assert keys(store) == {key}
    os.write(done[1], b"x")
    assert os.waitpid(child, 0)[1] == 0
    assert store.get(backbone, noise(99)).key in keys(store) and key not in keys(store)


def test_a_flipped_bit_is_refused(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(20))
    path = tmp_path / stored.key / "patches.npy"
    data = bytearray(path.read_bytes())
    data[-7] ^= 1
    path.write_bytes(data)
    with pytest.raises(
        DataError, match=r"undamaged tokens in .*patches\.npy; got another checksum in rows 0 to 19"
    ):
        FeatureStore(tmp_path).get(backbone, noise(20))


def test_a_file_exchanged_after_it_was_checked_is_checked_again(tmp_path, backbone):
    store = FeatureStore(tmp_path)
    path = tmp_path / store.get(backbone, noise(20)).key / "cls.npy"
    changed = bytearray(path.read_bytes())
    changed[-1] ^= 1
    path.with_suffix(".new").write_bytes(changed)
    path.with_suffix(".new").rename(path)
    with pytest.raises(DataError, match=r"undamaged tokens in .*cls\.npy"):
        store.get(backbone, noise(20))


def test_a_truncated_file_is_refused(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(20))
    path = tmp_path / stored.key / "cls.npy"
    path.write_bytes(path.read_bytes()[:-10])
    with pytest.raises(DataError, match=r"cls\.npy"):
        FeatureStore(tmp_path).get(backbone, noise(20))


def test_another_manifest_is_refused(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(20))
    path = tmp_path / stored.key / "manifest.json"
    manifest = json.loads(path.read_text())
    manifest["identity"]["backbone"]["weights_hash"] = "0" * 64
    path.write_text(json.dumps(manifest))
    with pytest.raises(DataError, match=r"manifest\.json as it was written"):
        FeatureStore(tmp_path).get(backbone, noise(20))
    write_sealed_json(path, manifest)
    with pytest.raises(DataError, match="of the requested weights, preprocessing and stimuli"):
        FeatureStore(tmp_path).get(backbone, noise(20))


def test_sets_of_earlier_versions_without_seals_are_read(tmp_path, backbone):
    stored = FeatureStore(tmp_path).get(backbone, noise(20))
    path = tmp_path / stored.key / "manifest.json"
    old = {
        k: v
        for k, v in json.loads(path.read_text()).items()
        if k not in ("sealed", "seal", "headers")
    }
    path.write_text(json.dumps(old))
    assert np.array_equal(FeatureStore(tmp_path).get(backbone, noise(20)).patches, stored.patches)


def test_an_unreadable_image_is_named_and_leaves_no_set(tmp_path, backbone):
    paths = []
    for i in range(12):
        paths.append(tmp_path / f"img_{i}.png")
        Image.fromarray(noise(12).image(i)).save(paths[-1])
    paths[9].write_bytes(paths[9].read_bytes()[:80])
    bad = from_files("photos", paths, [f"s{i}" for i in range(12)], [0] * 12)
    with pytest.raises(DataError, match=r"stimulus 's9' \(.*img_9\.png\) of 'photos'"):
        FeatureStore(tmp_path / "store").get(backbone, bad, batch_size=2)
    assert not list((tmp_path / "store").glob("*/manifest.json"))


def test_a_broken_file_far_ahead_stops_the_work_within_seconds(tmp_path, backbone):

    bad = failing(noise(400), 12, OSError("disk error"))
    calls = []
    handle = backbone.register_forward_pre_hook(
        lambda *_: (calls.append(1), time.sleep(0.2)) and None
    )
    start = time.monotonic()
    try:
        with pytest.raises(DataError, match=r"'n12' of 'noise'; got OSError: disk error"):
            FeatureStore(tmp_path).get(backbone, bad, batch_size=4)
    finally:
        handle.remove()
    assert len(calls) <= 3
    assert time.monotonic() - start < 10


def test_numbers_that_do_not_fit_are_refused(tmp_path, backbone):
    loud = load_backbone("vit_tiny14_reg", image_size=28)
    loud.norm.weight.data[5] = 1e6
    with pytest.raises(
        NumericsError, match=r"at most 65504 to store as float16.*'n\d'.*store as dtype='float32'"
    ):
        FeatureStore(tmp_path).get(loud, noise(3))
    assert FeatureStore(tmp_path).get(loud, noise(3), dtype="float32").cls.max() > 65504
    loud.norm.weight.data[5] = float("nan")
    loud.weights_hash = "other"
    for dtype in ("float16", "float32"):
        with pytest.raises(NumericsError, match="nan in 'cls' of stimulus 'n0'"):
            FeatureStore(tmp_path).get(loud, noise(3), dtype=dtype)
    with pytest.raises(NumericsError, match="finite tokens"):
        extract(loud, noise(3))


@pytest.mark.parametrize(
    ("options", "text"),
    [
        ({"kind": "patch"}, "a kind 'cls'"),
        ({"dtype": "int8"}, "a stored dtype"),
        ({"batch_size": 0}, "a positive batch size"),
        ({"block": 7}, "block indices from -3 to 2"),
        ({"features": "queries"}, "features among"),
    ],
)
def test_choices_are_checked_before_anything_is_written(tmp_path, backbone, options, text):
    with pytest.raises(ConfigError, match=text):
        FeatureStore(tmp_path).get(backbone, noise(3), **options)
    assert not list(tmp_path.glob("*/manifest.json"))


def test_a_full_memory_halves_the_batch(backbone, monkeypatch):
    expected = extract(backbone, noise(11), "pooled:1", batch_size=11)
    original, sizes = type(backbone).forward, []

    def small(self, images, *args, **options):
        if len(images) > 3:
            raise torch.OutOfMemoryError("no room for more than 3 images")
        sizes.append(len(images))
        return original(self, images, *args, **options)

    monkeypatch.setattr(type(backbone), "forward", small)
    found = extract(backbone, noise(11), "pooled:1", batch_size=11)
    assert sizes == [3, 3, 3, 2]
    for name in ("cls", "mean", "patches"):
        assert np.allclose(getattr(found, name), getattr(expected, name), atol=1e-6)
    monkeypatch.setattr(
        type(backbone),
        "forward",
        lambda *_, **__: (_ for _ in ()).throw(torch.OutOfMemoryError("none")),
    )
    with pytest.raises(torch.OutOfMemoryError, match="none"):
        extract(backbone, noise(2))


@pytest.mark.gpu
def test_tokens_from_a_gpu_are_those_of_the_cpu(tmp_path, backbone):
    gpu = load_backbone("vit_tiny14_reg", image_size=28, resize="direct", device="cuda")
    stored = FeatureStore(tmp_path).get(gpu, noise(40), dtype="float32", batch_size=16)
    assert np.allclose(stored.patches, direct(backbone, noise(40)).patches, atol=1e-4)
    assert stored.manifest["device"] == "cuda"


def test_a_folder_that_another_process_removes_does_not_end_a_walk(tmp_path):
    (tmp_path / "kept").mkdir()
    (tmp_path / "kept" / "a.npy").write_bytes(b"1234")
    stop = threading.Event()

    def come_and_go():
        while not stop.is_set():
            part = tmp_path / "x.partial"
            part.mkdir()
            (part / "b.npy").write_bytes(b"1")
            shutil.rmtree(part)

    other = threading.Thread(target=come_and_go)
    other.start()
    try:
        for _ in range(300):
            found = {p.parent.name for p in files_below(tmp_path, "*.npy")}
            assert found in ({"kept"}, {"kept", "x.partial"})
            assert FeatureStore(tmp_path).used_bytes() in (4, 5)
    finally:
        stop.set()
        other.join()
    assert files_below(tmp_path / "nothing", "*") == []
