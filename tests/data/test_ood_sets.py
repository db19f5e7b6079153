"""Readers of ImageNet and the out-of-distribution sets on generated folders of the true layout."""

from __future__ import annotations

import subprocess
import sys

import numpy as np
import pytest
from PIL import Image
from scipy.io import savemat

from bmfl_lab.data import imagenet as im
from bmfl_lab.data import ood_sets as ood
from bmfl_lab.data.prepare import prepare_images
from bmfl_lab.errors import DataError
from bmfl_lab.metrics.classification import accuracy, mask_classes

WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(1000))


def picture(path, value=0, size=(12, 10)):
    path.parent.mkdir(parents=True, exist_ok=True)
    Image.fromarray(np.full((*size, 3), value, dtype=np.uint8)).save(path)


def tree(root, folders, n=1, suffix=".JPEG"):
    for k, folder in enumerate(folders):
        for i in range(n):
            picture(root / folder / f"{folder}_{i}{suffix}", k % 256)
    return root


def test_train_folders_and_wnid_lists(tmp_path):
    root = tree(tmp_path / "train", WNIDS[5::-1], n=2)
    found = im.read_imagenet_train(root)
    assert found.class_names == WNIDS[:6] and len(found) == 12
    assert found.labels.tolist() == [0, 0, 1, 1, 2, 2, 3, 3, 4, 4, 5, 5]
    assert found.ids[2] == f"{WNIDS[1]}/{WNIDS[1]}_0.JPEG" and found.image(0).shape == (12, 10, 3)
    listing = tmp_path / "LOC_synset_mapping.txt"
    listing.write_text("\n".join(f"{w} tench, fish" for w in WNIDS[5::-1]))
    assert im.read_wnids(listing) == WNIDS[:6]
    for bad in (["n1"], [], [WNIDS[0], WNIDS[0]]):
        with pytest.raises(DataError, match="different wnids"):
            im.read_wnids(bad)
    with pytest.raises(DataError, match="nothing at"):
        im.read_imagenet_train(tmp_path / "no")


def devkit(root, ids, wnid_of):
    data = root / "ILSVRC2012_devkit_t12" / "data"
    data.mkdir(parents=True)
    (data / "ILSVRC2012_validation_ground_truth.txt").write_text("\n".join(map(str, ids)) + "\n")
    synsets = np.zeros(len(wnid_of), dtype=[("ILSVRC2012_ID", "O"), ("WNID", "O"), ("words", "O")])
    for row, (i, w) in zip(synsets, wnid_of.items()):
        row["ILSVRC2012_ID"], row["WNID"], row["words"] = float(i), w, "x"
    savemat(data / "meta.mat", {"synsets": synsets.reshape(-1, 1)})
    return root


def test_flat_validation_with_devkit_maps_by_wnid(tmp_path):
    wnid_of = {
        1: WNIDS[3],
        2: WNIDS[0],
        3: WNIDS[1],
        4: WNIDS[2],
    }  # the kit's ids are not the sorted order
    kit = devkit(tmp_path / "kit", [1, 2, 3, 4, 1], wnid_of)
    for i in range(1, 6):
        picture(tmp_path / "val" / f"ILSVRC2012_val_{i:08d}.JPEG")
    found = im.read_imagenet_val(tmp_path / "val", WNIDS[:4], devkit=kit)
    assert found.labels.tolist() == [3, 0, 1, 2, 3]
    with pytest.raises(
        DataError,
        match=r"class folders, LOC_val_solution\.csv in or above .*, or the devkit; .*sort the images into",
    ):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:4])
    (tmp_path / "val" / "ILSVRC2012_val_00000002.JPEG").unlink()
    with pytest.raises(DataError, match="5 files ILSVRC2012_val"):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:4], devkit=kit)
    part = im.read_imagenet_val(tmp_path / "val", WNIDS[:4], devkit=kit, partial=True)
    assert part.labels.tolist() == [3, 1, 2, 3]  # by the number in the name, not by position
    with pytest.raises(DataError, match="classes of the head"):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:3], devkit=kit, partial=True)
    picture(tmp_path / "val" / "cat.JPEG")
    with pytest.raises(DataError, match=r"cat\.JPEG"):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:4], devkit=kit, partial=True)
    with pytest.raises(DataError, match="unpack the devkit"):
        im.read_devkit(tmp_path / "val")
    (kit / "ILSVRC2012_devkit_t12/data/ILSVRC2012_validation_ground_truth.txt").write_text("1\n9\n")
    with pytest.raises(DataError, match=r"ids listed in meta\.mat"):
        im.read_devkit(kit)


def test_folder_validation(tmp_path):
    tree(tmp_path, WNIDS[:4])
    assert im.read_imagenet_val(tmp_path, WNIDS[:4]).labels.tolist() == [0, 1, 2, 3]


