"""Measure seconds, images/s and peak memory of each stage of the main job on this machine.

    python tests/benchmarks/bench_stages.py [--study planted|demo|FOLDER] [--device auto] [--sizes 56 98 ...]
    [--out FILE.md]

Everything is computed anew in a temporary folder. The rate of the backbone is also given as a share
of the FLOP/s of a matrix product in the same number type on the same device. Backbone and product
are measured alternately.
"""

from __future__ import annotations

import argparse
import contextlib
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import BmflError, ConfigError, message
from bmfl_lab.evaluation import evaluate_ood, evaluation_sets
from bmfl_lab.files import atomic_path
from bmfl_lab.runtime import (
    bf16_pays,
    code_revision,
    describe_machine,
    peak_memory_mb,
    pick_device,
    versions,
)
from bmfl_lab.training import (
    EncoderConfig,
    FusionConfig,
    presets,
    train_attribute_encoder,
    train_brain_encoder,
    train_comparison,
)

PRODUCT = (2056, 768, 3072)
"""Sizes (n, k, m) of the reference product of (n, k) and (k, m) matrices: the first feed-forward
layer of a ViT-B on 8 images."""
_MOST_TINY = 500
"""Largest number of training images for which the preset "tiny" is used (our choice)."""


@dataclass(frozen=True)
class Stage:
    """Hold the cost of one stage.

    Parameters
    ----------
    name : str
        Name of the stage.
    n : int
        Number of images that were processed, repetitions included (images x epochs, images x
        models).
    seconds : float
        Elapsed time in seconds.
    memory_mb : float
        Peak resident memory of the process in MB (10^6 bytes).
    gpu_mb : float, default 0.0
        Peak memory allocated on the GPU in MB.
    """

    name: str
    n: int
    seconds: float
    memory_mb: float
    gpu_mb: float = 0.0


def forward_flops(backbone: Backbone, size: int) -> float:
    """Return the number of floating-point operations of one forward pass.

    Patch embedding, projections, feed-forward layers and attention products are counted, each
    multiply-add as two operations. Norms and activations are not counted.

    Parameters
    ----------
    backbone : Backbone
        A vision transformer.
    size : int
        Height and width of the image in pixels.

    Returns
    -------
    float
        Operations per image.
    """
    d, hidden = backbone.width, backbone.architecture.ffn_width
    patches = (size // backbone.patch_size) ** 2
    tokens = patches + 1 + backbone.n_registers
    feed_forward = (2 if backbone.architecture.ffn == "mlp" else 3) * d * hidden
    block = 2 * tokens * (4 * d * d + feed_forward) + 4 * tokens * tokens * d
    return backbone.n_blocks * block + 2 * patches * 3 * backbone.patch_size**2 * d


def _clock(function: Callable[..., object], *arguments: torch.Tensor) -> float:
    """Return the seconds of one call, including work that is queued on a GPU."""
    wait = torch.cuda.synchronize if torch.cuda.is_initialized() else lambda: None
    wait()
    start = time.perf_counter()
    function(*arguments)
    wait()
    return time.perf_counter() - start


def forward_rate(
    backbone: Backbone, size: int, n: int, batch: int = 8
) -> tuple[np.ndarray, np.ndarray]:
    """Measure the forward pass and a matrix product alternately.

    Parameters
    ----------
    backbone : Backbone
        The backbone.
    size : int
        Height and width of the images in pixels.
    n : int
        Number of repetitions.
    batch : int, default 8
        Number of images per forward pass.

    Returns
    -------
    rates : ndarray of float64, shape (n,)
        Images per second of the backbone.
    ceilings : ndarray of float64, shape (n,)
        FLOP per second of the product in the number type of the backbone (best of three).
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
            (batch / _clock(backbone, images), work / min(_clock(torch.mm, a, b) for _ in range(3)))
            for _ in range(n)
        ]
    return tuple(np.asarray(pairs).T)


@contextlib.contextmanager
def measured(found: list[Stage], name: str) -> Iterator[dict[str, int]]:
    """Measure the block as a stage.

    Parameters
    ----------
    found : list of Stage
        The stage is appended to this list.
    name : str
        Name of the stage.

    Yields
    ------
    dict of str to int
        The block stores the number of images under "n".
    """
    gpu = torch.cuda.is_initialized()
    # on Linux, writing 5 resets the peak; elsewhere it stays that of the whole process
    with contextlib.suppress(OSError):
        Path("/proc/self/clear_refs").write_text("5")
    if gpu:
        torch.cuda.reset_peak_memory_stats()
    count = {"n": 0}
    start = time.perf_counter()
    yield count
    if gpu:
        torch.cuda.synchronize()
    seconds = time.perf_counter() - start
    gpu_mb = torch.cuda.max_memory_allocated() / 1e6 if gpu else 0.0
    found.append(Stage(name, count["n"], seconds, _peak_mb(), gpu_mb))
    print(f"{name}: {seconds:.1f} s", flush=True)


def _peak_mb() -> float:
    """Return the peak resident memory in MB since it was reset (Linux), or of the whole process."""
    with contextlib.suppress(OSError):
        for line in Path("/proc/self/status").read_text().splitlines():
            if line.startswith("VmHWM:"):
                return int(line.split()[1]) * 1024 / 1e6
    return peak_memory_mb()


def main_job(
    name: str, device: str, *, epochs: int = 0, encoder: str = "roi_query", **options: object
) -> tuple[list[Stage], Study, float]:
    """Run the main job without any cached result.

    Parameters
    ----------
    name : str
        Name or folder of the study.
    device : {"cpu", "cuda"}
        Device on which to compute.
    epochs : int, default 0
        Epochs of the fusion training; 0 takes those of the preset.
    encoder : str, default "roi_query"
        Kind of brain encoder.
    **options
        Options of `load_study`.

    Returns
    -------
    stages : list of Stage
        Cost of each stage.
    study : Study
        The study.
    extraction : float
        Images per second of the feature extraction.

    Notes
    -----
    The preset is "tiny" for a study of at most 500 training images and "small" for a larger one.
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
    preset = "tiny" if len(study.set("train")) <= _MOST_TINY else "small"
    fusion, recipe = presets(preset, epochs=epochs, encoder=encoder)
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


def _train_and_evaluate(
    stages: list[Stage],
    study: Study,
    fusion: FusionConfig,
    recipe: EncoderConfig,
    store: FeatureStore,
    backbone: Backbone,
    folder: Path,
    device: str,
) -> None:
    """Train the encoders and fusion models, evaluate them, and append the stages."""
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
                folder=folder / "models",
                **shared,
            )
            count["n"] = len(models[name][0].history) * len(study.set("train"))
    with measured(stages, "evaluation") as count:
        evaluate_ood(models, study)
        count["n"] = len(models) * sum(len(stimuli) for stimuli, *_ in evaluation_sets(study))


