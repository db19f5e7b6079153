"""The remedies of `bmfl_lab.viz`, each followed."""

import functools
import io
import re
from types import SimpleNamespace

import numpy as np
import pandas as pd
import pytest
import torch
from following import follows
from matplotlib.figure import Figure
from PIL import Image

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays
from bmfl_lab.data.study import Study
from bmfl_lab.errors import BmflError
from bmfl_lab.evaluation import evaluate_suite, reliability_table
from bmfl_lab.evaluation.attention_checks import deletion_insertion
from bmfl_lab.evaluation.brain_robust import brain_and_robust
from bmfl_lab.evaluation.convergence import convergence_trends, sweep_models
from bmfl_lab.evaluation.effect import alignment_effect
from bmfl_lab.evaluation.embeddings import decoding_rows, score_embeddings
from bmfl_lab.metrics.rsa import expand, rdm
from bmfl_lab.records import Record
from bmfl_lab.viz import ablation, attention, charts, regions, results, saving, similarity, surface
from widgets.ood import Source

N, CLASSES = 24, ("a", "b", "c")


def draw(*shape):
    return np.random.default_rng(0).normal(size=shape)


def message_of(call):
    with pytest.raises(BmflError) as caught:
        call()
    return str(caught.value)


def quoted(text):
    return re.findall("'(.+?)'", text)


def stimuli(n=N):
    images = np.random.default_rng(0).integers(0, 256, (n, 8, 8, 3), dtype=np.uint8)
    return from_arrays("test", images, [f"s{i}" for i in range(n)], np.arange(n) % 3, CLASSES)


def record(rows=()):
    made = Record("04_ood_evaluation", {}, {"name": "s", "fingerprint": "f", "simulated": False})
    made.extend(rows)
    return made


class Noisy:
    """Classifier that favours the true class by `strength`."""

    def __init__(self, strength):
        self.strength, self.seed, self.class_names = strength, 0, CLASSES

    def logits(self, images):
        random = np.random.default_rng([int(10 * self.strength), len(images)])
        return self.strength * np.eye(3)[images.labels] + random.normal(size=(len(images), 3))


