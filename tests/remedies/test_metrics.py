"""The remedies of `bmfl_lab.metrics`, each followed."""

import re

import numpy as np
import pytest
from following import follows

from bmfl_lab.errors import BmflError
from bmfl_lab.metrics import (
    RDMs,
    StreamingPearson,
    accuracy,
    calibration,
    ceiling_from_repeats,
    cka,
    coarse_decision,
    compare,
    compare_rdms,
    corruption_error,
    error_consistency,
    fit_robustness_line,
    holm,
    mask_classes,
    noise_ceiling,
    noise_normalised,
    pearson,
    permutation_rsa,
    rdm,
    shape_bias,
)
from bmfl_lab.metrics.cka import minibatch_cka
from bmfl_lab.metrics.classification import ALEXNET_ERRORS, top_k_accuracy
from bmfl_lab.metrics.noise import ceiling_from_ncsnr
from bmfl_lab.metrics.power import detectable_difference
from bmfl_lab.metrics.rsa import condense, expand
from bmfl_lab.metrics.rsa_inference import bootstrap_rsa, similarity_samples
from bmfl_lab.metrics.statistics import (
    bootstrap_mean,
    crossed_bootstrap,
    crossed_mean,
    seed_mean,
)


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


def offered(call):
    """Return the values in quotation marks that the message of a failing call expects."""
    with pytest.raises(BmflError) as caught:
        call()
    return re.findall("'(.+?)'", str(caught.value).partition("; got")[0])


@follows(
    (
        "metrics/behaviour.py",
        "give at least one column of `logits` per category (people.decide does it by wnid)",
    )
)
def test_a_category_without_columns(folder, env):
    groups = {"cat": [], "dog": [0, 2]}
    yield lambda: coarse_decision(draw(5, 3), groups)
    groups["cat"] = [1]


@follows(
    ("metrics/behaviour.py", "pair them by image"),
    ("metrics/behaviour.py", "pair them by image"),
)
def test_observers_of_other_images(folder, env):
    decided, shape = {"b": "cat", "a": "dog"}, {"a": "cat", "b": "cat", "c": "dog"}
    cues = [list(decided.values()), list(shape.values())]
    yield lambda: shape_bias(cues[-2], cues[-1], ["car"] * len(cues[-1]))
    cues += [[decided[i] for i in sorted(decided)], [shape[i] for i in sorted(decided)]]
    assert shape_bias(cues[-2], cues[-1], ["car"] * 2) == 1
    first, second = {"a": True, "b": False}, {"c": True, "b": False, "a": True}
    right = [list(first.values()), list(second.values())]
    yield lambda: error_consistency(right[-2], right[-1])
    right += [[first[i] for i in first], [second[i] for i in first]]


@follows(
    ("metrics/cka.py", "pair the representations by stimulus id, at least {} of them"),
    ("metrics/cka.py", "drop or mask those units"),
    ("metrics/cka.py", "give batches of at least 4 stimuli"),
)
def test_representations_that_cka_cannot_compare(folder, env):
    ids, others, X, Y = list("abcdef"), list("fedcb"), draw(6, 3), draw(5, 4)
    pairs = [(X, Y)]
    remedy = yield lambda: cka(*pairs[-1])
    shared = [s for s in ids if s in others]
    assert len(shared) >= int(re.search(r"at least (\d)", remedy)[1])
    pairs.append((X[[ids.index(s) for s in shared]], Y[[others.index(s) for s in shared]]))
    cka(*pairs[-1])
    pairs.append((np.where(np.arange(3) == 1, np.nan, X), X))
    yield lambda: cka(*pairs[-1])
    pairs.append((pairs[-1][0][:, np.isfinite(pairs[-1][0]).all(axis=0)], X))
    cka(*pairs[-1])
    batches = []
    remedy = yield lambda: minibatch_cka(batches)
    size = int(re.search(r"at least (\d)", remedy)[1])
    batches += [(X[:size], X[:size])]


