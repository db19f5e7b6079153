"""Seconds, images/s and peak memory of each stage of the main job on this machine.

    python -m bmfl_lab.benchmark [--study planted|demo|FOLDER] [--device auto] [--sizes 56 98 ...]
    [--out FILE.md]

Everything is computed afresh in a temporary folder. The rate of the backbone is also given as a
share of what a matrix product of the same number type reaches on the same device, measured in turns
with it.
"""

from __future__ import annotations

import argparse
import contextlib
import resource
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import BmflError, ConfigError, message
from bmfl_lab.evaluation import evaluate_ood, evaluation_sets
from bmfl_lab.files import atomic_path
from bmfl_lab.runtime import bf16_pays, code_revision, describe_machine, pick_device, versions
from bmfl_lab.training import (
    presets,
    train_attribute_encoder,
    train_brain_encoder,
    train_comparison,
)

PRODUCT = (2056, 768, 3072)
"""Rows, inner and columns of the reference matrix product: the first feed-forward layer of a ViT-B on 8 images."""


@dataclass(frozen=True)
class Stage:
    """What one stage cost.

    Parameters
    ----------
    name : str
        The stage.
    n : int
        Images it worked on, repeats counted (images x epochs, images x models).
    seconds : float
        Wall clock.
    memory_mb, gpu_mb : float
        Peak resident memory of the process and peak memory allocated on the GPU, in MB (10^6
        bytes).
    """

    name: str
    n: int
    seconds: float
    memory_mb: float
    gpu_mb: float = 0.0


