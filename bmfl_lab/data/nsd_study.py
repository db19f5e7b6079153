"""Studies from NSD's own folders: subjects with the images they saw, without labelled image sets."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np

from bmfl_lab.data.nsd import BETAS, read_subject
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import BackboneSpec, Study, chosen_subjects
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import atomic_path, load_npy


def subject_numbers(root: str | Path, space: str = "fsaverage") -> dict[str, int]:
    """Return name to number of the subjects whose betas lie under `root`; empty if there are none."""
    base = Path(root).expanduser() / "nsddata_betas/ppdata"
    return {
        f"subj{n:02d}": n for n in range(1, 9) if (base / f"subj{n:02d}" / space / BETAS).is_dir()
    }


def load(
    root: str | Path,
    *,
    subject: str | None = None,
    space: str = "fsaverage",
    seed: int = 0,
    val: float = 0.1,
    nan_policy: str = "refuse",
    cache: str | Path | None = None,
    follow_links: bool = False,
    backbone: BackboneSpec | None = None,
) -> Study:
    """Read one subject, or all whose betas are there, as a study.

    Parameters
    ----------
    root : str or Path
        Holds ``nsddata``, ``nsddata_betas`` and ``nsddata_stimuli``.
    subject : str, optional
        Only this one ("subj01"); a subject takes up to 1.6 GB.
    space, seed, val, nan_policy, follow_links
        As `bmfl_lab.data.nsd.read_subject`.
    cache : str or Path, optional
        Folder for the averaged responses, ``<subject>.npy``, which are then mapped instead of held
        in memory.
    backbone : BackboneSpec, optional
        Default backbone.

    Returns
    -------
    Study
        With subjects and no labelled image sets.

    Raises
    ------
    DataError
        If there is no subject, none of that name, or its files are damaged.
    """
    found = subject_numbers(root, space)
    if not found:
        wanted = f"nsddata_betas/ppdata/subj01/{space}/{BETAS} or another subject's"
        raise DataError(
            message(
                wanted,
                f"none in {root}",
                "download the betas of a subject, or choose the other space",
            )
        )
    options = {
        "space": space,
        "seed": seed,
        "val": val,
        "nan_policy": nan_policy,
        "follow_links": follow_links,
    }
    chosen = chosen_subjects(found, subject, root)
    subjects = {
        name: _mapped(read_subject(root, number, **options), cache)
        for name, number in chosen.items()
    }
    return Study(
        name=Path(root).expanduser().resolve().name,
        description=f"responses of the Natural Scenes Dataset, {space}: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        backbone=backbone if backbone is not None else BackboneSpec("dinov2_vits14_reg"),
        licences={"images and responses": "the terms of the Natural Scenes Dataset"},
        extra={"split": {name: s.info["split"] for name, s in subjects.items()}},
    )


def _mapped(subject: Subject, cache: str | Path | None) -> Subject:
    if cache is None:
        return subject
    path = Path(cache).expanduser() / f"{subject.name}.npy"
    with atomic_path(path) as temporary, open(temporary, "wb") as stream:
        np.save(stream, subject.responses, allow_pickle=False)
    return dataclasses.replace(subject, responses=load_npy(path, mmap=True))