@follows(
    ("metrics/classification.py", "pair each image with its label by stimulus id"),
    ("metrics/classification.py", "give class indices, not names or scores"),
    (
        "metrics/classification.py",
        "drop unlabelled images (-1, -100) and map labels to the head's classes by name",
    ),
)
def test_labels_that_do_not_fit_logits(folder, env):
    ids, label = ["s1", "s2", "s3"], {"s3": 1, "s1": 0, "s2": 2, "s4": 1}
    logits, labels = [draw(3, 3)], [list(label.values())]
    yield lambda: accuracy(logits[-1], labels[-1])
    labels.append([label[s] for s in ids])
    accuracy(logits[-1], labels[-1])
    head = ["cat", "dog", "car"]
    labels.append(["car", "dog", "cat"])
    yield lambda: accuracy(logits[-1], labels[-1])
    labels.append([head.index(name) for name in labels[-1]])
    accuracy(logits[-1], labels[-1])
    of_set = ["boat", "bus", "plane", "dog"]
    labels.append(np.array([3, -1, 3]))
    yield lambda: accuracy(logits[-1], labels[-1])
    known = labels[-1] >= 0
    logits.append(logits[-1][known])
    labels.append([head.index(of_set[i]) for i in labels[-1][known]])


@follows(
    (
        "metrics/classification.py",
        "list the columns of the head, each once; for ImageNet-R and -A see data.ood_sets",
    ),
    ("metrics/classification.py", "choose for example k={}"),
    ("metrics/classification.py", "choose for example k={}"),
    ("metrics/classification.py", "use n_bins=15"),
)
def test_settings_outside_the_head(folder, env):
    logits, labels = draw(4, 3), [0, 1, 2, 0]
    columns = [2, 2, 3]
    yield lambda: mask_classes(logits, columns)
    columns[:] = dict.fromkeys(c for c in columns if c < logits.shape[1])
    mask_classes(logits, columns)
    for wrong in (5, 0):
        k = [wrong]
        remedy = yield lambda k=k: top_k_accuracy(logits, labels, k[-1])
        k.append(int(re.search(r"k=(\d)", remedy)[1]))
        top_k_accuracy(logits, labels, k[-1])
    n_bins = [0]
    remedy = yield lambda: calibration(logits, labels, n_bins[-1])
    n_bins.append(int(re.search(r"n_bins=(\d+)", remedy)[1]))


@follows(
    (
        "metrics/classification.py",
        "evaluate the missing ones; mCE over a part is not comparable",
    )
)
def test_corruptions_that_were_not_evaluated(folder, env):
    errors = {name: dict.fromkeys(range(1, 6), 0.5) for name in ALEXNET_ERRORS}
    del errors["fog"][4]
    yield lambda: corruption_error(errors)
    errors["fog"][4] = 0.6


@follows(
    (
        "metrics/correlation.py",
        "pair them stimulus by stimulus and vertex by vertex; nothing is broadcast",
    ),
    (
        "metrics/correlation.py",
        "correlate over more stimuli: r of two points is always -1 or 1",
    ),
)
def test_responses_that_cannot_be_correlated(folder, env):
    Y, P = [draw(4, 5)], [draw(4)]
    yield lambda: pearson(Y[-1], P[-1])
    P.append(np.tile(P[-1][:, None], Y[-1].shape[1]))
    pearson(Y[-1], P[-1])
    few = [slice(2)]
    yield lambda: pearson(Y[-1][few[-1]], P[-1][few[-1]])
    few.append(slice(3))


@follows(
    ("metrics/correlation.py", "stream batches of one subject only"),
    ("metrics/correlation.py", "update with more batches first"),
)
def test_a_stream_of_two_subjects_and_a_short_one(folder, env):
    batches = {"subj01": draw(2, 5), "subj02": draw(2, 7)}
    stream = StreamingPearson(5)
    chosen = ["subj01", "subj02"]

    def update():
        for name in chosen:
            stream.update(batches[name], batches[name])

    yield update
    chosen.remove("subj02")
    short = StreamingPearson(5).update(draw(2, 5), draw(2, 5))
    yield short.result
    short.update(draw(2, 5), draw(2, 5))