def test_missing_extra_and_renamed_folders(tmp_path):
    tree(tmp_path, [*WNIDS[:3], "n99999999"])
    with pytest.raises(DataError, match=rf"1 missing \['{WNIDS[3]}'\], 1 unknown \['n99999999'\]"):
        im.read_imagenet_val(tmp_path, WNIDS[:4])
    with pytest.raises(DataError, match=r"0 missing .*1 unknown"):
        im.read_imagenet_val(tmp_path, WNIDS[:3], partial=True)
    tree(tmp_path / "sub", WNIDS[:3])
    part = im.read_imagenet_val(tmp_path / "sub", WNIDS[:5], partial=True)
    assert len(np.unique(part.labels)) == 3 and len(part.class_names) == 5
    (tmp_path / "empty" / WNIDS[0]).mkdir(parents=True)
    with pytest.raises(DataError, match="images in"):
        im.read_imagenet_val(tmp_path / "empty", WNIDS[:1])


def class_list(name, shared=85):
    """200 indices with the published beginning and sum; 86 common to R and A (85 drawn, and 6)."""
    info = ood.SETS[name]
    rng = np.random.default_rng(0)
    pool = np.arange(20, 1000)
    common = rng.permutation(pool)[:shared]
    rest = rng.permutation(np.setdiff1d(pool, common))
    rest = rest[:440] if name == "imagenet-r" else rest[440:]
    start = list(info.first_indices)
    body = np.concatenate([common, rng.permutation(rest)[: 200 - shared - len(start)]])
    free = np.setdiff1d(rest, body)
    gap = info.index_sum - sum(start) - body.sum()
    own = np.arange(shared, len(body))
    for _ in range(5000):  # swap own classes for free ones until the sum is the published one
        i = rng.choice(own)
        step = free - body[i]
        ok = np.abs(gap - step) < abs(gap)
        if gap == 0:
            break
        if ok.any():
            j = np.argmin(np.where(ok, np.abs(gap - step), np.inf))
            body[i], free[j] = free[j], body[i]
            gap = info.index_sum - sum(start) - body.sum()
    assert gap == 0
    return np.sort(np.concatenate([start, body]))


@pytest.fixture(scope="module")
def r_and_a(tmp_path_factory):
    root = tmp_path_factory.mktemp("sets")
    for name in ("imagenet-r", "imagenet-a"):
        tree(root / name, [WNIDS[i] for i in class_list(name)], suffix=".jpg")
    return root


def test_r_and_a(r_and_a):
    shared = set(class_list("imagenet-r")) & set(class_list("imagenet-a"))
    assert len(shared) == 86
    for name in ("imagenet-r", "imagenet-a"):
        found = ood.read_ood_set(name, r_and_a / name, WNIDS)
        assert found.columns.sum() == ood.SETS[name].index_sum
        assert (
            len(found.stimuli.class_names) == 200
            and found.columns.tolist() == class_list(name).tolist()
        )
    with pytest.raises(
        DataError, match=r"ImageNet-R: index sum 86135.*sum 102178.*which is ImageNet-A"
    ):
        ood.read_ood_set("imagenet-r", r_and_a / "imagenet-a", WNIDS)


def test_r_and_a_need_all_classes_of_imagenet_unless_a_part_is_declared(r_and_a):
    folder = r_and_a / "imagenet-r"
    with pytest.raises(
        DataError, match="1000 wnids of ImageNet to check the classes of ImageNet-R by; got 999"
    ):
        ood.read_ood_set("imagenet-r", folder, [w for w in WNIDS if w != WNIDS[19]])
    assert (
        len(
            ood.read_ood_set(
                "imagenet-r", folder, [w for w in WNIDS if w != WNIDS[19]], partial=True
            ).wnids
        )
        == 200
    )


def test_a_partial_set_says_how_many_of_its_published_classes_it_has(tmp_path, r_and_a):
    assert (
        ood.partial_note(ood.read_ood_set("imagenet-a", r_and_a / "imagenet-a", WNIDS).stimuli)
        == ""
    )
    tree(tmp_path / "r", WNIDS[3:5])
    assert (
        ood.partial_note(
            ood.read_ood_set("imagenet-r", tmp_path / "r", WNIDS, partial=True).stimuli
        )
        == "2 of 200 classes"
    )
    found = ood.read_ood_set("imagenet-sketch", tmp_path / "r", WNIDS[:7], partial=True).stimuli
    assert ood.partial_note(found) == "2 of 1000 classes"
    val = im.read_imagenet_val(tmp_path / "r", WNIDS, partial=True)
    assert ood.partial_note(val) == "2 of 1000 classes" and ood.partial_note(val.subset([])) == ""


