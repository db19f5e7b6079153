"""Studies from subjects in the layout of the Algonauts 2023 challenge: for brain encoders, without labelled images."""

from __future__ import annotations

from pathlib import Path

from bmfl_lab.data.algonauts import read_subject
from bmfl_lab.data.study import BackboneSpec, Study, chosen_subjects
from bmfl_lab.errors import DataError, message


def subject_folders(folder: str | Path) -> dict[str, Path]:
    """Return name to folder of the subjects at `folder`: itself, or the folders in it; empty if there are none."""
    root = Path(folder).expanduser()
    if (root / "training_split").is_dir():
        return {root.resolve().name: root}
    found = (
        sorted(p for p in root.iterdir() if (p / "training_split").is_dir())
        if root.is_dir()
        else []
    )
    return {p.name: p for p in found}


def load(
    folder: str | Path,
    *,
    subject: str | None = None,
    seed: int = 0,
    val: float = 0.1,
    test: float = 0.1,
    nan_policy: str = "refuse",
    stim_info: str | Path | None = None,
    cache: str | Path | None = None,
    follow_links: bool = False,
    backbone: BackboneSpec | None = None,
) -> Study:
    """Read one subject, or all subjects of a folder, as a study.

    Parameters
    ----------
    folder : str or Path
        Folder of one subject (``subj01``), or the folder that holds the subjects' folders.
    subject : str, optional
        Only this one of several.
    seed, val, test, nan_policy, stim_info, follow_links
        As `bmfl_lab.data.algonauts.read_subject`.
    cache : str or Path, optional
        Folder for the joined responses, ``<subject>.npy``, which are then mapped instead of held in
        memory.
    backbone : BackboneSpec, optional
        Default backbone.

    Returns
    -------
    Study
        With subjects and no labelled image sets: for notebooks 01 and 02 and for training brain
        encoders. Give ``subject=`` to a study of class folders for a fusion.

    Raises
    ------
    DataError
        If there is no subject, none of that name, or its files are damaged.
    """
    found = subject_folders(folder)
    if not found:
        raise DataError(
            message("a folder with training_split/", f"none in {folder}", "give a subject's folder")
        )
    options = {
        "seed": seed,
        "val": val,
        "test": test,
        "nan_policy": nan_policy,
        "stim_info": stim_info,
    }
    options["follow_links"] = follow_links
    subjects = {
        name: read_subject(
            path,
            cache=None if cache is None else Path(cache).expanduser() / f"{name}.npy",
            **options,
        )
        for name, path in chosen_subjects(found, subject, folder).items()
    }
    kind = "simulated" if any(s.simulated for s in subjects.values()) else "given"
    return Study(
        name=Path(folder).expanduser().resolve().name,
        description=f"{kind} responses in the Algonauts 2023 layout: {', '.join(subjects)}",
        sets={},
        subjects=subjects,
        backbone=backbone if backbone is not None else BackboneSpec("dinov2_vits14_reg"),
        licences={
            "images and responses": "the user's own, or the terms of the Natural Scenes Dataset"
        },
        extra={"split": {name: s.info.get("split") for name, s in subjects.items()}},
    )
