"""Say what a run that trains will read, store and compute, before anything is started."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.backbones.tokens import token_bytes
from bmfl_lab.data import algonauts
from bmfl_lab.data.ood_sets import SETS
from bmfl_lab.data.shifts import IMAGENET_C
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import BmflError, ConfigError
from bmfl_lab.evaluation import planned_study
from bmfl_lab.runs.spec import Run
from bmfl_lab.runtime import pick_device
from bmfl_lab.training.compare import presets
from bmfl_lab.training.names import COMPARED
from bmfl_lab.training.speed import JPEG, computed_per_second, decoded_per_second

_TRAINS = {"study", "preset", "models", "seeds"}
_IMAGENET_TRAIN, _HELD_OUT = 1_281_167, 10_000
_NATURAL = ("imagenet-sketch", "imagenet-r", "imagenet-a", "stylized-imagenet")
_PERSON = "subj01"


@dataclass(frozen=True)
class _Sizes:
    """Hold the numbers of images per set, of the subject's images and vertices, and the source."""

    sets: Mapping[str, int]
    n_shifts: int
    n_shown: int
    n_vertices: int
    backbone: BackboneSpec
    source: str


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
        backbone and decoding alone, and are measured if the device of the run exists here. If the
        study file of ImageNet is absent, the sizes are the published ones, and a line says so.
    """
    if not set(run.parameters) >= _TRAINS:
        return []
    try:
        sizes = _sizes(run)
        spec = sizes.backbone
        backbone = load_backbone(spec.name, "random", image_size=spec.image_size)
        return list(_lines(run, sizes, backbone))
    except BmflError as error:
        return [f"stages of {run.run_id} are unknown: {error}"]


def _sizes(run: Run) -> _Sizes:
    given = run.parameters
    name = str(given["study"])
    made = len(given.get("shifts", ())) * len(given.get("severities", (3,)))
    place = run.root / Path(name).expanduser()
    if Path(name).name == "imagenet.json" and not place.exists():
        sets = {"train": _IMAGENET_TRAIN - _HELD_OUT, "val": _HELD_OUT}
        sets |= {"test": SETS["imagenet"].n_images} | {s: SETS[s].n_images for s in _NATURAL}
        said = f"published counts of ImageNet and Algonauts 2023 {_PERSON}, as there is no {name}"
        n_vertices = sum(algonauts.VERTEX_COUNTS[_PERSON])
        n_shown = algonauts.IMAGE_COUNTS[_PERSON]
        return _Sizes(sets, made, n_shown, n_vertices, BackboneSpec("dinov2_vitb14"), said)
    study = planned_study(given, run.root)
    sets = {k: len(study.set(k)) for k in ("train", "val", "test", *study.ood)}
    subject = study.subject(given.get("subject") or None)
    made = made if "shifts" in given else len(study.shifts)
    n_shown = 0 if subject.kind == "predicted" else len(subject.stimuli)
    return _Sizes(sets, made, n_shown, subject.n_vertices, study.backbone, f"study {study.name}")


def _lines(run: Run, sizes: _Sizes, backbone: Backbone) -> Iterator[str]:
    given, n = run.parameters, sizes.sets
    changes = {k: given[k] for k in ("epochs", "augment") if k in given}
    fusion, encoder = presets(given["preset"], **changes)
    limit_gb, speed, said = FeatureStore().limit_gb, *_speed(backbone, _device(run), n["train"])

    def line(stage: str, n_images: int, passes: int, storage: str) -> str:
        spent = "not measured here" if speed is None else _duration(n_images * passes / speed)
        times = f"{passes} pass{'es' * (passes != 1)}"
        return f"  {stage:<16} {n_images:>9,} images, {times:>10}, {spent:>17}; {storage}"

    yield (
        f"stages of {run.run_id}: {backbone.name} at {backbone.image_size} px, "
        f"{sizes.n_vertices:,} vertices ({sizes.source})"
    )
    reads = [(encoder.tokens, block) for block in encoder.blocks]
    shown = token_bytes(backbone, sizes.n_shown, reads) / 1e9
    yield line("brain encoder", sizes.n_shown, 1, f"{shown:.3g} GB of tokens in the store")

    reads = [(fusion.kind, fusion.block), *reads]
    kept = token_bytes(backbone, n["train"] + n["val"], reads) / 1e9
    responses = 4 * n["train"] * sizes.n_vertices / 1e9
    trained = sum(name in COMPARED for name in given["models"])
    epochs = len(given["seeds"]) * (fusion.loop.epochs * trained + sum(given.get("shorter", ())))
    streams = fusion.augment != "none" or kept > limit_gb
    how = (
        "from images, none stored: augmented"
        if fusion.augment != "none"
        else f"from images: {kept:.3g} GB of tokens and {responses:.3g} GB of responses exceed "
        f"the store of {limit_gb:g} GB"
        if streams
        else f"{kept:.3g} GB of tokens in the store"
    )
    after = "responses per batch" if streams else f"{responses:.3g} GB of responses"
    yield line(
        "fusion training",
        n["train"],
        epochs if streams else 1,
        f"{how}; {epochs} epochs of all models, {after}",
    )

    others = [k for k in n if k not in ("train", "val")]
    corrupted = given.get("n_corrupted", 0) * 5 * len(IMAGENET_C)
    n_images = sum(n[k] for k in others) + sizes.n_shifts * n["test"] + corrupted
    largest = token_bytes(backbone, max(n[k] for k in others), reads) / 1e9
    models = len(given["seeds"]) * (trained + len(given.get("shorter", ())))
    yield line(
        "evaluation",
        n_images,
        models if largest > limit_gb else 1,
        f"up to {largest:.3g} GB of tokens per set, "
        + ("streamed once per model" if largest > limit_gb else "in the store"),
    )
    yield f"  {said}"


def _device(run: Run) -> str | None:
    """Return the device of a run, None if it does not exist here."""
    try:
        return pick_device(str(run.parameters.get("device", "auto")))
    except ConfigError:
        return None


def _speed(backbone: Backbone, device: str | None, n: int) -> tuple[float | None, str]:
    """Return the images per second of backbone and decoding together, and a sentence on both."""
    if device is None:
        return None, "time: not measured here, as the device of the spec does not exist here"
    computed = computed_per_second(backbone, device)
    decoded, workers = decoded_per_second(backbone, n)
    bound = "decoding is the bound: use smaller copies or shards of them (see the page of data)"
    return min(computed, decoded), (
        f"time: the backbone takes {computed:,.0f} images/s on {device}, and "
        f"{workers} process{'es' * (workers > 1)} decode "
        f"{decoded:,.0f} of {JPEG[0]} x {JPEG[1]} px; "
        + (bound if decoded < computed else "the backbone is the bound")
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
