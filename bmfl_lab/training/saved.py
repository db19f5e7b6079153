"""Open the models that a run saved, with their study, instead of training them again."""

from __future__ import annotations

import dataclasses
from collections.abc import Collection, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.study import READERS, Study, load_study
from bmfl_lab.errors import CheckpointError, ConfigError, message, nearest, require
from bmfl_lab.files import files_below, sha256_bytes, sha256_json
from bmfl_lab.records import read_record
from bmfl_lab.runtime import project_root
from bmfl_lab.training.checkpoint import read_manifest
from bmfl_lab.training.context import local_device, pinned, study_backbone
from bmfl_lab.training.encoder import EncoderConfig
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.fusion import STEM, TrainedFusion, load_fusion
from bmfl_lab.training.names import COMPARED
from bmfl_lab.training.recipes import FusionConfig
from bmfl_lab.training.trained_encoder import STEM as ENCODER_STEM
from bmfl_lab.training.trained_encoder import TrainedEncoder, load_encoder

FOLDER = "models"
"""Folder of a run that holds one folder per model, with one folder per seed."""
GENERATED = "planted"
"""Study of the notebooks by default; saved models bring their own in its place."""


@dataclass(frozen=True)
class OpenedStudy:
    """Hold a study and the saved models that a notebook uses in place of training.

    Parameters
    ----------
    study : Study
        Study of the models.
    models : mapping of str to list of TrainedFusion
        Models by name, those of several seeds in the order of the seeds; empty if all are trained.
    """

    study: Study
    models: Mapping[str, list[TrainedFusion]] = field(default_factory=dict)

    @property
    def seeds(self) -> list[int]:
        """Training seeds of the models; empty without models."""
        return sorted({model.seed for group in self.models.values() for model in group})

    @property
    def encoder(self) -> TrainedEncoder | None:
        """Encoder whose predicted responses the models read; None if none of them reads any."""
        groups = [group for name, group in self.models.items() if name != "attributes"]
        found = (m.encoder for group in groups for m in group)
        return next((encoder for encoder in found if encoder is not None), None)

    @property
    def configs(self) -> tuple[FusionConfig, EncoderConfig] | None:
        """Configurations of the fusion and of its encoder; None if no model reads responses."""
        if self.encoder is None:
            return None
        fusion = self.models.get("fusion") or next(iter(self.models.values()))
        described = self.encoder.facts["config"]  # empty if no encoder was trained
        return fusion[0].config, configs.from_dict(EncoderConfig, described)

    def subject(self, name: str = "") -> Subject:
        """Return a subject of the study: the named one, that of the encoder, or the first one.

        Parameters
        ----------
        name : str, default ""
            Name of the subject; it must be that of the encoder, if there is one.

        Raises
        ------
        DataError
            If the study has no such subject.
        ConfigError
            If the saved models read the predicted responses of another subject.
        """
        own = "" if self.encoder is None else str(self.encoder.facts["subject"])
        require(
            not own or name in ("", own),
            ConfigError,
            f"subject {own!r}, whose responses the saved models read",
            repr(name),
            f"leave subject empty, or open the models of {name!r}",
        )
        return self.study.subject(own or name or None)

    def model(self, name: str, seed: int) -> TrainedFusion | None:
        """Return the model of a name and seed, or of its first seed; None without models.

        Parameters
        ----------
        name : str
            Name of the model.
        seed : int
            Preferred training seed.

        Raises
        ------
        ConfigError
            If models were opened and none has this name.
        """
        if not self.models:
            return None
        require(
            name in self.models,
            ConfigError,
            f"a saved model {name!r}",
            ", ".join(self.models),
            f"open a run of notebook 03 whose models include {name!r}",
        )
        group = self.models[name]
        return next((m for m in group if m.seed == seed), group[0])


