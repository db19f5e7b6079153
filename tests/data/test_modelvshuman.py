"""Human trials of the true layout, with planted accuracies and consistencies."""

from __future__ import annotations

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.data import modelvshuman as mvh
from bmfl_lab.data.ood_sets import group_columns
from bmfl_lab.errors import DataError
from bmfl_lab.metrics import behaviour as b

WNIDS = tuple(f"n{1440764 + 97 * i:08d}" for i in range(1000))
# Human accuracies over the 16 classes as they follow from the published trials, with observers and
# trials a set; the numbers of observers and trials are the published ones for sketch, stylized and
# cue conflict.
PUBLISHED = {
    "colour": (0.898, 4, 1280),
    "contrast": (0.547, 4, 1280),
    "edge": (0.871, 10, 160),
    "silhouette": (0.753, 10, 160),
    "sketch": (0.916, 7, 800),
    "stylized": (0.471, 5, 800),
    "eidolonI": (0.503, 4, 1280),
    "eidolonII": (0.420, 4, 1280),
    "eidolonIII": (0.390, 4, 1280),
    "false-colour": (0.888, 4, 1120),
    "high-pass": (0.464, 4, 1280),
    "low-pass": (0.561, 4, 1280),
    "phase-scrambling": (0.551, 4, 1120),
    "power-equalisation": (0.830, 4, 1120),
    "rotation": (0.845, 4, 1280),
    "uniform-noise": (0.554, 4, 1280),
}
# Error consistency of people with people.
KAPPA = {"sketch": 0.370, "stylized": 0.501, "silhouette": 0.476, "edge": 0.318}


def write_trials(folder, name, observer, right, human=True, condition="0", seed=0):
    """Write one observer's trials; right[i] says whether image i was named correctly."""
    random = np.random.default_rng(seed)
    order = random.permutation(len(right))
    rows = [",".join(mvh.COLUMNS)]
    for trial, image in enumerate(order, 1):
        category = mvh.CATEGORIES[image % 16]
        response = category if right[image] else mvh.CATEGORIES[(image + 1) % 16]
        if not right[image] and image % 7 == 0:
            response = "na"
        who = observer[-2:] if human else "dnn"
        file = (
            f"{trial:04d}_ske_{who}_{condition}_{category}_00_{category}-{image:04d}-{name}-3.png"
        )
        rows.append(
            f"{observer},1,{trial},{'0.61' if human else 'NaN'},{response},{category},{condition},{file}"
        )
    mark = "session_1" if human else "session-1"
    (folder / f"{name}_{observer}_{mark}.csv").write_text("\n".join(rows) + "\n")