@follows(
    ("metrics/noise.py", "count the repeats that were averaged"),
    ("metrics/noise.py", "give single presentations, not their mean"),
)
def test_repeats_that_give_no_ceiling(folder, env):
    shown = draw(4, 3, 5)
    counts = {0: 4}
    yield lambda: ceiling_from_ncsnr(np.ones(5), counts)
    counts.clear()
    counts[shown.shape[1]] = len(shown)
    ceiling_from_ncsnr(np.ones(5), counts)
    repeats = [shown.mean(axis=1)]
    yield lambda: ceiling_from_repeats(repeats[-1])
    repeats.append(shown)


@follows(
    ("metrics/noise.py", "use the same vertices"),
    (
        "metrics/noise.py",
        "give shares of variance and correlations; divide percentages by 100",
    ),
    ("metrics/noise.py", "choose one of them"),
)
def test_correlations_that_cannot_be_normalised(folder, env):
    r, ceiling, kept = [np.array([0.2, 0.4, 0.1])], [np.array([60.0, 35.0])], [0, 2]
    yield lambda: noise_normalised(r[-1], ceiling[-1] / 100)
    r.append(r[-1][kept])
    noise_normalised(r[-1], ceiling[-1] / 100)
    yield lambda: noise_normalised(r[-1], ceiling[-1])
    ceiling.append(ceiling[-1] / 100)
    convention = ["best"]

    def normalise():
        noise_normalised(r[-1], ceiling[-1], convention[-1])

    names = offered(normalise)
    yield normalise
    for name in names:
        convention.append(name)
        normalise()
    assert len(names) == 2


@follows(
    ("metrics/power.py", "plan for that many or more"),
    ("metrics/power.py", "give fractions, not percentages"),
)
def test_a_study_that_cannot_be_planned(folder, env):
    n_images, accuracy_ = [1], [70.0]

    def plan():
        return detectable_difference(n_images[-1], 1, accuracy_[-1])

    with pytest.raises(BmflError) as caught:
        plan()
    yield plan
    n_images.append(int(re.search(r"at least (\d) images", str(caught.value))[1]))
    yield plan
    accuracy_.append(accuracy_[-1] / 100)
    assert detectable_difference(100, 1, accuracy_[-1]) < 0.3


@follows(
    ("metrics/rdms.py", "give one id per stimulus and one name per RDM"),
    ("metrics/rdms.py", "average repeats first"),
    ("metrics/rdms.py", "choose among the attribute `ids` of these RDMs"),
    ("metrics/rdms.py", "use responses to the same images, with the same id scheme"),
)
def test_rdms_whose_ids_do_not_fit(folder, env):
    patterns, ids, names = [draw(4, 6)], ["a", "b", "c"], ["IT", "V1"]
    yield lambda: RDMs(rdm(patterns[-1]), ids, names)
    ids.append("c")
    names.remove("V1")
    yield lambda: RDMs(rdm(patterns[-1]), ids, names)
    patterns.append(np.stack([*patterns[-1][:2], patterns[-1][2:].mean(axis=0)]))
    ids[:] = sorted(set(ids))
    made = RDMs(rdm(patterns[-1]), ids, names)
    chosen = ["c", "x"]
    yield lambda: made.of(chosen)
    chosen[:] = [s for s in chosen if s in made.ids]
    made.of(chosen)
    other = [RDMs(rdm(draw(4, 5)), [f"{s}.png" for s in "abcd"])]
    yield lambda: compare(made, other[-1])
    other.append(RDMs(other[-1].values, [s.removesuffix(".png") for s in other[-1].ids]))


@follows(
    (
        "metrics/rsa.py",
        "compare RDMs with ids (metrics.compare), which takes the shared stimuli",
    ),
    ("metrics/rsa.py", "stack condensed RDMs of at least three stimuli"),
    ("metrics/rsa.py", "keep only the upper triangle"),
    ("metrics/rsa.py", "leave out the stimuli with constant patterns (RDMs.defined)"),
)
def test_rdms_that_cannot_be_compared(folder, env):
    X = draw(5, 6)
    first, second = RDMs(rdm(X), "abcde"), RDMs(rdm(X[1:]), "bcde")
    calls = [lambda: compare_rdms(first.values, second.values)]
    yield lambda: calls[-1]()
    calls.append(lambda: compare(first, second))
    calls[-1]()
    n = [2]
    yield lambda: compare_rdms(rdm(X[: n[-1]]), rdm(X[: n[-1]]))
    n.append(3)
    compare_rdms(rdm(X[: n[-1]]), rdm(X[: n[-1]]))
    square = expand(rdm(X))
    condensed = [square.ravel()]
    yield lambda: expand(condensed[-1])
    condensed.append(condense(square))
    expand(condensed[-1])
    X[2] = 1
    made = [RDMs(rdm(X), "abcde")]
    yield lambda: compare_rdms(made[-1].values, made[-1].values)
    made.append(made[-1].defined())


