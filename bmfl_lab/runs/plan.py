"""Say what a run that trains will read, store and compute, before anything is started."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.backbones.tokens import token_bytes
from bmfl_lab.data import algonauts, nod, nod_fetch
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.ood_sets import SETS
from bmfl_lab.data.shifts import IMAGENET_C
from bmfl_lab.data.study import STUDY_FILES, BackboneSpec, Study, read_study_file
from bmfl_lab.errors import BmflError, ConfigError, DataError, require
from bmfl_lab.evaluation import planned_study
from bmfl_lab.evaluation.ablation import MODES
from bmfl_lab.models.build import AXES, FusionConfig
from bmfl_lab.models.fusion import QUERIES
from bmfl_lab.runs.notebook import read_notebook
from bmfl_lab.runs.spec import Run
from bmfl_lab.runtime import home, peak_memory_mb, pick_device
from bmfl_lab.training.compare import ALPHAS, SHARES, presets
from bmfl_lab.training.encoder import EncoderConfig
from bmfl_lab.training.names import COMPARED
from bmfl_lab.training.speed import JPEG, Seconds, decoding_processes, measure

_TRAINS = {"study", "preset", "models", "seeds"}
_IMAGENET_TRAIN, _HELD_OUT, _IMAGENET_CLASSES = 1_281_167, 10_000, 1000
_NATURAL = ("imagenet-sketch", "imagenet-r", "imagenet-a", "stylized-imagenet")
_PERSON = "subj01"
_N_ROIS = sum(map(len, algonauts.ALGONAUTS_ROIS.values()))
_NOTEBOOKS = Path(__file__).resolve().parents[2] / "notebooks"


@dataclass(frozen=True)
class _Sizes:
    """Hold the numbers of images per set, of the subject's images and vertices, and the source.

    `atlas` is None without a subject.
    """

    sets: Mapping[str, int]
    n_shifts: int
    n_shown: int
    atlas: Atlas | None
    n_classes: int
    backbone: BackboneSpec
    source: str

    @property
    def n_vertices(self) -> int:
        return 0 if self.atlas is None else self.atlas.n_vertices


def stages(run: Run) -> list[str]:
    """Return one line per stage of a run that trains fusions, with sizes and times.

    Parameters
    ----------
    run : Run
        A run of any notebook; one that trains no fusions has no stages.

    Returns
    -------
    list of str
        Images, passes through them, GB (10^9 bytes) and time of each stage. Times are those of
        decoding, backbone, brain encoder and fusion, and are measured if the device of the run
        exists here; validation, intervals and figures are not counted. If the data of ImageNet or
        NOD are absent, the sizes are the published ones, and a line says so.
    """
    if not set(run.parameters) >= _TRAINS:
        return []
    try:
        return list(_lines(run.run_id, run.parameters, _sizes(run)))
    except BmflError as error:
        return [f"stages of {run.run_id} are unknown: {error}"]


def study_stages(study: Study) -> list[str]:
    """Return what notebook 03 with its default parameters would do with a study; an estimate.

    Parameters
    ----------
    study : Study
        A study with the image sets "train", "val" and "test".

    Returns
    -------
    list of str
        The lines of `stages` on this machine, and one line about memory.
    """
    parameters = read_notebook(_NOTEBOOKS / "03_fusion_training.ipynb").parameters()
    given = {name: parameter.default for name, parameter in parameters.items()}
    sizes = _sizes_of(study, given)
    return [*_lines("notebook 03 (an estimate)", given, sizes), _memory(given, sizes)]


def downloads(runs: Sequence[Run]) -> list[str]:
    """Return the size of the download of each NOD study of which there is no copy, by the manifest.

    Parameters
    ----------
    runs : sequence of Run
        Runs of a spec.
    """
    found = []
    for run in runs:
        options = _absent_nod(run)
        if options is not None:
            who, others = _nod_people(options)
            manifest = nod_fetch.read_manifest()
            plan = nod_fetch.plan(manifest, who, sessions=options.get("sessions"), images_of=others)
            found.append(
                f"download of NOD {', '.join(who)}: {plan.describe(manifest)}; its time depends on "
                "your connection"
            )
    return list(dict.fromkeys(found))


def _sizes(run: Run) -> _Sizes:
    given = run.parameters
    name = str(given["study"])
    if Path(name).name == "imagenet.json" and not (run.root / Path(name).expanduser()).exists():
        sets = {"train": _IMAGENET_TRAIN - _HELD_OUT, "val": _HELD_OUT}
        sets |= {"test": SETS["imagenet"].n_images} | {s: SETS[s].n_images for s in _NATURAL}
        said = f"published counts of ImageNet and Algonauts 2023 {_PERSON}, as there is no {name}"
        atlas = _even_atlas(algonauts.VERTEX_COUNTS[_PERSON], _N_ROIS)
        n_shown = algonauts.IMAGE_COUNTS[_PERSON]
        spec = BackboneSpec("dinov2_vitb14")
        return _Sizes(sets, _n_made(given), n_shown, atlas, _IMAGENET_CLASSES, spec, said)
    options = _absent_nod(run)
    if options is not None:
        return _published_nod(given, options)
    return _sizes_of(planned_study(given, run.root), given)


def _sizes_of(study: Study, given: Mapping[str, Any]) -> _Sizes:
    """Return the sizes of a study for the parameters of a notebook."""
    sets = {k: len(study.set(k)) for k in ("train", "val", "test", *study.ood)}
    subject = study.subject(given.get("subject") or None) if study.subjects else None
    made = _n_made(given) if "shifts" in given else len(study.shifts)
    n_shown = 0 if subject is None or subject.kind == "predicted" else len(subject.stimuli)
    atlas = None if subject is None else subject.atlas
    said = f"study {study.name}"
    return _Sizes(sets, made, n_shown, atlas, len(study.class_names), study.backbone, said)


def _n_made(given: Mapping[str, Any]) -> int:
    """Return the number of artificial shifts of the parameters of a notebook."""
    return len(given.get("shifts", ())) * len(given.get("severities", (3,)))


def _absent_nod(run: Run) -> dict[str, Any] | None:
    """Return the options of a study file of NOD if its copy is absent, else None."""
    place = run.root / Path(str(run.parameters.get("study", ""))).expanduser()
    if place.suffix not in STUDY_FILES or not place.is_file():
        return None
    options = read_study_file(place)
    root = Path(str(options.get("root") or home() / "studies" / "nod"))
    if options["study"] != "nod" or nod.present_subjects(root):
        return None
    return options


def _nod_people(options: Mapping[str, Any]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """Return the subjects of a study of NOD, and those whose photographs alone are used."""
    who = options.get("subjects") or options.get("subject") or 10
    others = options.get("images_of") or ()
    return nod.subject_names(who), nod.subject_names(others) if others else ()


def _published_nod(given: Mapping[str, Any], options: Mapping[str, Any]) -> _Sizes:
    """Return the sizes of a study of NOD from the manifest."""
    manifest, (who, others) = nod_fetch.read_manifest(), _nod_people(options)
    require(
        others,
        DataError,
        "photographs of other people, which train and test the classifier",
        "no images_of in the study file",
        "add for example images_of: [15, 16] to it",
    )
    chosen = str(given.get("subject") or ("pooled" if options.get("pool") else who[0]))
    read = who if chosen == "pooled" else [chosen]
    sessions = options.get("sessions")
    n_shown = nod_fetch.plan(manifest, read, sessions=sessions).n_photographs
    n = nod_fetch.plan(manifest, (), images_of=others).n_photographs
    shares = {part: round(n * options.get(part, 0.1)) for part in ("val", "test")}
    sets = {"train": n - sum(shares.values()), **shares}
    spec = BackboneSpec(
        options.get("backbone", "dinov2_vits14_reg"), image_size=options.get("image_size", 224)
    )
    classes = set(nod.super_classes().values())
    if options.get("labels", "super") == "wnid":
        classes = set(nod.super_classes())
    said = f"published counts of NOD, {chosen}, as there is no copy"
    atlas = _even_atlas(nod.VERTEX_COUNTS, nod.N_AREAS)
    return _Sizes(sets, _n_made(given), n_shown, atlas, len(classes), spec, said)


def _even_atlas(counts: tuple[int, int], n_rois: int) -> Atlas:
    """Return an atlas of so many left and right vertices and regions, for measurements of time."""
    side = np.repeat(np.array([0, 1], dtype=np.int8), counts)
    parts = np.concatenate([np.arange(n) * n_rois // n for n in counts])
    return Atlas(side, {f"region {i}": parts == i for i in range(n_rois)}, groups={})


def _n_models(given: Mapping[str, Any], sizes: _Sizes) -> int:
    """Return how many models with all epochs a notebook trains per seed."""
    if "sections" not in given:
        named = [name for name in given["models"] if name in COMPARED]
        return len(named) if sizes.atlas is not None else named.count("backbone")
    if given["models"]:  # saved ones, beside which notebook 05 trains what is missing
        return 0
    n_regions = len(given["regions"]) or len(sizes.atlas.present if sizes.atlas else ())
    retrained = len({"only", "left_out"} & set(given["modes"] or MODES))
    counts = {
        "regions": 1 + n_regions * retrained * (1 + len(given["matched"])),
        "alpha": len(ALPHAS),
        "controls": len(given["stand_ins"]),
        "forms": len(QUERIES) * len(AXES),
        "quality": len(SHARES),
    }
    return sum(counts[section] for section in given["sections"] or list(counts)[:3])


def _lines(what: str, given: Mapping[str, Any], sizes: _Sizes) -> Iterator[str]:
    fusion, encoder = _configs(given)
    backbone = _random_backbone(sizes.backbone)
    took, said = _speed(sizes.backbone, str(given.get("device", "auto")), given["preset"], sizes)
    yield (
        f"stages of {what}: {backbone.name} at {backbone.image_size} px, "
        + (f"{sizes.n_vertices:,} vertices" if sizes.atlas is not None else "no subject")
        + f" ({sizes.source})"
    )
    reads = [(encoder.tokens, block) for block in encoder.blocks] if sizes.n_shown else []
    if reads:
        shown, epochs = token_bytes(backbone, sizes.n_shown, reads) / 1e9, encoder.loop.epochs
        spent = None if took is None else sizes.n_shown * (took.read + epochs * took.encoder_step)
        storage = f"{shown:.3g} GB of tokens in the store, {epochs} epochs"
        yield _line("brain encoder", sizes.n_shown, 1, spent, storage)
    reads = [(fusion.kind, fusion.block), *reads]
    models, shorter = _n_models(given, sizes), given.get("shorter", ())
    n_seeds = len(given["seeds"])
    epochs = n_seeds * (fusion.loop.epochs * models + sum(shorter))
    yield _training(fusion, backbone, reads, sizes, epochs, took)
    corrupted = given.get("n_corrupted", 0) * 5 * len(IMAGENET_C)
    yield _evaluation(backbone, reads, sizes, corrupted, n_seeds * (models + len(shorter)), took)
    yield f"  {said}"


def _line(stage: str, n_images: int, passes: int, seconds: float | None, storage: str) -> str:
    spent = "not measured here" if seconds is None else f"about {_duration(seconds)}"
    times = f"{passes} pass{'es' * (passes != 1)}"
    return f"  {stage:<16} {n_images:>9,} images, {times:>10}, {spent:>17}; {storage}"


def _training(
    fusion: FusionConfig,
    backbone: Backbone,
    reads: Sequence[tuple[str, int]],
    sizes: _Sizes,
    epochs: int,
    took: Seconds | None,
) -> str:
    """Return the line of the training of all models, of so many epochs together."""
    n, limit_gb = sizes.sets, FeatureStore().limit_gb
    kept = token_bytes(backbone, n["train"] + n["val"], reads) / 1e9
    responses = f"{4 * n['train'] * sizes.n_vertices / 1e9:.3g} GB of responses"
    streams = fusion.augment != "none" or kept > limit_gb
    how = f"{kept:.3g} GB of tokens in the store"
    if fusion.augment != "none":
        how = "from images, none stored: augmented"
    elif streams:
        how = (
            f"from images: {kept:.3g} GB of tokens and {responses} exceed the store of "
            f"{limit_gb:g} GB (raise BMFL_STORE_GB to keep them)"
        )
    passes, spent = epochs if streams else 1, None
    if took is not None:
        spent = n["train"] * (passes * took.read_and_responded + epochs * took.fusion_step)
    after = "responses per batch" if streams else responses
    storage = f"{how}; {epochs} epochs of all models, {after}"
    return _line("fusion training", n["train"], passes, spent, storage)


def _evaluation(
    backbone: Backbone,
    reads: Sequence[tuple[str, int]],
    sizes: _Sizes,
    n_corrupted: int,
    n_tested: int,
    took: Seconds | None,
) -> str:
    """Return the line of the evaluation of `n_tested` models on all sets and shifts."""
    n, limit_gb = sizes.sets, FeatureStore().limit_gb
    others = [n[name] for name in n if name not in ("train", "val")]
    n_images = sum(others) + sizes.n_shifts * n["test"] + n_corrupted
    largest = token_bytes(backbone, max(others), reads) / 1e9
    passes, spent = n_tested if largest > limit_gb else 1, None
    if took is not None:
        spent = n_images * (passes * took.read_and_responded + n_tested * took.classified)
    how = "streamed once per model" if largest > limit_gb else "in the store"
    storage = f"up to {largest:.3g} GB of tokens per set, {how}"
    return _line("evaluation", n_images, passes, spent, storage)


def _configs(given: Mapping[str, Any]) -> tuple[FusionConfig, EncoderConfig]:
    changes = {k: given[k] for k in ("epochs", "augment") if k in given}
    return presets(given["preset"], **changes)


def _memory(given: Mapping[str, Any], sizes: _Sizes) -> str:
    """Return the line about memory: what the encoder and the fusion hold at once, from counts."""
    fusion, encoder = _configs(given)
    backbone = _random_backbone(sizes.backbone)
    n = sizes.sets["train"] + sizes.sets["val"]
    held = token_bytes(backbone, n, [(fusion.kind, fusion.block)]) + 4 * n * sizes.n_vertices
    own = 4 * sizes.n_shown * sizes.n_vertices
    reads = [(encoder.tokens, block) for block in encoder.blocks]
    learned = token_bytes(backbone, sizes.n_shown, reads) + 2 * own
    most = max(held + own, learned, 1e7) / 1e9
    return (
        f"  memory: about {most:.2f} GB of tokens and responses at a time, mapped from files where "
        f"less is free, beside {peak_memory_mb() / 1e3:.2g} GB of the program, which this check "
        "takes, too (an estimate)"
    )


@functools.lru_cache(maxsize=2)
def _random_backbone(spec: BackboneSpec) -> Backbone:
    """Return a backbone of the size that a study names; its weights do not matter here."""
    weights = None if spec.name.startswith("hub") else "random"
    return load_backbone(
        spec.name, weights or spec.weights, image_size=spec.image_size, resize=spec.resize
    )


_MEASURED: dict[tuple[object, ...], Seconds] = {}
"""Times that were measured already, by what they depend on; runs of one spec share them."""


def _speed(
    spec: BackboneSpec, wanted: str, preset: str, sizes: _Sizes
) -> tuple[Seconds | None, str]:
    """Return the seconds per image of each part of a training, and a sentence on the bound."""
    try:
        device = pick_device(wanted)
    except ConfigError:
        return None, "time: not measured here, as the device of the spec does not exist here"
    backbone, n_images = _random_backbone(spec), sizes.sets["train"]
    workers = decoding_processes(n_images)
    key = (spec, device, preset, sizes.n_vertices, sizes.n_classes, workers)
    if key not in _MEASURED:
        fusion, encoder = presets(preset)
        options = {"atlas": sizes.atlas, "n_classes": sizes.n_classes, "n_images": n_images}
        _MEASURED[key] = measure(backbone, fusion, encoder, device=device, **options)
    took = _MEASURED[key]
    bound = "decoding is the bound: use smaller copies or shards of them (see the page of data)"
    rates = {"brain encoder": took.encoder_step, "fusion": took.fusion_step}
    trained = " and ".join(f"the {k} at {1 / v:,.0f} images/s" for k, v in rates.items() if v)
    return took, (
        f"time: the backbone takes {1 / took.computed:,.0f} images/s on {device}, and "
        f"{workers} process{'es' * (workers > 1)} decode "
        f"{1 / took.decoded:,.0f} of {JPEG[0]} x {JPEG[1]} px; "
        + (bound if took.computed < took.decoded else "the backbone is the bound")
        + f"; training takes {trained}; validation and figures are not counted"
    )


def _duration(seconds: float) -> str:
    hours = seconds / 3600
    return (
        f"{seconds:.0f} s"
        if hours < 0.1
        else f"{hours:.1f} h"
        if hours < 48
        else f"{hours / 24:.1f} days"
    )