def test_masked_logits_follow_wnids_whatever_the_order_of_the_head(r_and_a):
    found = ood.read_ood_set("imagenet-r", r_and_a / "imagenet-r", WNIDS)
    head = list(np.random.default_rng(0).permutation(WNIDS))
    other = ood.read_ood_set("imagenet-r", r_and_a / "imagenet-r", WNIDS, head_wnids=head)
    truth = found.columns[found.stimuli.labels]
    sorted_logits = np.eye(1000)[truth] + 2 * np.isin(np.arange(1000), found.columns, invert=True)
    assert accuracy(mask_classes(sorted_logits, found.columns), found.stimuli.labels) == 1.0
    assert accuracy(sorted_logits, truth) == 0.0  # unmasked, classes outside the set win
    shuffled = sorted_logits[:, [WNIDS.index(w) for w in head]]
    assert accuracy(mask_classes(shuffled, other.columns), found.stimuli.labels) == 1.0
    assert accuracy(mask_classes(shuffled, found.columns), found.stimuli.labels) < 0.1
    with pytest.raises(DataError, match="labels from 0 to 199"):
        accuracy(mask_classes(sorted_logits, found.columns), truth)


def test_v2_folders_are_numbers_in_numeric_order(tmp_path):
    tree(tmp_path, [str(i) for i in range(12)], suffix=".jpeg")
    found = ood.read_ood_set("imagenet-v2", tmp_path, WNIDS[:12])
    by_folder = {
        str(i).split("/")[0]: int(v) for i, v in zip(found.stimuli.ids, found.stimuli.labels)
    }
    assert by_folder == {
        str(i): i for i in range(12)
    }  # "10" is class 10 although it sorts before "2"
    with pytest.raises(DataError, match="missing"):
        ood.read_ood_set("imagenet-v2", tmp_path, WNIDS[:13])


@pytest.mark.parametrize("name", ["imagenet-sketch", "stylized-imagenet"])
def test_thousand_class_sets(tmp_path, name):
    tree(tmp_path, WNIDS[:7])
    assert ood.read_ood_set(name, tmp_path, WNIDS[:7]).columns.tolist() == list(range(7))
    with pytest.raises(DataError, match="one of"):
        ood.read_ood_set("imagenet-x", tmp_path, WNIDS)


@pytest.mark.parametrize("above", ["", "noise/"])
def test_imagenet_c(tmp_path, above):
    for severity in (1, 2):
        tree(tmp_path / f"{above}gaussian_noise" / str(severity), WNIDS[:3])
    found = ood.read_imagenet_c(tmp_path, "gaussian_noise", 2, WNIDS[:3])
    assert found.name == "gaussian_noise-2" and found.labels.tolist() == [0, 1, 2]
    with pytest.raises(DataError, match=r"severities \['1', '2'\]"):
        ood.read_imagenet_c(tmp_path, "gaussian_noise", 3, WNIDS[:3])
    with pytest.raises(DataError, match="snow/1"):
        ood.read_imagenet_c(tmp_path, "snow", 1, WNIDS[:3])


def test_domains(tmp_path):
    for domain in ("photo", "sketch"):
        tree(tmp_path / domain, ["dog", "elephant"], n=2)
    found = ood.read_domains(tmp_path)
    assert list(found) == ["photo", "sketch"] and found["sketch"].class_names == ("dog", "elephant")
    tree(tmp_path / "cartoon", ["dog", "horse"])
    with pytest.raises(DataError, match=r"1 missing .*1 unknown"):
        ood.read_domains(tmp_path)
    with pytest.raises(DataError, match="at least two domain"):
        ood.read_domains(tmp_path / "photo" / "dog")


def test_many_to_one_tables():
    table = {"dog": WNIDS[:3], "cat": [WNIDS[5]], "unicorn": ["n99999999"]}
    columns, unmapped = ood.group_columns(table, WNIDS[::-1])
    assert columns["dog"].tolist() == [999, 998, 997] and columns["cat"].tolist() == [994]
    assert unmapped == ("unicorn",) and "unicorn" not in columns
    with pytest.raises(DataError, match="each wnid under one class"):
        ood.group_columns({"a": WNIDS[:2], "b": WNIDS[1:3]}, WNIDS)


def test_table_of_sources_is_complete():
    table = ood.sources()
    assert len(table) == 9 and (table[["layout", "licence", "where"]] != "").all().all()