@pytest.mark.parametrize("name", PUBLISHED)
def test_human_accuracy_is_reproduced(tmp_path, name):
    published, n_observers, n_trials = PUBLISHED[name]
    total, counts = round(published * n_observers * n_trials), []
    for i in range(n_observers):  # unequal observers with the published mean
        counts.append(total // n_observers + (12 if i % 2 else -12) * (i < n_observers - 1))
    counts[-1] += total - sum(counts)
    random = np.random.default_rng(0)
    for i, count in enumerate(counts, 1):
        right = np.zeros(n_trials, dtype=bool)
        right[random.permutation(n_trials)[:count]] = True
        write_trials(tmp_path, name, f"subject-{i:02d}", right, seed=i)
    write_trials(tmp_path, name, "resnet50", np.zeros(n_trials, dtype=bool), human=False)
    trials = mvh.read_trials(tmp_path)
    people = b.observer_accuracy(trials[trials["human"]]).iloc[0]
    assert people["accuracy"] == pytest.approx(published, abs=5e-4)
    assert (people["n_observers"], people["n_trials"]) == (n_observers, n_observers * n_trials)
    each = trials[trials["human"]].groupby("observer")["correct"].sum()
    assert each.tolist() == counts
    assert b.observer_accuracy(trials[~trials["human"]])["accuracy"].tolist() == [0.0]


def agreeing(accuracy, kappa, n, random):
    """Return two observers' correctness with this accuracy each and this kappa, up to one trial."""
    expected = accuracy**2 + (1 - accuracy) ** 2
    differ = round(n * (1 - (kappa * (1 - expected) + expected)) / 2)
    both = round(n * accuracy) - differ
    a, b = np.zeros(n, dtype=bool), np.zeros(n, dtype=bool)
    order = random.permutation(n)
    a[order[: both + differ]] = True
    b[order[:both]] = b[order[both + differ : both + 2 * differ]] = True
    return a, b


@pytest.mark.parametrize("name", KAPPA)
def test_human_consistency_is_reproduced(tmp_path, name):
    random = np.random.default_rng(1)
    pair = agreeing(PUBLISHED[name][0], KAPPA[name], 800, random)
    for i, right in enumerate(pair, 1):
        write_trials(tmp_path, name, f"subject-{i:02d}", right, seed=i)
    trials = mvh.read_trials(tmp_path)
    found, n = b.mean_consistency(
        trials, ["subject-01", "subject-02"], ["subject-01", "subject-02"]
    )
    assert n == 1 and found == pytest.approx(KAPPA[name], abs=0.006)
    assert trials.groupby("observer")["correct"].mean().tolist() == pytest.approx(
        [PUBLISHED[name][0]] * 2, abs=1e-3
    )


def write_cue_conflict(folder, observer, decisions):
    """Write one observer's table of cue-conflict trials as published; images 3 of a shape with 2 of a texture."""
    rows = [",".join(mvh.COLUMNS)]
    for trial, (shape, texture, answer) in enumerate(decisions, 1):
        file = f"{trial:04d}_s5n_s{observer:02d}_0_{shape}_00_{shape}3-{texture}2.png"
        rows.append(f"subject-{observer:02d},1,{trial},0.5123,{answer},{shape},0,{file}")
    path = folder / f"cue-conflict_subject-{observer:02d}_session_1.csv"
    path.write_text("\n".join(rows) + "\n")


def test_human_shape_bias_is_reproduced_from_published_names(tmp_path):
    # 1000 decisions of ten people for one of two conflicting cues, 959 for the shape; beside them
    # decisions for neither, and images whose shape and texture agree, which count for nothing
    pairs = [(s, t) for s in mvh.CATEGORIES for t in mvh.CATEGORIES if s != t]
    for observer in range(1, 11):
        n_shape = 96 - (observer == 10)
        decisions = [(s, t, s) for s, t in pairs[:n_shape]]
        decisions += [(s, t, t) for s, t in pairs[n_shape:100]]
        decisions += [(s, t, "na") for s, t in pairs[100:150]]
        decisions += [(c, c, c if observer % 2 else "na") for c in mvh.CATEGORIES]
        write_cue_conflict(tmp_path, observer, decisions)
    trials = mvh.read_trials(tmp_path)
    shapes, textures = (np.asarray(v, object) for v in mvh.cue_conflict(list(trials["imagename"])))
    assert len(trials) == 1660
    assert b.shape_bias(trials["object_response"], shapes, textures) == pytest.approx(0.959)
    assert trials["key"][0] == "0_airplane3-bear2.png"


def test_published_names_of_cue_conflict():
    names = ["0001_s5n_s01_0_bird_00_bird3-bird2.png", "0_bird3-bird2.png", "cat3-elephant1.png"]
    assert mvh.cue_conflict(names) == (["bird", "bird", "cat"], ["bird", "bird", "elephant"])
    assert mvh.image_key(names[0]) == mvh.image_key(names[1]) == names[1]
    assert mvh.image_key("0042_s5n_s10_0_bird_00_bird3-bird2.png") == names[1]
    for wrong in ("0_bird3.png", "0_bird3-lamp2.png", "bird-cat.png", "bird3-cat1-dog2.png"):
        with pytest.raises(DataError, match="names like cat3-elephant1"):
            mvh.cue_conflict([wrong])


def test_cue_conflict_images_with_published_names_are_read(tmp_path):
    for name in ("0_bird3-cat2.png", "0001_s5n_s01_0_dog_00_dog1-bear4.png"):
        Image.new("RGB", (8, 8)).save(tmp_path / name)
    images = mvh.read_images(tmp_path, "cue-conflict")
    assert {mvh.CATEGORIES[k] for k in images.labels} == {"bird", "dog"}


def test_curve_over_conditions(tmp_path):
    levels = {
        "c01": 0.0625,
        "c05": 0.5,
        "c100": 0.85625,
    }  # people from 1 % (chance) to full contrast: .062 to .856
    for observer in ("subject-01", "subject-02"):
        for k, (condition, share) in enumerate(levels.items()):
            folder = tmp_path / condition
            folder.mkdir(exist_ok=True)
            write_trials(
                folder,
                "contrast",
                observer,
                np.arange(160) < share * 160,
                condition=condition,
                seed=k,
            )
    files = sorted(tmp_path.rglob("*.csv"))
    table = b.observer_accuracy(mvh.read_trials(files), by=("set", "condition"))
    assert dict(zip(table["condition"], table["accuracy"])) == pytest.approx(levels)


def test_consistency_pairs_by_image_not_by_trial(tmp_path):
    random = np.random.default_rng(0)
    base = random.random(480) < 0.6
    for i, copied in enumerate((1.0, 1.0, 0.5), 1):
        right = np.where(random.random(480) < copied, base, random.random(480) < 0.6)
        write_trials(
            tmp_path, "sketch", f"subject-{i:02d}", right, seed=i
        )  # every observer in another order
    write_trials(tmp_path, "sketch", "net", base, human=False, seed=9)
    trials = mvh.read_trials(tmp_path)
    assert b.mean_consistency(trials, ["subject-01"], ["subject-02"])[0] == pytest.approx(1)
    kappa, n = b.mean_consistency(trials, ["net"], ["subject-03"])
    assert n == 1 and kappa == pytest.approx(0.5, abs=0.12)
    people = ["subject-01", "subject-02", "subject-03"]
    assert b.mean_consistency(trials, people, people)[1] == 3
    assert b.mean_consistency(trials, ["net"], ["net"]) == (None, 0)


def test_trial_tables_refused(tmp_path):
    with pytest.raises(DataError, match="trial tables"):
        mvh.read_trials(tmp_path)
    write_trials(tmp_path, "sketch", "subject-01", np.ones(16, dtype=bool))
    path = tmp_path / "sketch_subject-01_session_1.csv"
    text = path.read_text()
    path.write_text(text.replace("object_response", "response"))
    with pytest.raises(DataError, match="columns"):
        mvh.read_trials(tmp_path)
    path.write_text(text.replace(",bear,0,", ",zebra,0,"))
    with pytest.raises(DataError, match=r"16 categories.*zebra"):
        mvh.read_trials(tmp_path)
    path.rename(tmp_path / "notes.csv")
    with pytest.raises(DataError, match="a name like"):
        mvh.read_trials(tmp_path)


def test_images_of_both_layouts(tmp_path):
    pixel = Image.new("RGB", (9, 9))
    for name in (
        "0001_ske_dnn_0_boat_00_boat-0068-sketch-23.png",
        "0002_ske_dnn_0_dog_00_dog-1-sketch-2.png",
    ):
        (tmp_path / "sketch/dnn/session-1").mkdir(parents=True, exist_ok=True)
        pixel.save(tmp_path / "sketch/dnn/session-1" / name)
    found = mvh.read_images(tmp_path / "sketch", "sketch")
    assert [mvh.CATEGORIES[i] for i in found.labels] == ["boat", "dog"]
    (tmp_path / "cue/cat").mkdir(parents=True)
    pixel.save(tmp_path / "cue/cat/cat3-elephant1.png")
    cue = mvh.read_images(tmp_path / "cue", "cue-conflict")
    assert cue.ids.tolist() == ["cat/cat3-elephant1.png"] and mvh.CATEGORIES[cue.labels[0]] == "cat"
    assert mvh.cue_conflict(cue.ids) == (["cat"], ["elephant"])
    with pytest.raises(DataError, match="names like cat3"):
        mvh.cue_conflict(["zebra1-cat2.png"])
    pixel.save(tmp_path / "cue/what.png")
    with pytest.raises(DataError, match="a category in the path"):
        mvh.read_images(tmp_path / "cue", "cue-conflict")
    with pytest.raises(DataError, match="a folder; got nothing at"):
        mvh.read_images(tmp_path / "none", "edge")


def test_image_key_drops_trial_and_observer():
    human = mvh.image_key("0001_ske_s01_0_boat_00_boat-0068-sketch-23.png")
    assert human == mvh.image_key("0123_ske_dnn_0_boat_00_boat-0068-sketch-23.png")
    assert mvh.image_key("cat3-elephant1.png") == "cat3-elephant1.png"
    # the same photograph in two conditions is two images
    assert mvh.image_key("0001_cop_dnn_c05_bear_10_n02132136_8.png") != mvh.image_key(
        "0001_cop_dnn_c10_bear_10_n02132136_8.png"
    )


# Number of classes and sum of their places in the sorted wnids, from the published table of the 16
# categories.
TABLE = {
    "airplane": (1, 404),
    "bear": (4, 1182),
    "bicycle": (2, 1115),
    "bird": (49, 4213),
    "boat": (5, 3379),
    "bottle": (7, 5502),
    "car": (3, 1764),
    "cat": (6, 1701),
    "chair": (4, 2604),
    "clock": (3, 1831),
    "dog": (109, 22672),
    "elephant": (2, 771),
    "keyboard": (2, 1386),
    "knife": (1, 499),
    "oven": (1, 766),
    "truck": (8, 5637),
}


def test_category_table():
    found = mvh.category_wnids(WNIDS[::-1])
    sums = {c: (len(w), sum(WNIDS.index(x) for x in w)) for c, w in found.items()}
    assert sums == TABLE
    columns, unmapped = group_columns(found, WNIDS)
    assert not unmapped and sum(len(c) for c in columns.values()) == 207
    logits = np.full((2, 1000), -5.0)
    logits[0, 499], logits[1, 281:287] = 3.0, 3.0
    assert b.coarse_decision(logits, columns).tolist() == ["knife", "cat"]
    with pytest.raises(DataError, match="the 1000 wnids"):
        mvh.category_wnids(WNIDS[:999])