def forward_flops(backbone: Backbone, size: int) -> float:
    """Return the floating point operations of one image of `size` pixels a side, a multiply-add counted as two.

    Patch embedding, projections, feed-forward and attention products; norms and activations are
    left out.
    """
    d, hidden = backbone.width, backbone.architecture.ffn_width
    patches = (size // backbone.patch_size) ** 2
    tokens = patches + 1 + backbone.n_registers
    feed_forward = (2 if backbone.architecture.ffn == "mlp" else 3) * d * hidden
    block = 2 * tokens * (4 * d * d + feed_forward) + 4 * tokens * tokens * d
    return backbone.n_blocks * block + 2 * patches * 3 * backbone.patch_size**2 * d


def clock(function: Callable[..., Any], *arguments: Any) -> float:
    """Return the wall seconds of one call, work queued on a GPU included."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    function(*arguments)
    wait()
    return time.perf_counter() - start


def forward_rate(
    backbone: Backbone, size: int, n: int, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the forward pass against a matrix product, in turns.

    Returns
    -------
    rates, ceilings : ndarray, shape (n,)
        Images/s, and FLOP/s of the product in the backbone's number type (best of three).
    """
    where = {"device": backbone.device}
    images = torch.randn(batch, 3, size, size, **where)
    rows, inner, columns = PRODUCT
    a = torch.randn(rows, inner, dtype=backbone.dtype, **where)
    b = torch.randn(inner, columns, dtype=backbone.dtype, **where)
    work = 2 * rows * inner * columns
    with torch.inference_mode():
        backbone(images), torch.mm(a, b)
        pairs = [
            (batch / clock(backbone, images), work / min(clock(torch.mm, a, b) for _ in range(3)))
            for _ in range(n)
        ]
    return tuple(np.asarray(pairs).T)


@contextlib.contextmanager
def measured(found: list[Stage], name: str) -> Iterator[dict[str, int]]:
    """Append the block's `Stage` to `found`; the block puts the number of images into ``["n"]``."""
    gpu = torch.cuda.is_initialized()
    _forget_peak()
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    count = {"n": 0}
    start = time.perf_counter()
    yield count
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    found.append(
        Stage(
            name,
            count["n"],
            seconds,
            _peak_mb(),
            torch.cuda.max_memory_allocated() / 1e6 if gpu else 0.0,
        )
    )
    print(f"{name}: {seconds:.1f} s", flush=True)


def _forget_peak() -> None:
    # Linux keeps the peak of a process until 5 is written here; elsewhere it stays that of the
    # whole run
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")


def _peak_mb() -> float:
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * 1024 / 1e6


def main_job(
    name: str, device: str, *, epochs: int = 0, encoder: str = "roi_query", **options: Any
) -> tuple[list[Stage], Study, float]:
    """Run the main job from nothing and return its stages, the study and the images/s of the feature extraction.

    Parameters
    ----------
    name : str
        Study.
    device : {"cpu", "cuda"}
        Where.
    epochs : int, default 0
        Of the fusion training; 0 takes the preset's.
    encoder : str, default "roi_query"
        Kind of brain encoder.
    **options
        Of `load_study`.
    """
    stages: list[Stage] = []
    if device == "cuda":
        torch.zeros(1, device=device)
    with measured(stages, "study load") as count:
        study = load_study(name, **options)
        count["n"] = sum(map(len, study.sets.values())) + sum(
            len(s.stimuli) for s in study.subjects.values()
        )
    spec = study.backbone
    backbone = load_backbone(
        spec.name, spec.weights, image_size=spec.image_size, device=device, resize=spec.resize
    )
    fusion, recipe = presets(
        "tiny" if study.name == "planted" else "small", epochs=epochs, encoder=encoder
    )
    with tempfile.TemporaryDirectory(prefix="bmfl-benchmark-") as folder:
        store = FeatureStore(Path(folder) / "features")
        with measured(stages, "feature extraction") as count:
            sets = [
                study.sets["train"],
                study.sets["val"],
                *(s.stimuli for s in study.subjects.values()),
            ]
            sets += [stimuli for stimuli, *_ in evaluation_sets(study)]
            for stimuli in sets:
                wanted = [
                    (fusion.kind, fusion.block),
                    *((recipe.tokens, block) for block in recipe.blocks),
                ]
                store.get_many(backbone, stimuli, wanted)
                count["n"] += len(stimuli)
        _train_and_evaluate(stages, study, fusion, recipe, store, backbone, Path(folder), device)
    extraction = next(s for s in stages if s.name == "feature extraction")
    return stages, study, extraction.n / extraction.seconds


def _train_and_evaluate(stages, study, fusion, recipe, store, backbone, folder, device) -> None:
    shared = {"store": store, "device": device}
    made = {}
    for kind, train in (("brain", train_brain_encoder), ("attribute", train_attribute_encoder)):
        if kind == "attribute" and study.subject().attributes is None:
            continue
        with measured(stages, f"{kind} encoder training") as count:
            made[kind] = train(recipe, study, folder=folder / kind, backbone=backbone, **shared)
            count["n"] = max(1, len(made[kind].history)) * made[kind].facts["n_train"]
    models = {}
    for name in ("backbone", "concat", "fusion", *(["attributes"] if "attribute" in made else [])):
        with measured(stages, f"training of {name}") as count:
            models |= train_comparison(
                fusion,
                study,
                encoder=made["brain"],
                attribute_encoder=made.get("attribute"),
                models=[name],
                seeds=[0],
                **shared,
            )
            count["n"] = len(models[name][0].history) * len(study.set("train"))
    with measured(stages, "evaluation") as count:
        evaluate_ood(models, study)
        count["n"] = len(models) * sum(len(stimuli) for stimuli, *_ in evaluation_sets(study))


def stage_table(stages: Sequence[Stage]) -> str:
    """Return the stages as a Markdown table."""
    lines = [
        "| stage | images (n) | seconds | images/s | peak memory, MB | peak GPU memory, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for s in stages:
        gpu = f"{s.gpu_mb:.0f}" if s.gpu_mb else "-"
        lines.append(
            f"| {s.name} | {s.n} | {s.seconds:.2f} | {s.n / s.seconds:.0f} | {s.memory_mb:.0f} | {gpu} |"
        )
    total = sum(s.seconds for s in stages)
    lines.append(f"| all | | {total:.2f} | | {max(s.memory_mb for s in stages):.0f} | |")
    return "\n".join(lines)


def backbone_table(
    study: Study, device: str, sizes: Sequence[int], n: int, extraction: float
) -> str:
    """Measure the backbone at several image sizes and return a Markdown table.

    Parameters
    ----------
    study : Study
        Its backbone.
    device : {"cpu", "cuda"}
        Where.
    sizes : sequence of int
        Image sides in pixels.
    n : int
        Repetitions; medians are shown.
    extraction : float
        Images/s of the whole extraction at the study's own size, shown beside the forward pass
        alone.
    """
    spec = study.backbone
    lines = [
        "| pixels | number type | images/s | lowest to highest | n | GFLOP an image | product, GFLOP/s | share of it |",
        "|--:|---|--:|---|--:|--:|--:|--:|",
    ]
    for size in sizes:
        for dtype in ("float32", *(("bfloat16",) if bf16_pays(device) else ())):
            backbone = load_backbone(
                spec.name, spec.weights, image_size=size, dtype=dtype, device=device
            )
            rates, ceilings = forward_rate(backbone, size, n, batch=8 if device == "cpu" else 256)
            work = forward_flops(backbone, size)
            share = float(np.median(rates * work / ceilings))
            lines.append(
                f"| {size} | {dtype} | {np.median(rates):.1f} | {rates.min():.1f} to {rates.max():.1f} | {n} "
                f"| {work / 1e9:.3g} | {np.median(ceilings) / 1e9:.0f} | {share:.2f} |"
            )
            if size == spec.image_size and dtype == "float32":
                whole = extraction * work / float(np.median(ceilings))
                lines.append(
                    f"| {size} | {dtype}, from images to the store | {extraction:.1f} | | 1 | {work / 1e9:.3g} "
                    f"| {np.median(ceilings) / 1e9:.0f} | {whole:.2f} |"
                )
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code."""
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.benchmark", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--study", default="planted", help="planted, demo, or a folder with a subject"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--sizes", type=int, nargs="*", default=None, help="image sides in pixels (the study's own)"
    )
    parser.add_argument(
        "--epochs", type=int, default=0, help="of the fusion training (the preset's)"
    )
    parser.add_argument("-n", type=int, default=5, help="repetitions of the forward pass")
    parser.add_argument("--out", help="Markdown file to write")
    options = parser.parse_args(arguments)
    try:
        if options.n < 1:
            raise ConfigError(message("at least one repetition", str(options.n), "choose -n 5"))
        device = pick_device(options.device)
        stages, study, extraction = main_job(options.study, device, epochs=options.epochs)
        sizes = [study.backbone.image_size] if options.sizes is None else options.sizes
        text = "\n".join(
            [
                f"# {study.name} on {device}\n",
                f"{study.description}\n",
                f"{describe_machine()}, torch {versions()['torch']}, revision {code_revision()}\n",
                stage_table(stages),
                f"\nForward pass of {study.backbone.name}, medians of n, in turns with a product of {PRODUCT}:\n",
                backbone_table(study, device, sizes, options.n, extraction),
                ""
                if bf16_pays(device)
                else "\nbfloat16 does not pay on this device and is left out.",
            ]
        )
    except BmflError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(text)
    if options.out:
        with atomic_path(options.out) as temporary:
            temporary.write_text(text + "\n", encoding="utf-8")
    return 0


if __name__ == "__main__":
    sys.exit(main())
