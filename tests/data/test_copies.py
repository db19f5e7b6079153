"""The same image more than once: refused across sets, and counted aloud where it is allowed."""

import dataclasses

import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.data.splits import check_leakage, count_copies
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.errors import DataError


@pytest.mark.parametrize("target", ["val", "test", "drawings"])
def test_a_copy_in_another_set_is_refused_with_count_and_names(root, target):
    for i in range(2):
        source = root / "train" / "bird" / f"img_{i}.png"
        (root / target / "cat" / f"again_{i}.png").write_bytes(source.read_bytes())
    said = rf"2 identical images in 'train' and '{target}', e\.g\. train/bird/img_\d\.png = {target}/cat/"
    with pytest.raises(DataError, match=said):
        load_study(root, ood=("drawings",))


def test_copies_inside_a_set_are_counted_aloud(root, capsys):
    for i in range(3):
        source = root / "train" / "bird" / f"img_{i}.png"
        (root / "train" / "bird" / f"again_{i}.png").write_bytes(source.read_bytes())
    study = load_study(root, ood=("drawings",))
    assert "train: 3 of 15 images are copies of others in it" in capsys.readouterr().out
    counted = study.extra["leakage"]["duplicates_within"]
    assert counted == {"train": 3, "val": 0, "test": 0, "drawings": 0}


def test_without_copies_nothing_is_said(root, capsys):
    load_study(root, ood=("drawings",))
    assert "copies" not in capsys.readouterr().out


def test_images_that_a_subject_saw_in_two_splits_are_counted_in_the_record():
    study = load_study(
        "planted", n_encoder=12, n_encoder_val=4, n_encoder_test=4, n_train=4, n_val=4, n_test=4
    )
    assert "copies_across_splits" not in study.summary()
    subject = study.subject()
    images = np.stack([subject.stimuli.image(i) for i in range(len(subject.stimuli))])
    train, test = subject.rows("train"), subject.rows("test")
    images[test[:2]] = images[train[:2]]
    stimuli = from_arrays("seen", images, subject.stimuli.ids, subject.stimuli.labels)
    assert count_copies(stimuli, subject.splits) == 2
    changed = dataclasses.replace(subject, stimuli=stimuli)
    study = dataclasses.replace(study, subjects={"s1": changed})
    assert study.summary()["copies_across_splits"] == {"s1": 2}


def test_shared_images_between_subject_and_sets_are_refused(root):
    study = load_study(root)
    with pytest.raises(DataError, match="4 identical images in 'test' and 'shared 1,000'"):
        check_leakage({**study.sets, "shared 1,000": renamed(study.set("test"))})


def renamed(stimuli):
    images = np.stack([stimuli.image(i) for i in range(len(stimuli))])
    copies = from_arrays(
        "x", images, [f"nsd-{i:05d}" for i in range(len(images))], [-1] * len(images)
    )
    return dataclasses.replace(copies, digest_of=stimuli.digest_of)