def test_prepare_resizes_resumes_and_reports(tmp_path):
    source, target = tmp_path / "train", tmp_path / "small"
    tree(source, WNIDS[:2], n=2)
    picture(source / WNIDS[0] / "wide.PNG", 90, size=(64, 128))
    (source / WNIDS[1] / "broken.JPEG").write_bytes(b"\xff\xd8 no image")
    assert prepare_images(source, target, size=32) == {"written": 5, "kept": 0, "failed": 1}
    assert Image.open(target / WNIDS[0] / "wide.JPEG").size == (64, 32)
    assert Image.open(target / WNIDS[0] / f"{WNIDS[0]}_0.JPEG").size == (10, 12)
    assert "broken.JPEG" in (target / "failed.txt").read_text()
    (target / WNIDS[0] / "wide.JPEG").unlink()
    assert prepare_images(source, target, size=32) == {"written": 1, "kept": 4, "failed": 1}
    with pytest.raises(DataError, match="choose an empty target"):
        prepare_images(source, target, size=64)
    with pytest.raises(DataError, match="outside the source folder"):
        prepare_images(source, source / "inside")
    (source / WNIDS[1] / "broken.JPEG").unlink()
    command = [
        sys.executable,
        "-m",
        "bmfl_lab.data.prepare",
        str(source),
        str(target),
        "--size",
        "32",
    ]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60)
    assert done.returncode == 0 and "written 0, kept 5, failed 0" in done.stdout
    assert len(im.read_imagenet_train(target, WNIDS[:2])) == 5


def kaggle(path, lines, start="ImageId,PredictionString\n", encoding="utf-8"):
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_bytes((start + "".join(lines)).encode(encoding))
    return path


LINES = [
    f"ILSVRC2012_val_{i + 1:08d},{wnid} 1 1 9 9\n" for i, wnid in enumerate((WNIDS[2], WNIDS[0]))
]
TABLES = {
    "beside the folder": ("ILSVRC/CLS-LOC/LOC_val_solution.csv", {}),
    "in the folder": ("ILSVRC/CLS-LOC/val/LOC_val_solution.csv", {}),
    "above all": ("LOC_val_solution.csv", {}),
    "with a byte order mark": ("LOC_val_solution.csv", {"encoding": "utf-8-sig"}),
    "with lines of Windows": (
        "LOC_val_solution.csv",
        {"lines": [line.replace("\n", "\r\n") for line in LINES]},
    ),
    "with several boxes": (
        "LOC_val_solution.csv",
        {"lines": [f"{line[:-1]} {line.split(',')[1][:-1]} \n" for line in LINES]},
    ),
    "with quotes": (
        "LOC_val_solution.csv",
        {"lines": ['"{}","{}"\n'.format(*line.strip().split(",")) for line in LINES]},
    ),
    "in another order": ("LOC_val_solution.csv", {"lines": LINES[::-1]}),
    "with the columns exchanged": (
        "LOC_val_solution.csv",
        {
            "start": "PredictionString,ImageId\n",
            "lines": [",".join(line.strip().split(",")[::-1]) + "\n" for line in LINES],
        },
    ),
}


@pytest.mark.parametrize("case", TABLES)
def test_flat_validation_images_get_the_labels_of_kaggle(tmp_path, case):
    place, options = TABLES[case]
    folder = tmp_path / "ILSVRC/CLS-LOC/val"
    for i in (1, 2):
        picture(folder / f"ILSVRC2012_val_{i:08d}.JPEG")
    with pytest.raises(DataError, match=r"put Kaggle's LOC_val_solution\.csv beside the folder"):
        im.read_imagenet_val(folder, WNIDS[:4])
    table = kaggle(tmp_path / place, **{"lines": LINES, **options})
    assert im.read_imagenet_val(folder, WNIDS[:4]).labels.tolist() == [2, 0]
    apart = table.rename(tmp_path.parent / f"{tmp_path.name}.csv")
    assert im.read_imagenet_val(folder, WNIDS[:4], devkit=apart).labels.tolist() == [2, 0]


@pytest.mark.parametrize(
    "lines",
    [
        [],
        ["ILSVRC2012_val_00000001,\n"],
        ["ILSVRC2012_val_00000001\n"],
        ["ILSVRC2012_val_1,n01440764 1 1 9 9\n"],
        ["ILSVRC2012_val_00000001,cat 1 1 9 9\n"],
        ["ILSVRC2012_test_00000001,n01440764 1 1 9 9\n"],
        [",,,\n"],
        [*LINES, "x\n"],
    ],
)
def test_other_tables_are_refused(tmp_path, lines):
    picture(tmp_path / "val" / "ILSVRC2012_val_00000001.JPEG")
    kaggle(tmp_path / "LOC_val_solution.csv", lines)
    with pytest.raises(DataError, match=r"download LOC_val_solution\.csv of Kaggle's ImageNet"):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:4])
    (tmp_path / "LOC_val_solution.csv").write_bytes(b"\xff\xfe\x00bad,\x00")
    with pytest.raises(DataError, match="LOC_val_solution"):
        im.read_imagenet_val(tmp_path / "val", WNIDS[:4])