def stage_table(stages: Sequence[Stage]) -> str:
    """Return the stages as a Markdown table.

    Parameters
    ----------
    stages : sequence of Stage
        The stages.

    Returns
    -------
    str
        One row per stage, and one for their sum.
    """
    lines = [
        "| stage | images (n) | seconds | images/s | peak memory, MB | peak GPU memory, MB |",
        "|---|--:|--:|--:|--:|--:|",
    ]
    for s in stages:
        gpu = f"{s.gpu_mb:.0f}" if s.gpu_mb else "-"
        rate = f"{s.seconds:.2f} | {s.n / s.seconds:.0f}"
        lines.append(f"| {s.name} | {s.n} | {rate} | {s.memory_mb:.0f} | {gpu} |")
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
        Study whose backbone is measured.
    device : {"cpu", "cuda"}
        Device on which to compute.
    sizes : sequence of int
        Heights (and widths) of the images in pixels.
    n : int
        Number of repetitions; medians are shown.
    extraction : float
        Images per second of the whole feature extraction at the image size of the study, which is
        shown beside the forward pass alone.

    Returns
    -------
    str
    """
    spec = study.backbone
    lines = [
        "| pixels | number type | images/s | lowest to highest | n | GFLOP per image "
        "| product, GFLOP/s | share of it |",
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
            costs = f"{work / 1e9:.3g} | {np.median(ceilings) / 1e9:.0f}"
            span = f"{np.median(rates):.1f} | {rates.min():.1f} to {rates.max():.1f}"
            lines.append(f"| {size} | {dtype} | {span} | {n} | {costs} | {share:.2f} |")
            if size == spec.image_size and dtype == "float32":
                whole = extraction * work / float(np.median(ceilings))
                label = f"{dtype}, from images to the store | {extraction:.1f}"
                lines.append(f"| {size} | {label} | | 1 | {costs} | {whole:.2f} |")
    return "\n".join(lines)


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line.

    Parameters
    ----------
    arguments : sequence of str, optional
        Arguments; by default those of the process.

    Returns
    -------
    int
        Exit code: 0, or 2 after an error of the user.
    """
    parser = argparse.ArgumentParser(
        prog="python tests/benchmarks/bench_stages.py", description=(__doc__ or "").split("\n")[0]
    )
    parser.add_argument(
        "--study", default="planted", help="planted, demo, or a folder with a subject"
    )
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument(
        "--sizes",
        type=int,
        nargs="*",
        help="heights of square images in pixels (default: the image size of the study)",
    )
    parser.add_argument(
        "--epochs", type=int, default=0, help="epochs of the fusion training (0: the preset's)"
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
        parts = [
            f"# {study.name} on {device}\n",
            f"{study.description}\n",
            f"{describe_machine()}, torch {versions()['torch']}, revision {code_revision()}\n",
            stage_table(stages),
            f"\nForward pass of {study.backbone.name}, medians of n repetitions, measured "
            f"alternately with a product of {PRODUCT}:\n",
            backbone_table(study, device, sizes, options.n, extraction),
        ]
        if not bf16_pays(device):
            parts.append("\nbfloat16 is not faster on this device and is left out.")
        text = "\n".join(parts)
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
