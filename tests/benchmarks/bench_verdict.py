"""Level, coverage and power of the crossed test on simulated correctness, beside other methods.

    OMP_NUM_THREADS=1 python tests/benchmarks/bench_verdict.py grid.csv [--images 20 100]
    [--settings 0 1 2] [--tables 2000] [--named]
    python tests/benchmarks/bench_verdict.py studies.csv --studies 1000
    python tests/benchmarks/bench_verdict.py subjects.csv --subjects
    python tests/benchmarks/bench_verdict.py pooled.csv --pooled
    python tests/benchmarks/bench_verdict.py grid.csv --page tests/benchmarks/verdict.md

The first form simulates every cell of the grid and appends one line per cell; ``--named`` does the
twelve named cells with 20,000 tables each and the slow methods on a few of them. The second form
simulates whole studies in which all models are alike, and counts those in which the rows of
`compare_models` or the sentences of a report claim a difference. The third form has several
subjects as a third factor, the fourth form pools results of single subjects. The last form writes the page. It ends with 1 if a cell fails: if the lower 99 % bound (Clopper-Pearson) of its
error rate exceeds the nominal one.

Correctness of model m, seed s and image i is drawn with a probability whose logit is intercept +
difficulty of the image (sd 1, shared by both models) + effect of model x image (sd 0 or 1) + effect
of the seed (its sd is an axis of the grid). The truth is the difference expected over seeds and
images; with one seed, that of the two models at hand over images.
"""

from __future__ import annotations

import argparse
import csv
import dataclasses
import itertools
import sys
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pandas as pd
from scipy.optimize import brentq
from scipy.stats import beta, norm, t

from bmfl_lab.evaluation import compare_models
from bmfl_lab.evaluation.findings import comparisons, findings
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.metrics.statistics import (
    _Crossed,
    _crossed_p,
    _summarise,
    _summarise_subjects,
    crossed_mean,
    holm,
    mean_over_subjects,
)

SEEDS = (1, 2, 3, 5, 10)
IMAGES = (20, 100, 400, 1000, 10000)
SPREADS = (0.0, 0.1, 0.3, 0.5)
ACCURACIES = (0.1, 0.5, 0.9, 0.99)
SETTINGS = ((0.0, 0.0), (1.0, 0.0), (1.0, 0.5))
"""Pairs of (sd of model x image, difference of the models' intercepts), in logits."""
LEVELS = (0.05, 0.05 / 13)
NAMED = (
    (1, 100, 0.0, 0.5),
    (1, 400, 0.3, 0.9),
    (2, 400, 0.3, 0.5),
    (2, 1000, 0.5, 0.5),
    (3, 100, 0.5, 0.9),
    (3, 400, 0.3, 0.5),
    (3, 1000, 0.3, 0.9),
    (3, 10000, 0.1, 0.5),
    (5, 400, 0.5, 0.5),
    (5, 1000, 0.3, 0.9),
    (10, 400, 0.5, 0.5),
    (10, 1000, 0.3, 0.99),
)
"""Cells (seeds, images, sd of seeds, accuracy) with 20,000 tables each."""
POINTS, WEIGHTS = np.polynomial.hermite_e.hermegauss(101)
CELL = "n_seeds n_images seed_sd accuracy image_sd effect tables".split()
METHODS = ("crossed", "satterthwaite", "t over seeds")
SLOW = ("bootstrap of seeds and images", "mixed model (statsmodels)")


def mean_at(logit: np.ndarray, sd: float) -> np.ndarray:
    """Return the mean probability of a normal logit, for each mean given."""
    shifted = np.asarray(logit)[..., None] + sd * POINTS
    return (WEIGHTS / WEIGHTS.sum() / (1 + np.exp(-shifted))).sum(-1)


