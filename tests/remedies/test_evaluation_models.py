"""The remedies of evaluating, comparing and ablating models, each followed."""

import dataclasses
import functools
import re

import numpy as np
import pandas as pd
import test_alignment_effect as planted
import test_people
import torch
from following import follows
from test_ablation import Channels

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.class_folders import read_wnids
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study
from bmfl_lab.evaluation import as_model, compare_models, corruption_rows, evaluate_ood
from bmfl_lab.evaluation.ablation import ablate_regions
from bmfl_lab.evaluation.brain_robust import brain_and_robust
from bmfl_lab.evaluation.corruptions import evaluate_corruptions
from bmfl_lab.evaluation.effect import compare_alignment, seed_groups, shift_mean_rows
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.evaluation.people import compare_with_people, decide
from bmfl_lab.records import MetricRow

RANDOM = np.random.default_rng(0)
PIXELS = RANDOM.integers(40, 200, (6, 16, 16, 3), dtype=np.uint8)
TEST = from_arrays("test", PIXELS, list("abcdef"), [0, 1] * 3, ("dark", "bright"))
STUDY = Study("known", "x", {"train": TEST, "test": TEST})


def by_mean(images):
    return [[120.0 - image.mean(), image.mean() - 120.0] for image in images]


def three(images):
    return [[9.0, *row] for row in by_mean(images)]


MODEL = as_model(by_mean, "brightness")
OTHER = as_model(lambda images: [[1.0, 0.0] for _ in images], "dark")


@functools.cache
def evaluated():
    return evaluate_ood({"a": MODEL, "b": OTHER}, STUDY, shifts=[("masked", 1)], n_boot=10)


@follows(
    ("evaluation/adapters.py", "let the function return one row per image"),
    (
        "evaluation/adapters.py",
        "pass class_names=... to name the columns, or columns=... to choose them",
    ),
    (
        "evaluation/adapters.py",
        "pass class_names=... to name the columns, or columns=... to choose them",
    ),
)
def test_logits_of_another_shape(folder, env):
    function, options = [lambda images: np.zeros(3)], [{}]

    def call():
        return as_model(function[-1], "model", **options[-1]).logits(TEST)

    yield call
    function.append(by_mean)
    call()
    function.append(three)
    yield call
    options.append({"class_names": ("odd", "dark", "bright")})
    call()
    options.append({})
    remedy = yield call
    options.append({re.search(r"or (\w+)=", remedy)[1]: [1, 2]})


@follows(
    (
        "evaluation/adapters.py",
        "fit means and scales on training images, and put networks into evaluation mode",
    ),
    (
        "evaluation/adapters.py",
        "fit means and scales on training images, and put networks into evaluation mode",
    ),
)
def test_scores_that_depend_on_the_other_images(folder, env):
    network = torch.nn.Sequential(torch.nn.Linear(3, 2), torch.nn.BatchNorm1d(2))
    mean = [None]

    def by_network(images):
        return network(torch.tensor(np.array([image.mean((0, 1)) for image in images])).float())

    def standardised(images):
        scores = np.array(by_mean(images))
        return scores - (scores.mean(0) if mean[-1] is None else mean[-1])

    yield lambda: as_model(by_network, "network").logits(TEST)
    network.eval()
    as_model(by_network, "network").logits(TEST)
    yield lambda: as_model(standardised, "standardised").logits(TEST)
    mean.append(np.mean(by_mean(PIXELS), axis=0))


@follows(
    ("evaluation/ablation.py", "let `train` return one model per description"),
    (
        "evaluation/ablation.py",
        "pass n_draws=1 or more, and ceiling=subject.noise_ceiling (or leave 'ceiling_matched' out of `controls`)",
    ),
    (
        "evaluation/ablation.py",
        "pass n_draws=1 or more, and ceiling=subject.noise_ceiling (or leave 'ceiling_matched' out of `controls`)",
    ),
)
def test_an_ablation_without_models_draws_or_a_ceiling(folder, env):
    atlas = Atlas(np.zeros(8, np.int8), {"two": np.arange(8) < 2})
    train, options = [lambda wanted: []], {"modes": ("only",), "regions": ("two",), "shifts": ()}

    def call():
        return ablate_regions(STUDY, train[-1], atlas, seeds=(0, 1), **options)

    yield call
    train.append(lambda wanted: [Channels(w.mask) for w in wanted])
    call()
    options["n_draws"] = 0
    remedy = yield call
    options["n_draws"] = int(re.search(r"n_draws=(\d)", remedy)[1])
    call()
    options["controls"] = ("random_vertices", "ceiling_matched")
    remedy = yield call
    options[re.search(r"(\w+)=subject", remedy)[1]] = RANDOM.random(8)
    call()
    del options["ceiling"]
    options["controls"] = ("random_vertices",)