def open_study(
    study: str | Path,
    models: Sequence[str | Path] = (),
    *,
    trainable: Collection[str] = (),
    store: FeatureStore | None = None,
    device: str = "auto",
) -> OpenedStudy:
    """Load the study of a notebook, and the saved models that it names.

    Parameters
    ----------
    study : str or Path
        Parameter `study` of the notebook. Saved models bring their own study in place of
        "planted"; any other one is loaded, and its classes must be those of the models.
    models : sequence of str or Path, optional
        Parameter `models` of the notebook: places that `open_models` takes; none by default.
    trainable : collection of str, optional
        Names of models that the notebook trains; these are no places.
    store, device
        See `open_models`.

    Returns
    -------
    OpenedStudy
        Without models if all of `models` are trainable.

    Raises
    ------
    ConfigError
        If only some of `models` are trainable; see also `open_models` and `load_study`.
    CheckpointError, DataError
        See `open_models` and `load_study`.
    """
    places = [place for place in models if str(place) not in trainable]
    require(
        not places or len(places) == len(models),
        ConfigError,
        "models to train, or places of saved models, and not both",
        ", ".join(map(str, models)),
        "choose one of the two",
    )
    if not places:
        return OpenedStudy(load_study(study))
    return OpenedStudy(
        *open_models(places, None if study == GENERATED else study, store=store, device=device)
    )


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
        or a spec or its name, whose runs lie in ``../out/<name of the spec>`` beside its folder.
        Relative paths start at the working folder or else at the project's root.
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
        Models by name, in the order of `COMPARED`, and those of several seeds in the order of the
        seeds. Models of one encoder share it.

    Raises
    ------
    ConfigError
        If the place does not exist, holds no saved model, or its record is missing and no study is
        given.
    CheckpointError
        If a model is damaged or was trained on other images, classes or backbone weights.
    """
    places = [place] if isinstance(place, (str, Path)) else list(place)
    folders = [folder for one in places for folder in _model_folders(Path(one))]
    if not isinstance(study, Study):
        study = _study_of(folders[0], study)
    trained = read_manifest(folders[0] / f"{STEM}.json")["backbone"]["weights_hash"]
    spec = pinned(study.backbone, trained)
    if spec != study.backbone:
        study = dataclasses.replace(study, backbone=spec)
    backbone = study_backbone(spec, local_device(device))
    models: dict[str, list[TrainedFusion]] = {}
    encoders: dict[str, TrainedEncoder] = {}
    external = next((s for s in study.subjects.values() if s.kind == "predicted"), None)
    elsewhere = None if external is None else ExternalEncoder(external, spec)
    for folder in folders:
        own = folder / "encoder"
        encoder, brain = elsewhere, None if elsewhere is None else elsewhere.source
        if own.is_dir():
            identity = read_manifest(own / f"{ENCODER_STEM}.json")["hash"]
            encoder = encoders.get(identity) or load_encoder(own)
            encoders[identity] = encoder
        model = load_fusion(
            folder, backbone, encoder=encoder, brain=brain, store=store, device=device
        )
        require(
            model.class_names == study.class_names,
            CheckpointError,
            f"a model of the {len(study.class_names)} classes of study {study.name!r}",
            f"one of {len(model.class_names)} classes in {folder}",
            "pass study=, the study that the model was trained on",
        )
        models.setdefault(model.name, []).append(model)
    order = [name for name in COMPARED if name in models]
    order += [name for name in models if name not in order]
    return study, {name: sorted(models[name], key=lambda m: m.seed) for name in order}


def models_fingerprint(models: Sequence[str], root: Path) -> str:
    """Return a text that changes when the saved models of a notebook's parameter change.

    Parameters
    ----------
    models : sequence of str
        Parameter `models` of a notebook, see `open_study`.
    root : Path
        Project in which relative places are looked for.

    Returns
    -------
    str
        Empty if there are no saved models at these places.
    """
    try:
        found = [_model_folders(Path(place), root, quiet=True) for place in models]
    except ConfigError:  # names of models to train, or a run that is not there yet
        return ""
    files = [folder / f"{STEM}.json" for folders in found for folder in folders]
    return sha256_json([sha256_bytes(file.read_bytes()) for file in files])


def _model_folders(given: Path, root: Path | None = None, *, quiet: bool = False) -> list[Path]:
    """Return the folders of the models at a place; those of the newest run if it holds several."""
    root, given = root or project_root(), given.expanduser()
    runs = root / "papermill_runs" / "out"
    tried = [given, root / given, runs / given]
    if given.suffix in (".yaml", ".yml"):
        tried = [spec.parent.parent / "out" / spec.stem for spec in (given.absolute(), tried[1])]
    place = next((folder for folder in tried if folder.is_dir()), None)
    if place is None:
        beside = [
            p.name for near in (tried[0].parent, runs) if near.is_dir() for p in near.iterdir()
        ]
        raise ConfigError(
            message(
                "the folder of a run with models",
                f"nothing at {tried[0]}",
                "run the spec first" if given.suffix else nearest(given.name, beside),
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
    if not quiet:
        name = newest.parent.name
        print(f"{len(runs)} runs with models in {place}; the newest is opened: {name}")
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
    below_root = project_root() / name
    moved = name not in READERS and not Path(name).expanduser().exists() and below_root.exists()
    loaded = load_study(below_root if moved else name)
    now, then = loaded.fingerprint(), record.study.get("fingerprint")
    require(
        now == then,
        CheckpointError,
        f"study {name!r} as it was when {path.parent.name} was run ({then})",
        f"other images or responses ({now})",
        "restore the data, or pass study= to use the models on these",
    )
    return loaded
