"""Models beside people: values that follow from trials and images written here, in the published layout."""

from __future__ import annotations

import csv

import numpy as np
import pytest
from PIL import Image

from bmfl_lab.data import modelvshuman as mvh
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import as_model
from bmfl_lab.evaluation.people import compare_with_people, decide

N = 40


def name_of(trial, who, image):
    category = mvh.CATEGORIES[image % 16]
    return f"{trial:04d}_ske_{who}_0_{category}_00_{category}-{image:04d}-sketch-3.png"


@pytest.fixture
def folders(tmp_path):
    """Two people; the first is right on images 0-29, the second on 10-39. Pixel value = image number."""
    images, trials = tmp_path / "images", tmp_path / "trials"
    images.mkdir()
    trials.mkdir()
    for i in range(N):
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(images / name_of(i, "dnn", i))
    for who, right in (("subject-01", range(30)), ("subject-02", range(10, 40))):
        with open(trials / f"sketch_{who}_session_1.csv", "w", newline="") as f:
            out = csv.writer(f)
            out.writerow(mvh.COLUMNS)
            for t, i in enumerate(np.random.default_rng(0).permutation(N)):
                category = mvh.CATEGORIES[i % 16]
                answer = category if i in right else mvh.CATEGORIES[(i + 1) % 16]
                out.writerow(
                    [
                        who,
                        1,
                        t + 1,
                        0.5,
                        answer,
                        category,
                        "0",
                        name_of(t + 1, "s" + who[-2:], int(i)),
                    ]
                )
    return images, trials


class Seven:
    """A head of neither kind."""

    def logits(self, stimuli):
        return np.zeros((len(stimuli), 7))


def seer(right):
    """A model with 16 logits that is right on the images `right`."""

    def scores(images):
        out = np.zeros((len(images), 16))
        for row, image in zip(out, images):
            number = int(image.mean())
            row[number % 16 if number in right else (number + 5) % 16] = 5
        return out

    return as_model(scores, "seer")


def row(rows, name, model):
    (found,) = [r for r in rows if r.name == name and r.model == model]
    return found


def test_values_follow_from_who_was_right(folders):
    rows = compare_with_people({"seer": seer(range(30))}, *folders, "sketch")
    people = row(rows, "accuracy", "people")
    assert (
        people.value == pytest.approx(0.75)
        and people.n == N
        and "2 people, 80 trials" in people.notes
    )
    mine = row(rows, "accuracy", "seer")
    assert mine.value == pytest.approx(0.75) and mine.ci_low < 0.75 < mine.ci_high
    # the people agree on 20 of 40 images where independent ones would on 25
    kappa = (0.5 - 0.625) / (1 - 0.625)
    assert row(rows, "error_consistency", "people ~ people").value == pytest.approx(kappa)
    assert row(rows, "error_consistency", "seer ~ people").value == pytest.approx((1 + kappa) / 2)


def test_nan_logits_are_no_decision_and_reported(folders):
    def broken(images):
        out = np.asarray(seer(range(N)).function(images))
        out[[int(im.mean()) < 3 for im in images]] = np.nan
        return out

    rows = compare_with_people(
        {"broken": as_model(broken, "broken"), "seer": seer(range(N))},
        *folders,
        "sketch",
    )
    assert row(rows, "nan_logits", "broken").value == 3 and row(rows, "nan_logits", "broken").n == N
    assert row(rows, "accuracy", "broken").value == pytest.approx(1 - 3 / N)
    assert [r.model for r in rows if r.name == "nan_logits"] == ["broken"]


def test_an_imagenet_head_decides_by_the_mean_over_its_classes(folders):
    wnids = tuple(f"n{1440764 + 97 * i:08d}" for i in range(1000))
    images = mvh.read_images(folders[0], "sketch")
    column = wnids.index(mvh.category_wnids(wnids)["knife"][0])

    class Head:
        class_names = wnids

        def logits(self, stimuli):
            return np.eye(1000)[[column] * len(stimuli)] * 20

    assert set(decide(Head(), images)) == {"knife"}
    rows = compare_with_people({"knife": Head()}, *folders, "sketch")
    share = np.mean([mvh.CATEGORIES[i % 16] == "knife" for i in range(N)])
    assert row(rows, "accuracy", "knife").value == pytest.approx(share)


def test_shape_bias_of_cue_conflict(tmp_path):
    images, trials = tmp_path / "images", tmp_path / "trials"
    trials.mkdir()
    names = ["cat1-elephant1.png", "cat2-dog1.png", "dog1-cat3.png", "bear1-clock1.png"]
    for i, n in enumerate(names):
        folder = images / mvh.cue_conflict([n])[0][0]
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.full((8, 8, 3), i, np.uint8)).save(folder / n)
    with open(trials / "cue-conflict_subject-01_session_1.csv", "w", newline="") as f:
        out = csv.writer(f)
        out.writerow(mvh.COLUMNS)
        for t, (n, answer) in enumerate(zip(names, ("cat", "cat", "cat", "boat"))):
            out.writerow(["subject-01", 1, t, 0.4, answer, mvh.cue_conflict([n])[0][0], "0", n])

    def texture(batch):
        wanted = [mvh.cue_conflict([names[int(b.mean())]])[1][0] for b in batch]
        return np.asarray([[5.0 * (c == w) for c in mvh.CATEGORIES] for w in wanted])

    rows = compare_with_people({"texture": as_model(texture, "t")}, images, trials, "cue-conflict")
    assert row(rows, "shape_bias", "texture").value == 0.0
    assert row(rows, "shape_bias", "people").value == pytest.approx(2 / 3)


def test_what_does_not_fit_is_refused(folders, tmp_path):
    images, trials = folders
    with pytest.raises(DataError, match="16 categories or of the 1000"):
        decide(Seven(), mvh.read_images(images, "sketch"))
    for path in trials.glob("*.csv"):
        path.rename(
            trials / path.name.replace("subject-", "model-").replace("session_1", "session-1")
        )
    with pytest.raises(DataError, match="no person"):
        compare_with_people({"seer": seer(range(3))}, images, trials, "sketch")