def simulate(
    random: np.random.Generator,
    tables: int,
    n_seeds: int,
    n_images: int,
    seed_sd: float,
    accuracy: float,
    image_sd: float,
    effect: float,
) -> Iterator[tuple[np.ndarray, np.ndarray, np.ndarray, np.ndarray]]:
    """Yield batches: correctness of two models (tables, seeds, images), and the truth of each."""
    total = np.sqrt(1 + image_sd**2 + seed_sd**2)
    base = brentq(lambda logit: mean_at(logit, total) - accuracy, -40, 40)
    step = max(1, 1_000_000 // (n_seeds * n_images))
    for start in range(0, tables, step):
        count = min(step, tables - start)
        hard = random.standard_normal((count, 1, n_images), np.float32)
        correct, truth = [], []
        for logit in (base + effect, base):
            of_seed = seed_sd * random.standard_normal((count, n_seeds, 1), np.float32)
            of_image = hard + image_sd * random.standard_normal((count, 1, n_images), np.float32)
            odds = np.exp(-(np.float32(logit) + of_image)) * np.exp(-of_seed)
            drawn = random.random((count, n_seeds, n_images), np.float32)
            correct.append(drawn * (1 + odds) < 1)
            if n_seeds == 1:
                truth.append(mean_at(logit + of_seed[:, 0, 0], np.sqrt(1 + image_sd**2)))
            else:
                truth.append(np.full(count, mean_at(logit, total)))
        yield *correct, *truth


def crossed(table: _Crossed, at: np.ndarray, kind: str) -> np.ndarray:
    """Return the library's p values, in pieces that fit the cache.

    A table whose p value exceeds the level even if its seeds did not differ keeps that p value.
    """
    arrays = {f.name: getattr(table, f.name) for f in dataclasses.fields(table)}
    arrays = {k: v for k, v in arrays.items() if isinstance(v, np.ndarray)}
    p = _crossed_p(dataclasses.replace(table, seed=np.zeros(len(at))), at, kind)
    (open_tables,) = np.nonzero(p <= LEVELS[0])
    for start in range(0, len(open_tables), 32):
        some = open_tables[start : start + 32]
        part = dataclasses.replace(table, **{k: v[some] for k, v in arrays.items()})
        p[some] = _crossed_p(part, at[some], kind)
    return p


def satterthwaite(table: _Crossed, at: np.ndarray) -> np.ndarray:
    """Return p values of the t test whose degrees of freedom are Satterthwaite's."""
    parts = np.stack([table.seed, table.stimulus, table.rest])
    s, n = table.n_seeds - 1, table.n - 1
    freedom = np.array([max(s, 1), n, max(s * n, 1)])[:, None]
    total = np.maximum(parts[0] + parts[1] - parts[2], np.maximum(parts[0], parts[1]))
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(table.mean - at) / np.sqrt(total)
        df = total**2 / (parts**2 / freedom).sum(0)
    return np.where(np.isnan(z), 1, 2 * t.sf(z, np.where(np.isfinite(df), df, 1)))


def t_over_seeds(table: _Crossed, at: np.ndarray) -> np.ndarray:
    """Return p values of the t test over the differences of single seeds; images are fixed."""
    with np.errstate(divide="ignore", invalid="ignore"):
        z = np.abs(table.mean - at) / np.sqrt(table.seed)
    return np.where(np.isnan(z), 1, 2 * t.sf(z, max(table.n_seeds - 1, 1)))


def bootstrap(random: np.random.Generator, d: np.ndarray, n_boot: int = 500) -> np.ndarray:
    """Return p values of zero, counting resamples of seeds and images, shape (n_tables,)."""
    n_seeds, n = d.shape[1:]
    found = []
    for one in d:
        images = random.multinomial(n, np.full(n, 1 / n), size=n_boot) / n
        seeds = random.multinomial(n_seeds, np.full(n_seeds, 1 / n_seeds), size=n_boot) / n_seeds
        means = ((images @ one.T) * seeds).sum(1)
        found.append(2 * min((means <= 0).mean(), (means >= 0).mean()))
    return np.array(found)


def mixed_model(d: np.ndarray) -> np.ndarray:
    """Return Wald p values of REML with crossed random effects of seeds and images."""
    import warnings

    from statsmodels.regression.mixed_linear_model import MixedLM, VCSpec

    n_seeds, n = d.shape[1:]
    spec = VCSpec(
        ["seed", "image"],
        [[[f"s{k}" for k in range(n_seeds)]], [[f"i{k}" for k in range(n)]]],
        [[np.kron(np.eye(n_seeds), np.ones((n, 1)))], [np.kron(np.ones((n_seeds, 1)), np.eye(n))]],
    )
    found = []
    for one in d:
        alone = np.ones(one.size)
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            model = MixedLM(one.ravel(), alone[:, None], alone, exog_vc=spec)
            fit = model.fit(reml=True, method="powell")
        found.append(2 * norm.sf(abs(fit.params[0] / fit.bse_fe[0])))
    return np.array(found)


def cell(tables: int, *place: float) -> dict[str, float]:
    """Return the error rates, and the power where there is an effect, of one cell of the grid."""
    random = np.random.default_rng([int(100 * x) for x in place])
    p_of: dict[tuple[str, str], list[np.ndarray]] = {}
    n_seeds = place[0]
    for a, b, truth_a, truth_b in simulate(random, tables, *place):
        table = _summarise(a.astype(np.float32) - b)
        zero, truth = np.zeros(len(a)), truth_a - truth_b
        for what, at in (("error", truth), ("power", zero)):
            if what == "power" and place[-1] == 0:
                continue
            values = (
                crossed(table, at, "difference"),
                satterthwaite(table, at),
                t_over_seeds(table, at),
            )
            for name, p in list(zip(METHODS, values))[: 2 if n_seeds == 1 else 3]:
                p_of.setdefault((name, what), []).append(p)
        single = _summarise(a.astype(np.float32))
        p_of.setdefault(("accuracy", "error"), []).append(crossed(single, truth_a, "correct"))
    row = dict(zip(CELL, (*place, tables)))
    for (name, what), parts in p_of.items():
        p = np.concatenate(parts)
        for k, level in enumerate(LEVELS):
            row[f"{name} {what} {k}"] = int((p <= level).sum())
    return row


def slow_cell(tables: int, *place: float) -> dict[str, float]:
    """Return error rates at .05 of the methods that take long, on few tables."""
    random = np.random.default_rng([1, *(int(100 * x) for x in place)])
    a, b, _, _ = next(simulate(random, tables, *place))
    d = a.astype(np.float64) - b
    table = _summarise(d)
    p = {
        METHODS[0]: crossed(table, np.zeros(tables), "difference"),
        METHODS[1]: satterthwaite(table, np.zeros(tables)),
        SLOW[0]: bootstrap(random, d),
    }
    try:
        p[SLOW[1]] = mixed_model(d)
    except ImportError:
        print("statsmodels is not installed: no mixed model")
    row = dict(zip(CELL, (*place, tables)))
    return row | {f"{name} slow 0": int((v <= LEVELS[0]).sum()) for name, v in p.items()}


SUBJECTS, SUBJECT_SPREADS = (2, 3, 5, 8), (0.0, 0.3, 0.6)


def subject_tables(
    random: np.random.Generator,
    tables: int,
    n_subjects: int,
    n_seeds: int,
    n: int,
    sd: float,
    shared: bool,
) -> np.ndarray:
    """Return differences in correctness, shape (tables, subjects, seeds, images), of mean zero.

    The first model reads the responses of a subject, whose effect has the spread `sd`; the other
    reads none and is the same for all subjects if these share their images. All effects are normal
    logits with mean zero, so that both models are right in half of the cases. With one seed the
    trained models themselves are alike.
    """
    shape = (tables, n_subjects, n_seeds, n)
    hard = random.standard_normal((tables, 1 if shared else n_subjects, 1, n))
    favoured = 0.5 * random.standard_normal((2, *hard.shape))
    seed = 0.2 * (n_seeds > 1) * random.standard_normal((2, tables, 1, n_seeds, 1))
    own = sd * random.standard_normal((tables, n_subjects, 1, 1))
    first, second = (
        1 / (1 + np.exp(-(hard + f + s + o))) for f, s, o in zip(favoured, seed, (own, 0))
    )
    alone = random.random(second.shape if shared else shape) < second
    return (random.random(shape) < first) * 1.0 - alone


def subject_cell(tables: int, *place: float) -> dict[str, float]:
    """Return the error rates of one cell with subjects: (subjects, seeds, images, sd, shared)."""
    random = np.random.default_rng([2, *(int(100 * x) for x in place)])
    row = dict(zip(("n_subjects", "n_seeds", "n_images", "subject_sd", "shared"), place))
    p = []
    for start in range(0, tables, 10):
        count = min(10, tables - start)
        table = _summarise_subjects(subject_tables(random, count, *place), bool(place[-1]))
        p.append(_crossed_p(table, np.zeros(count), "difference"))
    errors = {f"error {k}": int((np.concatenate(p) <= v).sum()) for k, v in enumerate(LEVELS)}
    return row | {"tables": tables} | errors


def pooled_cell(tables: int, *place: float) -> dict[str, float]:
    """Return the error rate where only each subject's difference and interval are left."""
    random = np.random.default_rng([3, *(int(100 * x) for x in place)])
    row = dict(zip(("n_subjects", "n_seeds", "n_images", "subject_sd", "shared"), place))
    wrong = 0
    for _ in range(tables):
        (people,) = subject_tables(random, 1, *place)
        each = [crossed_mean(values, kind="difference")[0] for values in people]
        errors = [(interval.high - interval.low) / (2 * 1.96) for interval in each]
        values = np.array([interval.value for interval in each])
        wrong += mean_over_subjects(values, np.array(errors), int(place[2]))[1] <= LEVELS[0]
    return row | {"tables": tables, "error 0": wrong}


MODELS = ("backbone", "concat", "fusion", "attributes")
N_SETS = 13


def null_study(random: np.random.Generator, n_seeds: int, n: int = 400) -> OODResult:
    """Return the results of models that are alike: one test set, its shifts, and one other set.

    Shifts share the images of the test set, and half of the variance of seeds (.3 logit) is shared
    by all sets. Images favour one model (sd 1 logit) in half of the studies. With one seed the
    trained models themselves are alike.
    """
    seed_sd = 0.3 * (n_seeds > 1) / np.sqrt(2)
    image_sd, accuracy = random.integers(2), random.uniform(0.3, 0.95)
    base = np.log(accuracy / (1 - accuracy)) + random.normal(0, 0.5, N_SETS)
    hard = np.repeat(random.standard_normal((2, n)), (N_SETS - 1, 1), axis=0)
    frames = []
    for model in MODELS:
        favoured = image_sd * random.standard_normal((2, n))
        of_image = hard + np.repeat(favoured, (N_SETS - 1, 1), axis=0)
        of_seed = seed_sd * random.standard_normal((n_seeds, N_SETS))
        of_seed += seed_sd * random.standard_normal((n_seeds, 1))
        logit = base[:, None] + of_image - of_seed[..., None]
        seed, place, image = np.indices(logit.shape).reshape(3, -1)
        frame = {
            "model": model,
            "seed": seed,
            "split": np.where(place < N_SETS - 1, "test", "other"),
            "shift": np.where(place % (N_SETS - 1), np.char.add("shift ", place.astype(str)), ""),
            "severity": None,
            "id": image,
            "correct": (random.random(logit.shape) * (1 + np.exp(-logit)) < 1).ravel(),
        }
        frames.append(pd.DataFrame(frame))
    return OODResult([], pd.concat(frames, ignore_index=True))


def claims(result: OODResult) -> dict[str, bool]:
    """Return whether a study claims a difference: anywhere, in its primary comparison, in words.

    The comparisons are those of notebook 03. Where nothing is declared primary, all are adjusted
    together.
    """
    found, pair = {}, ("fusion", "backbone")
    rows = compare_models(result, pair[1], also=[("fusion", "attributes")], primary=pair)
    differences = [r for r in rows if r.name == "accuracy_difference"]
    together = [
        dataclasses.replace(r, p_adjusted=float(p), family="all comparisons")
        for r, p in zip(differences, holm([r.p for r in differences]))
    ]
    for kind, kept in (("declared", differences), ("none declared", together)):
        frame = pd.DataFrame([vars(r) for r in kept]).assign(study="null", run="null")
        table = comparisons(frame)
        claimed = table["verdict"].isin(["better", "worse"])
        first = (table["first"] == pair[0]) & (table["second"] == pair[1])
        found[f"any, primary {kind}"] = bool(claimed.any())
        found[f"fusion against backbone, primary {kind}"] = bool(claimed[first].any())
        said = [line for line in findings(frame) if " against " in line]
        assert any("better on" in s or "worse on" in s for s in said) == claimed.any(), said
    notes = any(" is better than " in r.notes for r in differences)
    assert notes == found["any, primary declared"], differences
    return found


def null_studies(n_studies: int, n_seeds: int, first: int = 0) -> dict[str, float]:
    """Return how many of `n_studies` null studies claim something."""
    row: dict[str, float] = {"n_seeds": n_seeds, "studies": n_studies}
    for k in range(first, first + n_studies):
        study = null_study(np.random.default_rng([15, n_seeds, k]), n_seeds)
        for name, claimed in claims(study).items():
            row[name] = row.get(name, 0) + claimed
    return row


def lower(count: np.ndarray, tables: np.ndarray) -> np.ndarray:
    """Return the lower 99 % bound (Clopper-Pearson) of a share."""
    return np.where(count > 0, beta.ppf(0.005, np.maximum(count, 1), tables - count + 1), 0)


def append(path: Path, row: dict[str, float]) -> None:
    with path.open("a", newline="") as file:
        csv.writer(file).writerow([f"{k}={v}" for k, v in row.items()])


def read(path: Path) -> list[dict[str, float]]:
    with path.open(newline="") as file:
        return [{k: float(v) for k, v in (c.split("=") for c in row)} for row in csv.reader(file)]


def main() -> int:
    parser = argparse.ArgumentParser()
    parser.add_argument("file", type=Path)
    parser.add_argument("--images", type=int, nargs="*", default=IMAGES)
    parser.add_argument("--settings", type=int, nargs="*", default=range(len(SETTINGS)))
    parser.add_argument("--tables", type=int, default=2000)
    parser.add_argument("--named", action="store_true")
    parser.add_argument("--studies", type=int)
    parser.add_argument("--subjects", action="store_true")
    parser.add_argument("--pooled", action="store_true")
    parser.add_argument("--seeds", type=int, nargs="*", default=SEEDS[:4])
    parser.add_argument("--page", type=Path)
    options = parser.parse_args()
    if options.page:
        return page(read(options.file), options.page)
    if options.subjects:
        for place in itertools.product(SUBJECTS, (1, 3, 5), (100, 400), SUBJECT_SPREADS, (0, 1)):
            append(options.file, subject_cell(options.tables, *place))
        return 0
    if options.pooled:
        for place in itertools.product(SUBJECTS, (1, 3), (100,), SUBJECT_SPREADS, (0, 1)):
            append(options.file, pooled_cell(options.tables, *place))
        return 0
    if options.studies:
        for n_seeds in options.seeds:
            append(options.file, null_studies(options.studies, n_seeds))
        return 0
    if options.named:
        for place in NAMED:
            append(options.file, cell(20_000, *place, 1.0, 0.0))
        for place in ((2, 100, 0.3, 0.5), (3, 100, 0.3, 0.5), (5, 100, 0.3, 0.5)):
            append(options.file, slow_cell(200, *place, 1.0, 0.0))
        return 0
    for n, setting in itertools.product(options.images, options.settings):
        for s, sd, accuracy in itertools.product(SEEDS, SPREADS, ACCURACIES):
            append(options.file, cell(options.tables, s, n, sd, accuracy, *SETTINGS[setting]))
    return 0


def rate(rows: list[dict[str, float]], key: str) -> str:
    """Return the highest rate in per cent over cells, or a dash."""
    found = [100 * r[key] / r["tables"] for r in rows if key in r]
    return f"{max(found):.2f}" if found else "–"


def mean_rate(rows: list[dict[str, float]], key: str) -> str:
    found = [100 * r[key] / r["tables"] for r in rows if key in r]
    return f"{np.mean(found):.1f}" if found else "–"


def failures(rows: list[dict[str, float]], key: str, level: float) -> int:
    kept = [r for r in rows if key in r]
    counts, tables = np.array([[r[key], r["tables"]] for r in kept]).reshape(-1, 2).T
    return int((lower(counts, tables) > level).sum())


def table_of(head: list[str], lines: list[list[str]]) -> str:
    rows = [head, ["---"] * len(head), *lines]
    return "\n".join("| " + " | ".join(map(str, row)) + " |" for row in rows)


def page(rows: list[dict[str, float]], to: Path) -> int:
    """Write the page of results; return 1 if a cell fails, else 0."""
    slow = [r for r in rows if f"{METHODS[0]} slow 0" in r]
    grid = [r for r in rows if r not in slow and r["tables"] < 20_000]
    named = [r for r in rows if r["tables"] == 20_000]
    keys = [(m, "error", k) for m in (*METHODS, "accuracy") for k in (0, 1)]
    bad = sum(
        failures(part, f"{m} {what} {k}", LEVELS[k])
        for part in (grid, named)
        for m, what, k in keys
        if m == METHODS[0] or (m, k) == ("accuracy", 0)
    )
    whole = []
    for method, what, k in keys:
        if (method, k) != ("accuracy", 1):
            key = f"{method} {what} {k}"
            level = ("5 %", "0.385 %")[k]
            kept = [r for r in grid if key in r]
            line = [method, level, failures(grid, key, LEVELS[k]), len(kept), rate(kept, key)]
            whole.append(line)
    by_seeds = []
    for s in SEEDS:
        for n in IMAGES:
            mine = [r for r in grid if r["n_seeds"] == s and r["n_images"] == n]
            planted = [r for r in mine if r["effect"] > 0 and r["accuracy"] in (0.5, 0.9)]
            if mine:
                errors = [rate(mine, f"{m} error {k}") for m in METHODS[:2] for k in (0, 1)]
                power = [mean_rate(planted, f"{m} power {k}") for k in (0, 1) for m in METHODS]
                by_seeds.append([s, n, *errors, rate(mine, "accuracy error 0"), *power])
    twelve = [
        [
            *(f"{r[c]:g}" for c in CELL[:4]),
            *(
                f"{100 * r[f'{m} error {k}'] / r['tables']:.3f}"
                for m in METHODS[:2]
                for k in (0, 1)
            ),
        ]
        for r in named
    ]
    few = [
        [
            *(f"{r[c]:g}" for c in CELL[:4]),
            *(f"{100 * r[f'{m} slow 0'] / r['tables']:.1f}" for m in (*METHODS[:2], *SLOW)),
        ]
        for r in slow
    ]
    cells = ["seeds", "images", "sd of seeds (logit)", "accuracy"]
    to.write_text(
        HEAD.format(n_cells=len(grid), bad=bad)
        + table_of(["method", "level", "cells that fail", "cells", "highest error, %"], whole)
        + BY_SIZE
        + table_of(
            [
                "seeds",
                "images",
                *(f"{m} {level}" for m in METHODS[:2] for level in ("5 %", "0.385 %")),
                "accuracy interval 5 %",
                *(f"power {level}, {m}" for level in ("5 %", "0.385 %") for m in METHODS),
            ],
            by_seeds,
        )
        + TWELVE
        + table_of([*cells, *(f"{m} {v}" for m in METHODS[:2] for v in ("5 %", "0.385 %"))], twelve)
        + FEW
        + table_of([*cells, *METHODS[:2], *SLOW], few)
        + "\n",
        encoding="utf-8",
    )
    print(f"{len(grid)} cells of the grid, {len(named)} named: {bad} failures")
    return int(bad > 0)


HEAD = """# Level, coverage and power of the comparison of two models

Correctness was simulated with known truth (`bench_verdict.py` describes how). The errors are those of
`crossed_mean(kind="difference")`, the test behind every "better" and "worse", and of
`accuracy_interval`; beside it stand the t test with Satterthwaite's degrees of freedom and the t
test over seeds. An error is a p value of the true difference at or below the level. Where both
models are alike this is the size of the test, and everywhere it is one minus the coverage of the
interval. With one seed the truth is that of the two trained models at hand.

The grid has {n_cells} cells of 2,000 tables: seeds 1, 2, 3, 5, 10; images 20 to 10,000; standard deviation
of the seeds 0, .1, .3, .5 logits; accuracy .1, .5, .9, .99; images that favour one model (sd 0 or 1 logit),
and a true difference of 0 or .5 logits (for 10,000 images: sd 1 and no difference only). Tables
without any disagreement have a t interval of width zero, which is why Satterthwaite's misses the
truth so often at 20 images. A cell
fails if the lower 99 % bound (Clopper-Pearson) of its error exceeds the level. 0.385 % is
5 % / 13, the level of the smallest p value in a family of 13 image sets.

Failures of the crossed test and of the accuracy interval, named cells included: **{bad}**.

"""
BY_SIZE = """

## By size of the study

Errors are the highest of all cells of that size, in per cent; with 2,000 tables per cell, and up to
48 cells per line, chance alone lifts the highest by about one point at 5 % and .4 at 0.385 %. Power is the
mean over the cells with a true difference of .5 logits and an accuracy of .5 or .9, in per cent.

"""
TWELVE = """

## Twelve cells with 20,000 tables each

Both models alike, images that favour one model (sd 1 logit); errors in per cent.

"""
FEW = """

## Methods that take long

200 tables per cell, errors at 5 %, in per cent (the standard error is about 1.5 points).

"""


if __name__ == "__main__":
    sys.exit(main())
