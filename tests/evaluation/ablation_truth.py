"""The ablation on planted studies, where the truth names the region; many of them, resumable, with exact intervals.

    python tests/evaluation/ablation_truth.py FOLDER N_STUDIES [FIRST_SEED]

adds studies to ``FOLDER/studies.jsonl`` until there are N_STUDIES, and prints what they say
together. Their seeds begin at FIRST_SEED (0): choose it before a result is known.
"""

from __future__ import annotations

import json
import sys
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.study import load_study
from bmfl_lab.evaluation.ablation import MODES, AblationResult, ablate_regions
from bmfl_lab.training import LoopConfig
from bmfl_lab.training.compare import ablation_trainer
from bmfl_lab.training.recipes import tiny

LOOP = LoopConfig(epochs=10, batch_size=32, lr=5e-3, weight_decay=0.05)
ROIS = ("V1", "V2", "V3", "hV4", "LO", "FFC", "PHA")
SEEDS = (0, 1, 2, 3, 4)
N_REGIONS = 4


def ablate(
    folder: Path,
    *,
    seed: int = 0,
    epochs: int = 10,
    n_test: int = 120,
    regions_of: Callable[[Atlas], Atlas] = lambda atlas: atlas,
    **options: Any,
) -> AblationResult:
    """Ablate a planted study with the true responses in place of an encoder's, in and out of distribution.

    ``regions_of`` may give the vertices of the planted atlas other regions.
    """
    planted = {k: options.pop(k) for k in ("signal_roi", "carries") if k in options}
    sizes = {
        "n_encoder": 60,
        "n_encoder_val": 20,
        "n_encoder_test": 20,
        "n_test": n_test,
        "n_ood": n_test,
    }
    study = load_study("planted", seed=seed, **sizes, **planted)
    respond = study.subject().truth["respond"]

    images = {s.ids[i]: s.image(i) for s in study.sets.values() for i in range(len(s))}

    def truth(tokens, ids):
        return respond(np.stack([images[i] for i in ids]))

    config = tiny(kind="pooled:4", loop=configs.replace(LOOP, epochs=epochs))
    atlas = study.subject().atlas
    train = ablation_trainer(
        config, study, brain=truth, atlas=atlas, store=FeatureStore(folder), device="cpu"
    )
    chosen = {"sets": ("test", "recoloured"), "shifts": (), "seed": seed, **options}
    atlas = regions_of(atlas)
    return ablate_regions(study, train, atlas, ceiling=study.subject().noise_ceiling, **chosen)


def one_study(seed: int) -> dict[str, Any]:
    """Return what is named in a study where one region carries the class, and in its twin where none does."""
    signal = ROIS[seed % len(ROIS)]
    step = 1 + (seed // len(ROIS)) % 3  # other neighbours are asked about in each round
    regions = tuple(ROIS[(seed + step * k) % len(ROIS)] for k in range(N_REGIONS))
    found: dict[str, Any] = {"seed": seed, "signal": signal, "regions": regions}
    for kind, options in (
        ("carried", {"signal_roi": signal}),
        ("null", {"carries": False, "signal_roi": signal}),
    ):
        with tempfile.TemporaryDirectory() as folder:
            result = ablate(Path(folder), seed=seed, seeds=SEEDS, regions=regions, **options)
        table = result.table()
        found[kind] = {mode: list(result.named(mode)) for mode in MODES}
        columns = ["mode", "region", "split", "effect", "low", "high", "p_holm"]
        found[f"{kind}_effects"] = table[columns].round(5).to_dict("records")
    return found


def sweep(folder: str | Path, n_studies: int, first: int = 0) -> list[dict[str, Any]]:
    """Return `n_studies` studies, those in the folder already and the rest computed now."""
    path = Path(folder) / "studies.jsonl"
    path.parent.mkdir(parents=True, exist_ok=True)
    done = [json.loads(line) for line in path.read_text().splitlines()] if path.is_file() else []
    for seed in range(first + len(done), first + n_studies):
        done.append(one_study(seed))
        with path.open("a") as file:
            file.write(json.dumps(done[-1]) + "\n")
    return done[:n_studies]


def exact(count: int, n: int) -> str:
    """Return a share with its exact (Clopper-Pearson) 95 % interval."""
    from scipy.stats import binomtest

    ends = binomtest(count, n).proportion_ci(method="exact")
    return f"{count} of {n} [{ends.low:.3f}, {ends.high:.3f}]"


def summary(studies: list[dict[str, Any]]) -> dict[str, dict[str, tuple[int, int]]]:
    """Return, by mode, counts of errors and of chances for them.

    ``missed``: the region that carries the class is not named. ``wrong``: another one is.
    ``named_in_null``: a region is named, in a study where none carries the class: the family-wise
    error. ``outside``: intervals of single effects of those studies without zero, before any
    adjustment.
    """
    found = {}
    # a study that was written before a mode existed does not answer it
    for mode in (m for m in MODES if all(m in s["carried"] for s in studies)):
        effects = [e for s in studies for e in s["null_effects"] if e["mode"] == mode]
        n = len(studies)
        found[mode] = {
            "missed": (sum(s["signal"] not in s["carried"][mode] for s in studies), n),
            "wrong": (sum(bool(set(s["carried"][mode]) - {s["signal"]}) for s in studies), n),
            "named_in_null": (sum(bool(s["null"][mode]) for s in studies), n),
            "outside": (sum(e["low"] > 0 or e["high"] < 0 for e in effects), len(effects)),
        }
    return found


if __name__ == "__main__":
    for name, counts in summary(sweep(sys.argv[1], *map(int, sys.argv[2:4]))).items():
        print(name, {k: exact(*v) for k, v in counts.items()}, flush=True)