@follows(("evaluation/ood.py", "evaluate 'test' and out-of-distribution sets"))
def test_sets_that_chose_the_model(folder, env):
    sets = [["train"]]
    remedy = yield lambda: evaluate_ood({"m": MODEL}, STUDY, sets=sets[-1], n_boot=10)
    sets.append([re.search(r"'(\w+)'", remedy)[1]])


@follows(
    (
        "evaluation/ood.py",
        "leave out artificial shifts (shifts=[]), and put shifted copies of the images into "
        "out-of-distribution sets, with predictions of their own",
    )
)
def test_shifts_of_images_whose_responses_were_predicted(folder, env):
    one = Atlas(np.zeros(1, np.int8), {})
    person = Subject("p", TEST, np.zeros((6, 1)), one, {"test": np.arange(6)}, kind="predicted")
    shifts, study = [[("masked", 1)]], [dataclasses.replace(STUDY, subjects={"p": person})]
    yield lambda: evaluate_ood({"m": MODEL}, study[-1], shifts=shifts[-1], n_boot=10)
    copies = dataclasses.replace(TEST, name="copies")
    sets = {**STUDY.sets, "copies": copies}
    study.append(dataclasses.replace(study[0], sets=sets, ood=("copies",)))
    shifts.append([])


@follows(
    (
        "evaluation/ood.py",
        "name the classes of the set as the head does, and give every class of the head a logit "
        "and a name",
    ),
    (
        "evaluation/ood.py",
        "name the classes of the set as the head does, and give every class of the head a logit "
        "and a name",
    ),
)
def test_a_set_with_a_class_that_the_head_does_not_know(folder, env):
    other = [dataclasses.replace(TEST, name="other", class_names=("dark", "light"))]
    head = [("dark", "bright")]

    def call():
        study = dataclasses.replace(STUDY, sets={**STUDY.sets, "other": other[-1]}, ood=("other",))
        model = as_model(three if len(head[-1]) == 3 else by_mean, "m", class_names=head[-1])
        return evaluate_ood({"m": model}, study, sets=["other"], n_boot=10)

    yield call
    other.append(dataclasses.replace(other[0], class_names=("bright", "dark")))
    call()
    head.append(("odd", "dark", "dark"))
    yield call
    head.append(("odd", "dark", "bright"))


@follows(
    (
        "evaluation/ood.py",
        "pass models={name: model}, or a list with one model per seed in place of a model",
    )
)
def test_a_name_without_models(folder, env):
    models = [{"m": []}]
    yield lambda: evaluate_ood(models[-1], STUDY, n_boot=10)
    models.append({"m": [MODEL, OTHER]})
    evaluate_ood(models[-1], STUDY, n_boot=10)
    models.append({"m": MODEL})


@follows(
    ("evaluation/corruptions.py", "0 takes all"),
    (
        "evaluation/corruptions.py",
        "evaluate all corruptions of the same images in one call of evaluate_ood",
    ),
    ("evaluation/corruptions.py", "evaluate some of {}"),
    ("evaluation/corruptions.py", "train both with the same seeds, and evaluate them together"),
)
def test_corruptions_of_other_images_and_seeds(folder, env):
    n, both = [7], {"a": MODEL, "b": OTHER}
    remedy = yield lambda: evaluate_corruptions(
        both, STUDY, n=n[-1], corruptions=["fog"], severities=[1]
    )
    n.append(int(re.match(r"\d", remedy)[0]))
    found = evaluate_corruptions(both, STUDY, n=n[-1], corruptions=["fog"], severities=[1])

    few = dataclasses.replace(STUDY, sets={**STUDY.sets, "test": TEST.subset([0, 1, 2])})
    more = [evaluate_ood(both, few, shifts=[("fog", 2)], n_boot=10).per_image]
    yield lambda: corruption_rows(OODResult([], pd.concat([found.per_image, more[-1]])))
    shifts = [("fog", 1), ("fog", 2)]
    corruption_rows(evaluate_ood(both, STUDY, shifts=shifts, n_boot=10))
    more.append(evaluate_ood(both, STUDY, shifts=shifts[1:], n_boot=10).per_image)

    shift = ["masked"]
    remedy = yield lambda: corruption_rows(
        evaluate_ood(both, STUDY, shifts=[(shift[-1], 1)], n_boot=10)
    )
    shift.append(re.search(r"'(\w+)'", remedy)[1])

    table = pd.concat(
        found.per_image.assign(shift=c, severity=s)
        for c in re.findall(r"'(\w+)'", remedy)
        for s in range(1, 6)
    )
    seeds = [table[table["model"] == "b"].assign(seed=1)]
    yield lambda: corruption_rows(OODResult([], pd.concat([table, *seeds])), baseline="a")
    seeds.append(seeds[0].assign(model="a"))


