"""Open the models that a run saved, with their study, instead of training them again."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import CheckpointError, ConfigError, message, nearest, require
from bmfl_lab.files import files_below
from bmfl_lab.records import read_record
from bmfl_lab.training.checkpoint import read_manifest
from bmfl_lab.training.context import local_device, study_backbone
from bmfl_lab.training.fusion import STEM, TrainedFusion, load_fusion
from bmfl_lab.training.trained_encoder import STEM as ENCODER_STEM
from bmfl_lab.training.trained_encoder import TrainedEncoder, load_encoder

FOLDER = "models"
"""Folder of a run that holds one folder per model, with one folder per seed."""


def save_models(models: Mapping[str, Sequence[TrainedFusion]], folder: str | Path) -> None:
    """Save every seed of every model below a run's folder, for `open_models`.

    Parameters
    ----------
    models : mapping of str to sequence of TrainedFusion
        Models by name, see `bmfl_lab.training.train_comparison`; the names become folders.
    folder : str or Path
        Folder of the run.

    Raises
    ------
    CheckpointError
        If the folder cannot be written.
    """
    for name, group in models.items():
        for model in group:
            model.save(Path(folder) / FOLDER / name / f"seed-{model.seed}")


def open_models(
    place: str | Path | Sequence[str | Path],
    study: Study | str | Path | None = None,
    *,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> tuple[Study, dict[str, list[TrainedFusion]]]:
    """Open the models that a run saved.

    Parameters
    ----------
    place : str or Path, or sequence of them
        Folder of a run, of a spec's runs (the newest run with models is taken), or of saved models;
        or a spec, whose runs lie in ``../out/<name of the spec>`` beside its folder.
    study : Study, str or Path, optional
        Study of the models; by default the one that the run's record names.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that predicts.

    Returns
    -------
    study : Study
    models : dict of str to list of TrainedFusion
        Models by name, those of several seeds in the order of the seeds. Models of one encoder
        share it.

    Raises
    ------
    ConfigError
        If the place does not exist, holds no saved model, or its record is missing and no study is
        given.
    CheckpointError
        If a model is damaged or was trained on other images, classes or backbone weights.
    """
    places = [place] if isinstance(place, (str, Path)) else list(place)
    folders = [folder for one in places for folder in _model_folders(Path(one).expanduser())]
    if not isinstance(study, Study):
        study = _study_of(folders[0], study)
    backbone = study_backbone(study.backbone, local_device(device))
    models: dict[str, list[TrainedFusion]] = {}
    encoders: dict[str, TrainedEncoder] = {}
    for folder in folders:
        own = folder / "encoder"
        encoder = None
        if own.is_dir():
            identity = read_manifest(own / f"{ENCODER_STEM}.json")["hash"]
            encoder = encoders.get(identity) or load_encoder(own)
            encoders[identity] = encoder
        model = load_fusion(folder, backbone, encoder=encoder, store=store, device=device)
        require(
            model.class_names == study.class_names,
            CheckpointError,
            f"a model of the {len(study.class_names)} classes of study {study.name!r}",
            f"one of {len(model.class_names)} classes in {folder}",
            "pass study=, the study that the model was trained on",
        )
        models.setdefault(model.name, []).append(model)
    return study, {name: sorted(group, key=lambda m: m.seed) for name, group in models.items()}


def _model_folders(place: Path) -> list[Path]:
    """Return the folders of the models at a place; those of the newest run if it holds several."""
    if place.suffix in (".yaml", ".yml"):
        place = place.parent.parent / "out" / place.stem
    if not place.is_dir():
        beside = [p.name for p in place.parent.iterdir()] if place.parent.is_dir() else []
        raise ConfigError(
            message(
                "the folder of a run with models",
                f"nothing at {place}",
                nearest(place.name, beside),
            )
        )
    found = [p.parent for p in files_below(place, f"{STEM}.json")]
    require(
        found,
        ConfigError,
        f"saved models in {place}",
        "none",
        "run notebook 03, which saves its models, and give its folder",
    )
    records = {folder: _record_above(folder) for folder in found}
    runs = {r for r in records.values() if r is not None}
    if len(runs) < 2:
        return found
    newest = max(runs, key=lambda r: r.stat().st_mtime)
    print(f"{len(runs)} runs with models in {place}; the newest is opened: {newest.parent.name}")
    return [folder for folder in found if records[folder] == newest]


def _record_above(folder: Path) -> Path | None:
    """Return the record of the run that a model's folder belongs to."""
    above = (parent / "record.json" for parent in list(folder.parents)[:4])
    return next((record for record in above if record.is_file()), None)


def _study_of(folder: Path, study: str | Path | None) -> Study:
    """Load a study; by default that of the record beside the models, compared by fingerprint."""
    if study is not None:
        return load_study(study)
    path = _record_above(folder)
    require(
        path is not None,
        ConfigError,
        f"the record of the run above {folder}",
        "no record.json",
        "pass study=, the study that the models were trained on",
    )
    record = read_record(path)
    name = str(record.parameters.get("study", ""))
    loaded = load_study(name)
    now, then = loaded.fingerprint(), record.study.get("fingerprint")
    require(
        now == then,
        CheckpointError,
        f"study {name!r} as it was when {path.parent.name} was run ({then})",
        f"other images or responses ({now})",
        "restore the data, or pass study= to use the models on these",
    )
    return loaded