@follows(
    ("metrics/rsa.py", "flatten each stimulus to one row, e.g. with X.reshape(len(X), -1)"),
    ("metrics/rsa.py", "give two stimuli or more, as numbers"),
    ("metrics/rsa.py", "drop or mask those units"),
    ("metrics/rsa.py", "give independent presentations, or use metric='correlation'"),
    ("metrics/rsa.py", "give independent presentations, or use metric='correlation'"),
)
def test_patterns_without_an_rdm(folder, env):
    patterns = [draw(4, 2, 3)]
    remedy = yield lambda: rdm(patterns[-1])
    X = patterns[-1]
    patterns.append(eval(re.search(r"with (X.*\))", remedy)[1]))
    rdm(patterns[-1])
    patterns.append(patterns[-1][:1].astype(str))
    yield lambda: rdm(patterns[-1])
    patterns.append(X.reshape(4, 6).astype(str).astype(float))
    rdm(patterns[-1])
    patterns.append(np.where(np.arange(6) == 2, np.inf, patterns[-1]))
    yield lambda: rdm(patterns[-1])
    patterns.append(patterns[-1][:, np.isfinite(patterns[-1]).all(axis=0)])
    rdm(patterns[-1])
    repeats = [None]
    yield lambda: rdm(patterns[-1], "crossnobis", repeats=repeats[-1])
    repeats.append(draw(4, 2, 6))
    rdm(patterns[-1], "crossnobis", repeats=repeats[-1])
    metric = ["crossnobis"]
    remedy = yield lambda: rdm(patterns[-1], metric[-1])
    metric.append(re.search("metric='(.+)'", remedy)[1])


@follows(
    ("metrics/rsa_inference.py", "leave the noise ceiling out, or add subjects"),
    ("metrics/rsa_inference.py", "choose one of them"),
    ("metrics/rsa_inference.py", "use over='stimuli'"),
)
def test_inference_over_one_subject(folder, env):
    subjects, model = [RDMs(draw(6), "abcd")], RDMs(draw(2, 6), "abcd")
    yield lambda: noise_ceiling(subjects[-1])
    subjects.append(RDMs(draw(2, 6), "abcd"))
    noise_ceiling(subjects[-1])
    over = ["images"]

    def resample():
        bootstrap_rsa(model, subjects[-1], over=over[-1], n_boot=3)

    names = offered(resample)
    yield resample
    for name in names:
        over.append(name)
        resample()
    subjects.append(subjects[0])
    remedy = yield resample
    over.append(re.search("over='(.+)'", remedy)[1])


@follows(
    ("metrics/rsa_inference.py", "use 'rho-a'"),
    ("metrics/rsa_inference.py", "use more stimuli"),
    ("metrics/rsa_inference.py", "use more stimuli"),
)
def test_permutations_of_too_few_stimuli_or_too_slow(folder, env):
    X, n, method = draw(5, 6), [3], ["kendall"]

    def permute():
        made = RDMs(rdm(X[: n[-1]]), "abcde"[: n[-1]])
        permutation_rsa(made, made, method=method[-1], n_permutations=3)

    remedy = yield permute
    method.append(re.search("use '(.+)'", remedy)[1])
    yield permute
    n.append(4)
    permute()
    n.append(3)
    yield lambda: similarity_samples(rdm(X[: n[-1]]), rdm(X[: n[-1]]), n_boot=3)
    n.append(4)