@follows(
    ("evaluation/suite.py", "name a pair that is compared, or add it to `also`"),
    ("evaluation/suite.py", "evaluate all seeds on the same images"),
    ("evaluation/suite.py", "evaluate every subject with the same seeds and as many images"),
    ("evaluation/suite.py", "evaluate them together, with the same seeds"),
)
def test_comparisons_of_models_evaluated_otherwise(folder, env):
    table, options = evaluated().per_image, {"primary": ("a", "c")}

    def call(*parts):
        return compare_models(OODResult([], pd.concat(parts)), "b", **options)

    more = table[table["model"] == "a"].assign(model="c")
    remedy = yield lambda: call(table, more)
    options[re.search(r"`(\w+)`", remedy)[1]] = [("a", "c")]
    call(table, more)
    del options["also"]
    options["primary"] = ("a", "b")
    call(table, more)
    options.clear()

    other = [table.assign(seed=1).query("id != 'a'")]
    yield lambda: call(table, other[-1])
    other.append(table.assign(seed=1))
    call(table, other[-1])

    people = [table.assign(subject="s1"), table.query("id != 'a'").assign(subject="s2")]
    yield lambda: call(people[0], people[-1])
    people.append(table.assign(subject="s2"))
    call(people[0], people[-1])

    again = [table[table["model"] == "b"].assign(seed=1)]
    yield lambda: call(table[table["model"] == "a"], again[-1])
    again.append(table[table["model"] == "b"])


@follows(("evaluation/brain_robust.py", "evaluate the same models with both metrics"))
def test_no_model_with_both_metrics(folder, env):
    brain = MetricRow("rsa", 0.3, "rho", "test", 50, "none", model="a", roi="V1")
    robust = MetricRow("accuracy", 0.5, "fraction", "test", 50, "none", model="b", shift="fog")
    rows = [brain, robust]
    yield lambda: brain_and_robust(rows, brain="rsa", robust="accuracy")
    rows.append(dataclasses.replace(robust, model="a"))


@follows(
    ("evaluation/effect.py", "train every model with every seed"),
    ("evaluation/effect.py", "evaluate a study whose `shifts` are not empty"),
)
def test_effects_without_all_seeds_or_shifts(folder, env):
    models = {"original": [MODEL, MODEL], "aligned": [MODEL]}
    yield lambda: seed_groups(models, "original")
    models["aligned"].append(OTHER)
    seed_groups(models, "original")
    study = [STUDY]
    yield lambda: shift_mean_rows(
        evaluate_ood({"a": MODEL, "b": OTHER}, study[-1], n_boot=10), baseline="a"
    )
    study.append(dataclasses.replace(STUDY, shifts=(("masked", 1),)))


@follows(("evaluation/effect.py", "pass the models to compare it with, too"))
def test_an_aligned_model_alone(folder, env):
    models = {"aligned": [planted.Model(3.0, i) for i in range(2)]}
    yield lambda: compare_alignment(models, planted.subject(), n_boot=20)
    models["control"] = [planted.Model(0.5, i) for i in range(2)]


@follows(
    (
        "evaluation/people.py",
        "pass wnids=read_wnids(folder of ImageNet) in the order of the head",
    )
)
def test_an_imagenet_head_without_wnids(folder, env):
    for i in range(1000):
        (folder / f"n{1440764 + 97 * i:08d}").mkdir()
    head, given = as_model(lambda images: np.eye(1000)[: len(images)], "head"), {}
    stimuli = dataclasses.replace(TEST, class_names=())
    remedy = yield lambda: decide(head, stimuli, **given)
    given[re.search(r"(\w+)=read_wnids", remedy)[1]] = read_wnids(folder)


@follows(("evaluation/people.py", "give the trials and the images of one set"))
def test_trials_of_another_set(folder, env):
    (folder / "own").mkdir()
    images, trials = test_people.folders.__wrapped__(folder / "own")
    model = test_people.seer(range(30))
    for path in trials.iterdir():
        text = path.read_text()
        path.write_text(text.replace("-sketch-3.png", "-stylized-3.png"))
    yield lambda: compare_with_people({"seer": model}, images, trials, "sketch")
    for path in trials.iterdir():
        path.write_text(path.read_text().replace("-stylized-3.png", "-sketch-3.png"))
