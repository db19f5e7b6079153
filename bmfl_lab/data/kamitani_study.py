"""Studies from Kamitani-lab files: subjects with the images they saw, without labelled image sets."""

from __future__ import annotations

from pathlib import Path

from bmfl_lab.data.kamitani import read_subject
from bmfl_lab.data.study import BackboneSpec, Study, chosen_subjects
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import link_guard

IMAGES = "images"


def subject_files(folder: str | Path) -> dict[str, Path]:
    """Return name to HDF5 file of the subjects in `folder`; empty if there is none."""
    root = Path(folder).expanduser()
    return {p.stem: p for p in sorted(root.glob("*.h5"))} if root.is_dir() else {}


def load(
    folder: str | Path,
    *,
    subject: str | None = None,
    seed: int = 0,
    val: float = 0.1,
    label: str = "stimulus_id",
    follow_links: bool = False,
    backbone: BackboneSpec | None = None,
) -> Study:
    """Read the subjects of Generic Object Decoding or Deep Image Reconstruction as a study.

    Parameters
    ----------
    folder : str or Path
        Holds one preprocessed HDF5 file a subject (``Subject1.h5``) and a folder ``images`` of what
        was shown (``n01518878_5958.JPEG``, at any depth).
    subject : str, optional
        Only this one.
    seed, val, label
        As in `bmfl_lab.data.kamitani.read_subject`.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the folder.
    backbone : BackboneSpec, optional
        Default backbone.

    Returns
    -------
    Study
        With subjects and no labelled image sets; give ``subject=FOLDER`` to a study of class
        folders to classify.

    Raises
    ------
    DataError
        If there is no subject, none of that name, no folder of images, or a file is damaged or a
        link out of the folder.
    """
    root = Path(folder).expanduser()
    found = subject_files(root)
    if not found:
        raise DataError(
            message(
                f"a subject's .h5 file in {root.name}", "none", "put the preprocessed files there"
            )
        )
    if not (root / IMAGES).is_dir():
        raise DataError(
            message(
                f"a folder {IMAGES!r} beside {next(iter(found.values())).name}",
                "none",
                "add the images shown",
            )
        )
    guard, links = link_guard(root, follow_links), {"follow_links": follow_links}
    images = guard(root / IMAGES)
    subjects = {
        name: read_subject(
            guard(path), images, name=name, label=label, val_share=val, seed=seed, **links
        )
        for name, path in chosen_subjects(found, subject, root.name).items()
    }
    return Study(
        name=root.resolve().name,
        description=f"measured responses in the Kamitani-lab layout: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        backbone=backbone if backbone is not None else BackboneSpec("dinov2_vits14_reg"),
        licences={"images and responses": "the user's own, or the terms of their authors"},
    )