@follows(
    ("metrics/statistics.py", "drop or count undefined values first"),
    ("metrics/statistics.py", "stack seeds on axis 0"),
    ("metrics/statistics.py", "use for example level=0.95 and n_boot=2000"),
    ("metrics/statistics.py", "use for example level=0.95 and n_boot=2000"),
)
def test_values_that_cannot_be_resampled(folder, env):
    values, use = [np.array([0.0, 1.0, np.nan])], [{}]
    yield lambda: bootstrap_mean(values[-1], **use[-1])
    values.append(values[-1][np.isfinite(values[-1])])
    bootstrap_mean(values[-1], **use[-1])
    seeds = [np.ones((1, 4)), np.zeros((1, 4))]
    values.append(np.stack(seeds))
    yield lambda: bootstrap_mean(values[-1], **use[-1])
    values.append(np.concatenate(seeds, axis=0))
    assert bootstrap_mean(values[-1]).n_seeds == 2
    for wrong in ({"level": 95}, {"n_boot": 0}):
        use.append(wrong)
        remedy = yield lambda: bootstrap_mean(values[-1], **use[-1])
        level, n_boot = re.search(r"level=(\S+) and n_boot=(\d+)", remedy).groups()
        use.append({"level": float(level), "n_boot": int(n_boot)})


@follows(
    ("metrics/statistics.py", "drop undefined tests before adjusting"),
    ("metrics/statistics.py", "a logit of 0 or 1 is infinite: leave the model out"),
    (
        "metrics/statistics.py",
        "add baselines: a line through fewer says nothing about robustness",
    ),
)
def test_tests_and_models_without_a_value(folder, env):
    p = [0.1, float("nan"), 0.02]
    yield lambda: holm(p)
    p[:] = [value for value in p if np.isfinite(value)]
    holm(p)
    models = [(0.5, 0.3), (0.6, 0.4), (1.0, 0.5)]
    yield lambda: fit_robustness_line(*zip(*models))
    models.pop()
    yield lambda: fit_robustness_line(*zip(*models))
    models.append((0.7, 0.45))


@follows(
    ("metrics/statistics.py", "stack seeds on axis 0, and subjects before them"),
    ("metrics/statistics.py", 'use kind="real" for other values'),
    ("metrics/statistics.py", "drop or count undefined values first"),
)
def test_values_that_cannot_be_tested_over_seeds_and_stimuli(folder, env):
    seeds, kind = [draw(6), draw(6) + 1], ["correct"]
    values = [np.concatenate(seeds)]
    yield lambda: crossed_mean(values[-1], kind=kind[-1])
    values.append(np.stack([np.stack(seeds), np.stack(seeds)]))
    remedy = yield lambda: crossed_mean(values[-1], kind=kind[-1])
    kind.append(re.search('kind="(.+)"', remedy)[1])
    assert crossed_mean(values[-1], kind=kind[-1])[0].n_seeds == 2
    values.append(np.array([[0.1, np.nan, 0.3], [0.2, 0.5, 0.1]]))
    yield lambda: crossed_mean(values[-1], kind=kind[-1])
    values.append(values[-1][:, np.isfinite(values[-1]).all(axis=0)])


@follows(
    ("metrics/statistics.py", "resample the stimuli for every seed alike"),
    ("metrics/statistics.py", "drop or count undefined values first"),
    ("metrics/statistics.py", "give one finite value per seed"),
    ("metrics/statistics.py", "give one finite value per seed"),
)
def test_seeds_without_a_value(folder, env):
    values = draw(3, 8)
    samples = [np.stack([v[np.arange(10) % 8] for v in values[:2]], axis=1)]
    yield lambda: crossed_bootstrap(values.mean(1), samples[-1], 8)
    images = np.random.default_rng(0).integers(8, size=(10, 8))
    samples.append(values[:, images].mean(axis=2).T)
    crossed_bootstrap(values.mean(1), samples[-1], 8)
    samples.append(np.where(np.arange(10)[:, None] == 3, np.nan, samples[-1]))
    yield lambda: crossed_bootstrap(values.mean(1), samples[-1], 8)
    samples.append(samples[-1][np.isfinite(samples[-1]).all(axis=1)])
    crossed_bootstrap(values.mean(1), samples[-1], 8)
    means = [values]
    yield lambda: seed_mean(means[-1], 8)
    means.append(values.mean(axis=1))
    seed_mean(means[-1], 8)
    means.append([0.5, np.nan])
    yield lambda: seed_mean(means[-1], 8)
    means.append([0.5])
