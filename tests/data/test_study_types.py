"""Atlas, stimulus sets, subjects and studies refuse what does not fit together."""

import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.data import Atlas, Study, Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import ConfigError, DataError


def atlas():
    side = np.array([0, 0, 0, 1, 1, 1], dtype=np.int8)
    rois = {"V1": side == 0, "FFC": np.array([0, 0, 1, 1, 1, 0], bool), "PHA": np.zeros(6, bool)}
    return Atlas(hemisphere=side, rois=rois)


def stimuli(n=4, name="train", offset=0):
    images = np.arange(offset, offset + n, dtype=np.uint8)[:, None, None, None] * np.ones(
        (1, 2, 2, 3), np.uint8
    )
    return from_arrays(name, images, [f"{name}{i}" for i in range(n)], np.arange(n) % 2, ("a", "b"))


def subject(**changes):
    values = {
        "name": "s",
        "stimuli": stimuli(),
        "responses": np.zeros((4, 6), np.float32),
        "atlas": atlas(),
    }
    return Subject(
        **{**values, "splits": {"train": np.array([0, 1]), "test": np.array([2])}, **changes}
    )


def test_overlapping_rois_count_a_vertex_once_and_parcels_partition():
    a = atlas()
    assert a.select(["V1", "FFC"]).sum() == 5 and a.select("all").sum() == 6 and a.n_left == 3
    assert a.present == ("V1", "FFC") and a.absent == ("PHA",) and a.members("HVC") == ("FFC",)
    parcels = a.parcels()
    assert sorted(np.concatenate(list(parcels.values()))) == list(range(6))
    assert parcels["left:V1+FFC"].tolist() == [2] and parcels["right:rest"].tolist() == [5]
    assert a.subset(a.select("FFC")).n_vertices == 3


@pytest.mark.parametrize(
    "names, match",
    [("V11", "did you mean 'V1'"), ("PHA", "absent in this subject"), ([], "an empty list")],
)
def test_a_region_that_is_unknown_or_absent_is_refused(names, match):
    with pytest.raises(ConfigError, match=match):
        atlas().select(names)


def test_masks_and_hemispheres_must_fit():
    with pytest.raises(DataError, match=r"V1 of shape \(2,\)"):
        Atlas(hemisphere=np.array([0, 1]), rois={"V1": np.ones(3, bool)})
    with pytest.raises(DataError, match="mixed order of hemispheres"):
        Atlas(hemisphere=np.array([1, 0]), rois={})


def test_a_subset_keeps_ids_labels_and_pixels_together():
    whole = stimuli()
    part = whole.subset([3, 1])
    assert part.ids.tolist() == ["train3", "train1"] and part.image(0)[0, 0, 0] == 3
    assert part.digests() == [whole.digests()[3], whole.digests()[1]]
    assert whole.index_of(["train2", "train0"]).tolist() == [2, 0]
    assert part.fingerprint() != whole.subset([1, 3]).fingerprint()
    brighter = whole.mapped(lambda image, _: image + np.uint8(1), key="plus-1")
    assert brighter.image(0)[0, 0, 0] == 1 and not set(brighter.digests()) & set(whole.digests())
    with pytest.raises(DataError, match=r"\['x'\], which it lacks \(one of 1 such"):
        whole.index_of(["x"])


@pytest.mark.parametrize(
    "ids, labels, match",
    [
        (["a", "a"], [0, 1], "'a' more than once"),
        (["a", "b"], [0, 2], "integer labels from -1 to 1"),
        (["a", "b"], [0], "2 labels, one per image"),
        (["a"], [0], r"uint8 images of shape \(1,"),
    ],
)
def test_ids_and_labels_are_checked(ids, labels, match):
    with pytest.raises(DataError, match=match):
        from_arrays("x", np.zeros((2, 2, 2, 3), np.uint8), ids, labels, ("a", "b"))


@pytest.mark.parametrize(
    "changes, match",
    [
        ({"responses": np.zeros((6, 4), np.float32)}, "transpose the array"),
        ({"responses": np.zeros((3, 6), np.float32)}, "n_stimuli=4"),
        (
            {"splits": {"train": np.array([0, 1]), "test": np.array([1])}},
            "1 stimuli in more than one",
        ),
        ({"splits": {"train": np.array([4])}}, r"row indices 0\.\.3"),
        ({"noise_ceiling": np.zeros(5)}, "one value per vertex"),
    ],
)
def test_a_subject_is_checked(changes, match):
    with pytest.raises(DataError, match=match):
        subject(**changes)


def test_a_study_finds_its_parts_and_names_the_nearest():
    study = Study("s", "d", {"train": stimuli()}, {"s": subject()})
    assert study.subject().name == "s" and study.class_names == ("a", "b") and not study.simulated
    assert subject().rows("all").tolist() == [0, 1, 2, 3]
    for call, match in (
        (lambda: study.set("trian"), "did you mean 'train'"),
        (lambda: study.subject("t"), "a subject of study"),
        (lambda: Study("s", "d", {"train": stimuli()}).subject(), "holds images only"),
        (
            lambda: Study("s", "d", {"train": stimuli()}, ood=("sketch",)),
            "an image set named 'sketch'",
        ),
        (lambda: subject().rows("val"), "a split of 's'"),
    ):
        with pytest.raises(DataError, match=match):
            call()
    with pytest.raises(ConfigError, match="did you mean 'planted'"):
        load_study("plantd")
    with pytest.raises(ConfigError, match="an option of study 'planted'"):
        load_study("planted", sead=1)


def test_a_study_changes_its_fingerprint_with_one_response():
    changed = np.zeros((4, 6), np.float32)
    changed[3, 5] = 1e-6
    prints = {
        Study("s", "d", {"train": stimuli()}, {"s": subject(**c)}).fingerprint()
        for c in ({}, {"responses": changed})
    }
    assert len(prints) == 2


def test_a_study_at_the_end_of_a_cell_is_one_readable_line():
    study = Study("s", "what it is", {"train": stimuli()}, {"s": subject(kind="simulated")})
    assert repr(study) == (
        "Study('s', 'what it is', images: train 4; "
        "subjects: Subject('s', simulated, n_stimuli=4, n_vertices=6, train 2, test 1))"
    )
    assert repr(Study("s", "d", {})) == "Study('s', 'd', images: none; subjects: none)"
    assert "measured" in repr(subject(splits={})) and "no split" in repr(subject(splits={}))
    assert (
        repr(atlas())
        == "Atlas(n_vertices=6, n_left=3, mesh=None, rois=['V1', 'FFC'], absent=['PHA'])"
    )
    assert len(repr(load_study("planted"))) < 400


def test_responses_without_their_reader_name_the_missing_line(tmp_path):
    with pytest.raises(ConfigError, match=r"'responses'.*add subject: file"):
        load_study("planted", responses="mine.npz")
