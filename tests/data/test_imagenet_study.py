"""ImageNet and its sets as a study, on a generated small folder of the true layout, end to end with a tiny backbone."""

from __future__ import annotations

import json
import shutil

import numpy as np
import pytest
from PIL import Image

from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import evaluate_suite
from bmfl_lab.training import FusionConfig, LoopConfig, train_fusion

WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(4))
COLOURS = ((200, 40, 40), (40, 200, 40), (40, 40, 200), (190, 190, 40))


def pictures(folder, wnid, n, offset, suffix):
    folder.mkdir(parents=True)
    random = np.random.default_rng([WNIDS.index(wnid), offset])
    for i in range(n):
        noise = random.integers(-30, 31, (40, 36, 3))
        pixels = np.clip(np.asarray(COLOURS[WNIDS.index(wnid)]) + noise, 0, 255).astype(np.uint8)
        Image.fromarray(pixels).save(folder / f"{wnid}_{offset}_{i}{suffix}")


@pytest.fixture(scope="module")
def root(tmp_path_factory):
    """ImageNet, Sketch with all classes, R with two, V2 with index folders, C with one corruption."""
    home = tmp_path_factory.mktemp("imagenet")
    for k, w in enumerate(WNIDS):
        pictures(home / "train" / w, w, 9, 0, ".JPEG")
        pictures(home / "val" / w, w, 4, 1, ".JPEG")
        pictures(home / "sketch" / w, w, 3, 2, ".JPEG")
        pictures(home / "imagenet-v2" / str(k), w, 2, 3, ".jpeg")
        pictures(home / "C" / "weather" / "fog" / "3" / w, w, 2, 5, ".JPEG")
    for w in (WNIDS[3], WNIDS[1]):
        pictures(home / "imagenet-r" / w, w, 3, 4, ".jpg")
    return home


def options(**more):
    return {
        "partial": True,
        "val_per_class": 3,
        "backbone": "vit_tiny14",
        "weights": "random:0",
        "image_size": 28,
        **more,
    }


def test_sets_sizes_and_classes(root):
    study = load_study(
        "imagenet",
        root=root,
        corruptions="C",
        corruption_names=["fog"],
        corruption_severities=[3],
        verify=True,
        **options(),
    )
    assert {n: len(s) for n, s in study.sets.items()} == {
        "train": 24,
        "val": 12,
        "test": 16,
        "imagenet-sketch": 12,
        "imagenet-r": 6,
        "imagenet-v2": 8,
        "fog-3": 8,
    }
    assert (
        study.ood == ("imagenet-sketch", "imagenet-r", "imagenet-v2", "fog-3")
        and study.class_names == WNIDS
    )
    assert study.set("imagenet-r").class_names == (WNIDS[1], WNIDS[3])
    assert not set(study.set("train").ids) & set(study.set("val").ids)
    assert [n for n, _ in study.shifts] == ["masked", "low_light"] and "MIT" in study.licences[
        "imagenet-r"
    ]
    few = load_study(
        "imagenet", root=root, train_per_class=2, ood={"imagenet-r": "imagenet-r"}, **options()
    )
    assert len(few.set("train")) == 8 and len(few.set("val")) == 12 and few.ood == ("imagenet-r",)
    assert set(few.set("train").ids) <= set(study.set("train").ids)


def test_from_a_study_file_to_scores_on_masked_classes(root, tmp_path):
    (root / "study.json").write_text(json.dumps({"study": "imagenet", "root": ".", **options()}))
    study = load_study(str(root / "study.json"))
    config = FusionConfig(
        head="backbone", width=16, loop=LoopConfig(epochs=30, batch_size=8, lr=1e-2)
    )
    model = train_fusion(config, study, store=FeatureStore(tmp_path), device="cpu")
    result = evaluate_suite({"backbone": model}, study, severities=[1], n_boot=50)
    found = {(r.split, r.shift): (r.value, r.n) for r in result.rows if r.name == "accuracy"}
    assert set(found) == {
        ("test", ""),
        ("imagenet-sketch", ""),
        ("imagenet-r", ""),
        ("imagenet-v2", ""),
        ("test", "masked"),
        ("test", "low_light"),
    }
    # plain colours are easy even for random weights, and two classes can be told only if the right
    # columns are kept
    assert found["test", ""][0] > 0.7 and found["imagenet-r", ""] == (
        pytest.approx(1.0, abs=0.34),
        6,
    )
    masked = result.per_image[result.per_image["split"] == "imagenet-r"]
    assert set(masked["predicted"]) <= {0, 1}
    assert model.logits(study.set("imagenet-r")).shape == (6, 4)


def test_digests_by_file_do_not_read_it_and_change_with_it(root):
    study = load_study("imagenet", root=root, content=False, **options())
    by_content = load_study("imagenet", root=root, **options())
    assert study.set("test").digests() != by_content.set("test").digests()
    path = root / "val" / WNIDS[0] / f"{WNIDS[0]}_1_0.JPEG"
    before = study.set("test").digests()
    path.touch()
    after = load_study("imagenet", root=root, content=False, **options()).set("test").digests()
    assert sum(a != b for a, b in zip(before, after)) == 1


def test_bad_input_is_refused_by_name(root, tmp_path):
    with pytest.raises(ConfigError, match="folder of ImageNet-1k"):
        load_study("imagenet")
    with pytest.raises(ConfigError, match="imagenet-sketch"):
        load_study("imagenet", root=root, ood={"imagenet-sketsh": "x"}, **options())
    with pytest.raises(DataError, match="nothing at"):
        load_study("imagenet", root=root, ood={"imagenet-a": "no-such-folder"}, **options())
    with pytest.raises(DataError, match="more than 9 training images"):
        load_study("imagenet", root=root, **options(val_per_class=9))
    with pytest.raises(ConfigError, match="val_per_class >= 1"):
        load_study("imagenet", root=root, **options(val_per_class=0))
    with pytest.raises(
        DataError, match=r"4 missing \['0', .* 2 unknown .*check that this folder is that set"
    ):
        load_study("imagenet", root=root, ood={"imagenet-v2": "imagenet-r"}, **options())
    with pytest.raises(ConfigError, match="nothing at"):
        load_study(str(tmp_path / "none.json"))
    bad = tmp_path / "bad.json"
    bad.write_text('{"study": "imagnet"}')
    with pytest.raises(ConfigError, match="did you mean 'imagenet'"):
        load_study(str(bad))


@pytest.mark.parametrize(
    "part", ["train", "val", "sketch", f"train/{WNIDS[0]}", "sketch file", "C"]
)
def test_links_out_of_the_root_need_leave(root, tmp_path, part):
    home = shutil.copytree(root, tmp_path / "home")
    place = next((home / "sketch" / WNIDS[0]).iterdir()) if part == "sketch file" else home / part
    if part == "C":
        place = next((home / "C/weather/fog/3" / WNIDS[0]).iterdir())
    place.rename(tmp_path / "outside")
    place.symlink_to(tmp_path / "outside")
    chosen = options(
        root=home, corruptions="C", corruption_names=["fog"], corruption_severities=[3]
    )
    with pytest.raises(
        DataError, match=rf"files inside .*{place.name}, a link to .*follow_links=True"
    ):
        load_study("imagenet", **chosen)
    assert len(load_study("imagenet", follow_links=True, **chosen).set("test")) == 16