@functools.cache
def evaluated(shifts=("masked",), baselines=("weak", "weaker", "weakest")):
    """Return the result of small classifiers on a small test set and its first half."""
    test = stimuli()
    sets = {"train": test, "test": test, "half": test.subset(np.arange(N // 2), name="half")}
    study = Study("known", "noisy models", sets, ood=("half",))
    strengths = {"strong": 2.5, "weak": 1.6, "weaker": 0.9, "weakest": 0.3}
    models = {name: Noisy(strength) for name, strength in strengths.items()}
    return evaluate_suite(
        models, study, shifts=shifts, severities=(1, 5), baselines=baselines, n_boot=4
    )


@functools.cache
def subject():
    signal = draw(N, 9)
    rois = {"V1": np.arange(9) < 5, "V2": np.arange(9) >= 5}
    atlas = Atlas(np.zeros(9, np.int8), rois, groups={})
    splits = {"train": np.arange(16), "test": np.arange(16, N)}
    return Subject("s", stimuli(), signal.astype(np.float32), atlas, splits, kind="simulated")


@functools.cache
def fsaverage5():
    """Return an atlas of every 40th vertex of both hemispheres."""
    index = np.tile(np.arange(0, 10_242, 40), 2)
    side = np.repeat([0, 1], len(index) // 2).astype(np.int8)
    return Atlas(side, {"V1": index < 100}, surface_index=index, mesh="fsaverage5")


MAP = {"title": "t", "unit": "u", "views": ("lateral",)}


@follows(
    ("viz/ablation.py", "choose one of them"),
    ("viz/ablation.py", "name an evaluated model"),
    ("viz/ablation.py", "evaluate the models first"),
)
def test_figures_of_ablations_without_rows(folder, env):
    row = {"mode": "only", "region": "V1", "split": "test", "shift": ""}
    row |= {"effect": 0.2, "low": 0.1, "high": 0.3, "p_holm": 0.01}
    table = pd.DataFrame([row | {"control": c} for c in ("random_vertices", "random_rois")])
    control = ["random_images"]

    def draw_effect():
        ablation.effect_figure(table, control=control[-1])

    names = quoted(message_of(draw_effect).partition("; got")[2])
    yield draw_effect
    control.append(names[0])
    draw_effect()
    frame = record(evaluated().rows).to_frame()
    first = ["brain"]

    def draw_controls():
        ablation.controls_figure(frame, first=first[-1])

    names = quoted(message_of(draw_controls).partition("; got")[2])
    yield draw_controls
    first.append(names[0])
    draw_controls()
    rows = [results.with_sets(results.summary_rows(frame, "accuracy")).iloc[:0]]
    yield lambda: ablation.agreement_figure(
        rows[-1].assign(low=0.1, high=0.9, accuracy=rows[-1]["value"], r=0.5), x="r", x_label="r"
    )
    rows.append(results.with_sets(results.summary_rows(frame, "accuracy")))


@follows(
    ("viz/attention.py", "reshape the patch axis to the grid"),
    ("viz/attention.py", "leave out this map"),
    ("viz/attention.py", "choose for example 0.5"),
    ("viz/attention.py", "pass one map for every image"),
    ("viz/attention.py", "pass the attention of some images"),
)
def test_maps_that_cannot_be_drawn(folder, env):
    images, opacity = [np.zeros((8, 8, 3), np.uint8)] * 2, [0.55]
    maps = {"V1": [np.arange(4.0)] * 2}
    yield lambda: attention.attention_figure(images, maps)
    maps["V1"] = [weights.reshape(2, 2) for weights in maps["V1"]]
    attention.attention_figure(images, maps)
    maps["V2"] = [np.full((2, 2), np.nan)] * 2
    yield lambda: attention.attention_figure(images, maps)
    del maps["V2"]
    opacity.append(2.0)
    remedy = yield lambda: attention.overlay(images[0], maps["V1"][0], opacity[-1])
    opacity.append(float(re.search(r"example (\S+)", remedy)[1]))
    attention.overlay(images[0], maps["V1"][0], opacity[-1])
    maps["V1"].pop()
    yield lambda: attention.attention_figure(images, maps)
    maps["V1"] = [maps["V1"][0] for _ in images]
    rows = [pd.DataFrame({"V1": [], "V2": []})]
    yield lambda: attention.consulted_rois_figure(rows[-1])
    rows.append(pd.DataFrame({"V1": [0.2, 0.7], "V2": [0.8, 0.3]}))


@follows(
    ("viz/attention.py", "pass at least one map and a row per check of it"),
    ("viz/attention.py", "pass the table() of deletion_insertion for at least one map"),
    ("viz/attention.py", "pass at least one field, and one row per field"),
    ("viz/attention.py", "choose retinotopic ROIs"),
)
def test_checks_and_fields_that_are_missing(folder, env):
    row = {"map": "V1", "check": "weights", "value": 0.1, "low": 0.0, "high": 0.2}
    checks = pd.DataFrame([row | {"reference": 0.5, "above": True, "passes": True}])
    shown = [({}, checks[:0])]
    image = np.zeros((8, 8, 3), np.uint8)
    yield lambda: attention.checks_figure(image, shown[-1][0], {}, shown[-1][1])
    shown.append(({"V1": np.eye(2)}, checks))
    attention.checks_figure(image, shown[-1][0], {}, shown[-1][1])
    curves = [pd.DataFrame()]
    yield lambda: attention.deletion_figure(curves[-1], score="probability")
    photos = torch.rand(2, 3, 4, 4)
    found = deletion_insertion(
        lambda x, i: x.mean((1, 2, 3)), photos, torch.zeros_like(photos), draw(2, 2, 2), steps=2
    )
    curves.append(found.table("V1"))
    attention.deletion_figure(curves[-1], score="probability")
    fields, centres = {"left:V1": np.eye(2), "right:V1": np.eye(2)}, [{"x": 1.0, "y": 0.5}]
    yield lambda: attention.fields_figure(fields, pd.DataFrame(centres), degrees=8)
    centres.append({"x": -1.0, "y": 0.5})
    attention.fields_figure(fields, pd.DataFrame(centres), degrees=8)
    known = pd.DataFrame({"x": [1.0, np.nan], "y": [1.0, np.nan]})
    chosen = ["FFA"]
    rois = np.array(["V1", "FFA"], dtype=object)
    yield lambda: attention.centres_figure(
        known.fillna(0.0), known, np.where(np.isin(rois, chosen), rois, "")
    )
    chosen.append("V1")


@follows(
    ("viz/charts.py", "pass at least one image, decoded to RGB"),
    ("viz/charts.py", "pass at least one image, decoded to RGB"),
)
def test_images_that_are_not_decoded(folder, env):
    stored = io.BytesIO()
    Image.fromarray(np.arange(64, dtype=np.uint8).reshape(8, 8)).save(stored, "PNG")
    row = [np.asarray(Image.open(stored))]
    yield lambda: charts.contact_sheet({"grey": row})
    row[:] = [np.asarray(Image.open(stored).convert("RGB"))]
    charts.contact_sheet({"grey": row})
    image = row.pop()
    yield lambda: charts.contact_sheet({"grey": row})
    row.append(image)


@follows(
    ("viz/regions.py", "give a mapping region -> values"),
    ("viz/regions.py", "use a simulated subject, and name the ROIs of its vertices"),
)
def test_regions_without_values(folder, env):
    groups, atlas = {}, subject().atlas
    yield lambda: regions.distribution_figure(groups, title="t", unit="r")
    groups |= {name: draw(9)[mask] for name, mask in atlas.rois.items()}
    regions.distribution_figure(groups, title="t", unit="r")
    fields = pd.DataFrame(draw(9, 4), columns=["x", "y", "true_x", "true_y"])
    truth = [np.nan]
    rois = [[""] * 9]
    yield lambda: regions.fields_figure(
        fields.assign(error_degrees=np.hypot(fields["x"], fields["y"]) * truth[-1]),
        rois[-1],
        title="t",
        degrees=8,
    )
    truth.append(1.0)
    rois.append(np.where(atlas.rois["V1"], "V1", "V2"))


@follows(
    ("viz/results.py", "pass Record.to_frame()"),
    ("viz/results.py", "choose one of them"),
    ("viz/results.py", "choose models among {}"),
    ("viz/results.py", "choose a metric that has a value"),
    ("viz/results.py", "evaluate some shifts at several severities"),
)
def test_severities_without_rows(folder, env):
    frames, metric, models = [pd.DataFrame()], ["accurracy"], [None]

    def figure():
        results.severity_figure(frames[-1], metric[-1], models=models[-1])

    yield figure
    frames.append(record(evaluated(shifts=(), baselines=()).rows).to_frame())
    names = quoted(message_of(figure).partition("; got")[2])
    yield figure
    metric.append(names[names.index("accuracy")])
    models.append(["stronger"])
    remedy = yield figure
    models.append(quoted(remedy))
    assert len(models[-1]) == 4
    whole = frames[-1]
    frames.append(pd.concat([whole, whole[:1].assign(name="nll", value=np.nan)]))
    metric.append("nll")
    frames[-1].loc[frames[-1]["name"] == "nll", "value"] = np.nan
    yield figure
    metric.append("accuracy")
    yield figure
    frames.append(record(evaluated().rows).to_frame())


@follows(
    ("viz/results.py", "name baselines in evaluate_suite(baselines=...)"),
    ("viz/results.py", "choose sets among {}"),
    ("viz/results.py", "evaluate more images, or choose a smaller min_count"),
)
def test_robustness_without_a_line_and_thin_bins(folder, env):
    baselines, sets = [()], [None]

    def figure():
        frame = record(evaluated(baselines=baselines[-1]).rows).to_frame()
        results.robustness_figure(frame, baselines[-1], sets=sets[-1])

    yield figure
    baselines.append(("weak", "weaker", "weakest"))
    figure()
    sets.append(["another set"])
    remedy = yield figure
    sets.append(quoted(remedy))
    figure()
    min_count = [1_000]
    table = reliability_table(evaluated().per_image)
    yield lambda: results.reliability_figure(table, min_count=min_count[-1])
    min_count.append(1)


@follows(
    ("viz/results.py", "pass histories of at least one epoch"),
    ("viz/results.py", "choose among {}"),
    ("viz/results.py", "pass at least one image"),
)
def test_curves_and_images_that_are_missing(folder, env):
    histories, keys = {"fusion": [[]]}, ["train_los"]
    yield lambda: results.curves_figure(histories, keys)
    histories["fusion"] = [[{"epoch": 0, "train_loss": 1.0}]]
    remedy = yield lambda: results.curves_figure(histories, keys)
    keys[:] = quoted(remedy)
    results.curves_figure(histories, keys)
    rows = {"errors": []}
    yield lambda: results.prediction_figure(rows)
    image = np.zeros((8, 8, 3), np.uint8)
    rows["errors"].append({"image": image, "true": "a", "predicted": "b", "confidence": 0.6})


@follows(
    ("viz/results.py", "give one row per model and value of {}, with all of them"),
    ("viz/results.py", "give one row per ROI and value of {}, with all of them"),
    ("viz/results.py", "pass the scores that sweep_models returns"),
)
def test_tables_without_a_column(folder, env):
    row = {"model": "fusion", "value": 0.4, "ci_low": 0.3, "ci_high": 0.5}
    curve = [pd.DataFrame([row])]
    remedy = yield lambda: results.trend_figure(curve[-1], "beta", title="t", unit="r")
    column = quoted(remedy)[0]
    curve.append(pd.DataFrame([row | {column: value} for value in (0.0, 0.1)]))
    results.trend_figure(curve[-1], "beta", title="t", unit="r")
    bars = [pd.DataFrame([row])]
    remedy = yield lambda: results.grouped_figure(bars[-1], title="t", unit="r")
    column = quoted(remedy)[0]
    bars.append(pd.DataFrame([row | {"roi": r, column: "fusion"} for r in ("V1", "V2")]))
    results.grouped_figure(bars[-1], title="t", unit="r")
    models = {f"m{k}": {"layer": draw(N, 9) + k * draw(N, 9)[::-1]} for k in range(4)}
    given = pd.DataFrame({"images": 10.0 ** np.arange(4)}, index=list(models))
    scores, attributes = sweep_models(
        {name: lambda images, a=a: a for name, a in models.items()},
        subject(),
        given=given,
        n_boot=4,
    )
    trends = convergence_trends(scores, attributes)
    shown = [scores.drop(columns=[c for c in scores if c.startswith("encoding")])]
    yield lambda: results.convergence_figure(shown[-1], attributes, trends, title="t")
    shown.append(scores)


@follows(
    ("viz/saving.py", "give a name without a folder"),
    ("viz/saving.py", "give a name without a folder"),
    ("viz/saving.py", "choose one of them"),
)
def test_figures_that_cannot_be_saved(folder, env):
    figure = Figure(figsize=(1, 1))
    place, name, columns = [folder], ["results/line"], ["three"]

    def save():
        paths = saving.save_figure(figure, place[-1], name[-1], columns[-1])
        assert paths["png"] == folder / "results" / "line.png"

    yield save
    place.append(folder / "results")
    name.append("")
    yield save
    name.append("line")
    options = quoted(message_of(save).partition("; got")[0])
    yield save
    columns.append(options[0])


@follows(
    ("viz/similarity.py", "pass {title: table}"),
    ("viz/similarity.py", "reindex them to one another"),
    (
        "viz/similarity.py",
        "pass at least one RDM of these stimuli; expand condensed RDMs first",
    ),
    ("viz/similarity.py", "pass one row per layer and one column per time"),
    ("viz/similarity.py", "rank every ROI"),
)
def test_similarities_that_do_not_fit(folder, env):
    table = pd.DataFrame(draw(2, 2), index=["L0", "L1"], columns=["V1", "V2"])
    tables = {}
    yield lambda: similarity.heat_map_figure(tables)
    tables["RSA"] = table
    similarity.heat_map_figure(tables)
    tables["CKA"] = table[["V2", "V1"]]
    yield lambda: similarity.heat_map_figure(tables)
    tables["CKA"] = tables["CKA"].reindex_like(table)
    similarity.heat_map_figure(tables)
    rdms = {"V1": rdm(draw(4, 5))}
    yield lambda: similarity.rdm_figure(rdms, list("abab"))
    rdms["V1"] = expand(rdms["V1"])
    similarity.rdm_figure(rdms, list("abab"))
    scores = [draw(5, 2)]
    yield lambda: similarity.time_course_figure(scores[-1], np.arange(5) / 100, ["L0", "L1"])
    scores.append(scores[-1].T)
    similarity.time_course_figure(scores[-1], np.arange(5) / 100, ["L0", "L1"])
    images = [np.full((8, 8, 3), v, np.uint8) for v in (10, 200)]
    top, bottom = {"V1": images[1:], "V2": images[1:]}, {"V1": images[:1]}
    yield lambda: similarity.preferred_figure(top, bottom)
    bottom["V2"] = images[:1]


@follows(
    ("viz/similarity.py", "pass the table of brain_and_robust"),
    ("viz/similarity.py", "pass the rows of alignment_effect with roi 'all'"),
    ("viz/similarity.py", "pass the two-way rows of decoding_rows"),
)
def test_tables_of_other_functions(folder, env):
    rows = [r for r in evaluated().rows if r.name == "accuracy"]
    scores = record()
    for k, model in enumerate(("strong", "weak")):
        scores.add("rsa", 0.1 + 0.1 * k, unit="r", split="test", n=N, selection="none", model=model)
    rows += scores.rows
    shown = [record(rows).to_frame()]
    yield lambda: similarity.brain_robust_figure(shown[-1])
    shown.append(brain_and_robust(rows, brain="rsa", robust="accuracy", n_boot=4).table)
    similarity.brain_robust_figure(shown[-1])
    models = {
        name: SimpleNamespace(activations=lambda s, k=k: {"L0": draw(N, 9)[: len(s)] * k})
        for name, k in (("original", 1.0), ("aligned", np.arange(9)))
    }
    effects = [alignment_effect(models, subject(), n_boot=4).drop(columns="per_seed")]
    remedy = yield lambda: similarity.effect_figure(effects[-1])
    whole = alignment_effect(models, subject(), n_boot=4)
    effects.append(whole[whole["roi"] == quoted(remedy)[0]])
    similarity.effect_figure(effects[-1])
    found = score_embeddings(draw(6, 4), draw(6, 4), np.zeros(4), ways=(2,), n_boot=4)
    frames = [pd.DataFrame([{"roi": "V1", "value": found.identification.two_way}])]
    yield lambda: similarity.identification_figure(frames[-1])
    frame = record(decoding_rows(found, split="test", model="ridge", roi="V1")).to_frame()
    frames.append(frame[frame["name"] == "decoding_two_way"])


@follows(
    ("viz/surface.py", "give a mapping name -> values"),
    ("viz/surface.py", "use values and atlas of one subject"),
    ("viz/surface.py", "give the atlas a mesh and a surface_index"),
    ("viz/surface.py", "leave out whole=True"),
    ("viz/surface.py", "add {} to `order`"),
    ("viz/surface.py", "give the faces of a whole fsaverage hemisphere"),
)
def test_maps_that_do_not_fit_the_surface(folder, env):
    atlas = fsaverage5()
    maps, of = {}, [subject().atlas]
    yield lambda: surface.surface_maps(maps, atlas, **MAP)
    maps["r"] = draw(atlas.n_vertices)
    yield lambda: surface.on_mesh(maps["r"], of[-1])
    of.append(atlas)
    bare = [Atlas(atlas.hemisphere, atlas.rois)]
    yield lambda: surface.on_mesh(maps["r"], bare[-1])
    index, mesh = atlas.surface_index, "fsaverage5"
    bare.append(Atlas(atlas.hemisphere, atlas.rois, surface_index=index, mesh=mesh))
    options = {"whole": True}
    yield lambda: surface.surface_panel(maps["r"], atlas, **MAP, **options)
    del options["whole"]
    labels, order = np.where(atlas.rois["V1"], "V1", "other"), ["V1"]
    remedy = yield lambda: surface.category_map(
        labels, atlas, title="t", order=order, views=("lateral",)
    )
    order.append(re.search("add (.+) to", remedy)[1])
    name = ["flat"]
    yield lambda: surface.coarser_faces(surface.load_mesh("left", name[-1])[1])
    name.append("inflated")


@follows(("widgets/ood.py", "pass the result of evaluate_ood"))
def test_an_explorer_of_metric_rows(folder, env):
    given = [record(evaluated().rows).to_frame()]
    yield lambda: Source(given[-1])
    given.append(evaluated())
