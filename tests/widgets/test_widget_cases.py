"""Widgets on studies and choices that lack something, and what they say of what they show."""

import dataclasses
import functools
import json
import os
import re

import numpy as np
import pandas as pd
import pytest
from plotly.colors import sample_colorscale

import widgets
from bmfl_lab import load_study
from bmfl_lab.backbones import load_backbone
from bmfl_lab.errors import DataError
from bmfl_lab.evaluation import Explorer, attention_verdict
from bmfl_lab.evaluation.attention_outcomes import check_row
from bmfl_lab.records import Record
from bmfl_lab.viz.charts import DIVERGING, SEQUENTIAL, ink_on
from bmfl_lab.viz.surface_interactive import VIEWS, SurfaceLayout, aspect_ratio
from widgets import ablation, attention, ood, runs, surface
from widgets.frame import dropdown

BACKBONE, ENCODER, CONSULTED, LOOKED = (
    "backbone: CLS over patches",
    "encoder: ROI query over patches",
    "fusion: image over ROIs",
    "fusion: brain over patches",
)


@pytest.fixture(scope="module")
def three(parts):
    """An explorer with two models that have cross-attention and one that has none, the latter first."""
    study, models, encoder, store = parts
    named = {
        "plain": models["backbone"],
        "one": models["fusion"],
        "two": dataclasses.replace(models["fusion"]),
    }
    return Explorer(study, named, encoder, store=store, n_batch=20)


def lacking(explorer, roi="PHA"):
    """The same explorer for a subject that has no vertex of an ROI."""
    rois = {
        name: np.zeros_like(mask) if name == roi else mask
        for name, mask in explorer.atlas.rois.items()
    }
    other = Explorer(
        explorer.study,
        explorer._models,
        explorer.encoder,
        store=explorer.store,
        n_batch=20,
    )
    other.atlas = dataclasses.replace(explorer.atlas, rois=rois)
    return other


# --- images


def test_images_are_shown_as_the_backbone_of_the_study_sees_them():
    study = load_study("planted")
    spec = dataclasses.replace(study.backbone, resize="direct")
    explorer = Explorer(dataclasses.replace(study, backbone=spec))
    image = study.set("test").image(3)
    seen, cut = (
        load_backbone(
            spec.name, spec.weights, image_size=spec.image_size, resize=r
        ).preprocess.crop(image)
        for r in ("direct", "short")
    )
    assert not np.array_equal(seen, cut)
    np.testing.assert_array_equal(explorer.image("test", 3), seen)


def test_one_pass_through_the_backbone_answers_all_blocks(explorer):
    passes = []
    handle = explorer.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    maps = [
        explorer.attention(BACKBONE, "test", 17, block=b)["map"]
        for b in range(explorer.backbone.n_blocks)
    ]
    last = explorer.attention(BACKBONE, "test", 17, block=-1)["map"]
    handle.remove()
    assert len(passes) == 1
    np.testing.assert_array_equal(last, maps[-1])
    assert not np.array_equal(maps[0], maps[1])


# --- a study of responses only


def test_the_surface_works_in_a_study_without_labelled_images(parts, tmp_path):
    study, _, encoder, store = parts
    bare = dataclasses.replace(study, sets={}, ood=(), shifts=())
    explorer = Explorer(bare, None, encoder, store=store)
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    assert frame.error == "" and frame.state.images == explorer.brain
    vertex = int(np.flatnonzero(explorer.atlas.rois["FFC"])[0])
    for change in (
        {"region": "HVC"},
        {"region": "", "vertex": vertex},
        {"index": 4},
        {"show": "subject's response"},
    ):
        frame.set(**change)
        assert (
            frame.error == ""
            and "No tuning: this study has no labelled images" in frame.status.value
        )
    assert surface.select(frame.state, explorer)["tuning"] is None
    assert frame.save_figure().startswith("Saved")
    measured = widgets.surface_viewer(Explorer(bare, store=store), region="V1")
    assert measured.error == "" and "V1: 24 vertices" in measured.status.value


def test_tuning_comes_from_whichever_labelled_set_there_is(parts):
    study, _, encoder, store = parts
    explorer = Explorer(
        dataclasses.replace(study, sets={"val": study.set("val")}, ood=()),
        None,
        encoder,
        store=store,
    )
    found = surface.select(surface.State(region="FFC"), explorer)
    wanted = explorer.all_predicted("val")[:, explorer.mask(["FFC"])].mean(1)
    assert found["tuning"]["best"][0] == wanted.argmax()
    np.testing.assert_array_equal(found["best"][0], explorer.image("val", int(wanted.argmax())))


# --- the surface


def test_one_hemisphere_is_outlined_averaged_and_named(explorer):
    side, mask = np.asarray(explorer.atlas.hemisphere), explorer.mask(["FFC"])
    for number, name in enumerate(("left", "right")):
        found = surface.select(surface.State(region="FFC", hemispheres=name), explorer)
        np.testing.assert_array_equal(found["outline"], mask & (side == number))
        mean = explorer.predicted("test", 0)[mask & (side == number)].mean()
        n = int((mask & (side == number)).sum())
        assert f"FFC: {n} vertices in the {name} hemisphere, mean {mean:.2f}" in found["said"]
        response = explorer.all_predicted("test")[:, mask & (side == number)].mean(1)
        assert found["tuning"]["best"][0] == response.argmax() and found["region"] == f"FFC, {name}"


def test_a_vertex_on_the_side_that_is_not_drawn_gives_a_sentence(explorer):
    vertex = int(np.flatnonzero(np.asarray(explorer.atlas.hemisphere) == 1)[0])
    found = surface.select(surface.State(vertex=vertex, hemispheres="left"), explorer)
    assert found["outline"] is None and "has no vertex in the left hemisphere" in found["said"]


def test_a_click_inside_a_region_names_the_vertex_and_its_own_value(explorer):
    vertex = int(np.flatnonzero(explorer.atlas.rois["LO"])[1])
    frame = widgets.surface_viewer(explorer)
    frame.set(**surface._clicked(explorer.atlas, vertex))
    value = explorer.predicted("test", 0)[vertex]
    assert f"vertex {vertex}, {value:.2f} (response, z)" in frame.status.value
    frame.set(region="V1")
    assert frame.error == "" and f"vertex {vertex}" not in frame.status.value


def test_a_region_has_its_outline_from_the_first_choice_on(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    plot = frame.figures[0].plot
    (trace,) = (t for t in plot.data if t.name == "outline")
    assert trace.visible is False
    for region in ("V1", "FFC"):
        frame.set(region=region)
        assert trace.visible is True and np.isfinite(np.asarray(trace.x, float)).any()
    frame.set(region="")
    assert trace.visible is False
    opened = widgets.surface_viewer(explorer, folder=tmp_path, region="V1")
    plot = opened.figures[0].plot
    assert [t.visible for t in plot.data if t.name == "outline"] == [True]


def test_all_outlines_are_those_of_the_drawn_side(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    plot = frame.figures[0].plot
    (trace,) = (t for t in plot.data if t.name == "borders")
    assert not np.isfinite(np.asarray(trace.x, float)).any()
    frame.set(outlines=True)
    both = np.asarray(trace.x, float)
    frame.set(hemispheres="left")
    left = np.asarray(trace.x, float)
    assert np.nanmax(both) > 0 > np.nanmax(left)
    frame.set(outlines=False)
    assert not np.isfinite(np.asarray(trace.x, float)).any() and frame.error == ""


def test_no_view_cuts_the_cortex_off_and_each_fills_the_figure(explorer):
    layout = SurfaceLayout(explorer.atlas)
    points = np.concatenate([p for p, _, _ in layout.base])
    low, high = points.min(0), points.max(0)
    for view, eye in VIEWS.items():
        ratio = np.array(list(aspect_ratio(layout, view).values()))
        world = ((points - low) / (high - low) - 0.5) * ratio
        towards = np.array(list(eye.values())) / np.linalg.norm(list(eye.values()))
        right = np.cross([0, 0, 1], towards)
        right /= np.linalg.norm(right)
        across, up = np.abs(world @ right).max(), np.abs(world @ np.cross(towards, right)).max()
        # plotly's orthographic camera sees one unit up and down
        assert up < 0.95 and across < 1.2 and max(up / 0.95, across / 1.2) > 0.9, view
        wide = np.array(list(aspect_ratio(layout, view, 65.0).values()))
        around = ((points - low + 65) / (high - low + 130) - 0.5) * wide
        np.testing.assert_allclose(around, world, atol=1e-5)


@pytest.mark.parametrize("view", VIEWS)
def test_names_stand_between_the_brain_and_the_camera(view, explorer, tmp_path):
    frame = widgets.region_ablation(explorer, folder=tmp_path, view=view)
    scene, (names,) = (
        frame.figures[0].plot.layout.scene,
        frame.figures[0].plot.select_traces({"name": "names"}),
    )
    towards = np.array(list(VIEWS[view].values())) / np.linalg.norm(list(VIEWS[view].values()))
    places, moved = np.array(names.customdata), np.transpose([names.x, names.y, names.z])
    np.testing.assert_allclose(moved - places, np.tile(50 * towards, (len(places), 1)), atol=1e-9)
    low, high = np.transpose([scene[f"{axis}axis"].range for axis in "xyz"])
    assert (moved > low).all() and (moved < high).all(), "plotly draws nothing outside the axes"
    size = np.array([scene.aspectratio[axis] for axis in "xyz"])
    world = ((moved - low) / (high - low) - 0.5) * size
    eye = np.array([scene.camera.eye[axis] for axis in "xyz"])
    assert (world @ towards).max() < np.linalg.norm(eye), "plotly draws nothing behind the camera"
    right = np.cross([0, 0, 1], towards)
    right /= np.linalg.norm(right)
    across, up = np.abs(world @ right).max(), np.abs(world @ np.cross(towards, right)).max()
    # the middle of a name, of which half a letter and half a word are left to the edge
    assert up < 0.96 and across < 1.12, "a name is cut off at the edge of the figure"


def test_a_region_absent_in_the_subject_is_marked_and_leaves_the_widgets_usable(explorer):
    without = lacking(explorer)
    viewer = widgets.surface_viewer(without)
    assert ("PHA (absent)", "PHA") in viewer.controls["region"].options
    viewer.set(region="PHA")
    assert "absent in this subject" in viewer.error
    viewer.set(region="HVC")
    assert viewer.error == ""
    lesion = widgets.region_ablation(without, regions=("PHA",))
    box = lesion.controls["regions"]._boxes["PHA"]
    assert "absent in this subject" in lesion.error and box.description == "PHA (absent)"
    box.value = False
    assert lesion.error == "" and lesion.state.regions == () and box.disabled
    lesion.controls["regions"]._boxes["HVC"].value = True
    assert lesion.error == "" and lesion.state.regions == ("HVC",) and not box.value


# --- the ablation


def test_a_ticked_group_shows_its_members_ticked_and_keeps_its_own_name(explorer):
    frame = widgets.region_ablation(explorer)
    boxes = frame.controls["regions"]._boxes
    boxes["V1"].value = True
    boxes["HVC"].value = True
    assert frame.state.regions == ("V1", "HVC") and frame.error == ""
    assert all(boxes[r].value and boxes[r].disabled for r in ("LO", "FFC", "PHA"))
    assert not boxes["V2"].value and not boxes["V1"].disabled
    boxes["HVC"].value = False
    assert frame.state.regions == ("V1",)
    assert not any(boxes[r].value or boxes[r].disabled for r in ("LO", "FFC", "PHA"))


def test_a_click_takes_a_region_out_of_a_group_that_was_named_beside_it(explorer):
    vertex = int(np.flatnonzero(explorer.atlas.rois["FFC"])[0])
    rest = ablation.toggled(("FFC", "HVC"), explorer.atlas, vertex)
    assert "HVC" not in rest and "FFC" not in rest and set(rest) >= {"LO", "PHA"}


def test_images_that_a_lesion_turns_wrong_and_right_are_counted(explorer, parts):
    study, models, _, _ = parts
    state = ablation.State(regions=("HVC",), kind="zero")
    found = ablation.select(state, explorer)
    stimuli = study.set("test")
    rows = np.unique(np.linspace(0, len(stimuli) - 1, 60).astype(int))
    intact, hurt = (
        models["fusion"].logits(stimuli, lesion)[rows].argmax(1) == stimuli.labels[rows]
        for lesion in (None, explorer.lesion(["HVC"], "zero"))
    )
    wrong, right = int((intact & ~hurt).sum()), int((~intact & hurt).sum())
    assert wrong > 0 and f"{wrong} of 60 images turned wrong, {right} turned right" in found["said"]
    labels = [
        t.get_text()
        for axis in ablation.figure_of(state, explorer).axes
        for t in axis.get_xticklabels()
    ]
    assert any(f"{wrong} turned wrong, {right} right" in label for label in labels)
    intact_twin = ablation.figure_of(ablation.State(), explorer)
    assert not any(
        "turned" in t.get_text() for axis in intact_twin.axes for t in axis.get_xticklabels()
    )


def names_on(frame):
    (trace,) = (t for t in frame.figures[0].plot.data if t.name == "names")
    return sorted(trace.text or ()) if trace.visible else []


def test_the_cortex_of_a_lesion_names_all_rois_and_has_a_key_of_two_items(explorer, tmp_path):
    frame = widgets.region_ablation(explorer, folder=tmp_path, regions=("FFC",))
    plot = frame.figures[0].plot
    assert names_on(frame) == sorted(2 * explorer.atlas.present)
    assert plot.data[-1].showscale is False and set(plot.data[-1].intensity) == {0.0, 1.0}
    explained = [a.text for a in plot.layout.annotations]
    assert explained == ["■", "intact", "■", "lesioned", "\u2014", "border of an ROI"]
    assert frame.state.view == "ventral" and plot.layout.scene.camera.eye.z < 0
    frame.set(regions=("V1",))
    assert plot.layout.scene.camera.eye.z < 0, "a click must not turn the cortex"
    frame.set(view="posterior")
    assert plot.layout.scene.camera.eye.z > 0 and frame.error == ""


def test_a_chosen_region_is_named_and_turned_to_the_front(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path, region="FFC")
    eye = frame.figures[0].plot.layout.scene.camera
    assert names_on(frame) == ["FFC", "FFC"] and eye.eye.z < -1
    sign, meaning = frame.figures[0].plot.layout.annotations
    (outline,) = frame.figures[0].plot.select_traces({"name": "outline"})
    assert sign.font.color == outline.line.color and meaning.text == "FFC"
    frame.set(region="")
    assert names_on(frame) == [] and eye.eye.z > 0
    assert not frame.figures[0].plot.layout.annotations
    frame.set(region="FFC", view="dorsal")
    assert eye.eye.z > 1 and frame.error == ""


def test_lesions_are_kept_beside_each_other_and_undone(explorer, tmp_path):
    frame = widgets.region_ablation(explorer, folder=tmp_path, regions=("HVC",))
    press = {b.description: b.click for b in frame.children[4].children}
    press["Keep beside"]()
    frame.set(regions=("V1",))
    found = ablation.select(frame.state, explorer)
    assert list(found["kept"]) == ["HVC"]
    own = explorer.batch(frame.state.model, found["sets"], explorer.lesion(("HVC",)))
    np.testing.assert_array_equal(found["kept"]["HVC"]["accuracy"], own["accuracy"])
    bars = frame.figures[1].plot.data
    assert [b.name for b in bars[5:]] == ["kept: HVC"]
    np.testing.assert_allclose(bars[5].y, 100 * own["accuracy"][:, 1])
    figure = ablation.figure_of(frame.state, explorer)
    assert "kept: HVC" in [t.get_text() for t in figure.axes[2].get_legend().get_texts()]
    press["Undo"]()
    assert frame.state.regions == ("HVC",) and frame.state.kept == (("HVC",),)
    press["Undo"]()
    assert frame.state.kept == () and len(frame.figures[1].plot.data) == 5
    press["Undo"]()
    assert "nothing to undo" in frame.status.value and frame.state.regions == ("HVC",)


# --- attention


def test_two_models_are_compared_only_where_each_has_a_map_of_its_own(three):
    frame = widgets.attention_explorer(three, compare="another model", source=LOOKED)
    assert frame.error == "" and (frame.state.model, frame.state.other_model) == ("one", "two")
    assert (
        list(frame.controls["other_model"].options) == ["one", "two"]
        and "two predicts" in frame.status.value
    )
    panels = attention.select(frame.state, three)["panels"]
    assert [p["title"].rpartition(", ")[2] for p in panels] == ["one", "two"]
    for source in (BACKBONE, ENCODER):
        frame.set(source=source)
        assert (
            frame.error == ""
            and frame.state.compare == "nothing"
            and frame.controls["other_model"].disabled
        )
        assert "another model" not in frame.controls["compare"].options
        assert f"belongs to the {source.partition(':')[0]}" in frame.status.value
    frame.set(model="plain")
    frame.set(source=CONSULTED, compare="another model")
    assert frame.error == "" and (frame.state.model, frame.state.other_model) == ("one", "two")


def test_one_model_with_cross_attention_has_none_beside_it(explorer):
    frame = widgets.attention_explorer(explorer, compare="another model", source=CONSULTED)
    assert frame.error == "" and frame.state.compare == "nothing"
    assert "No other model has cross-attention" in frame.status.value


def test_the_checks_of_the_shown_map_stand_in_the_status(explorer):
    rng = np.random.default_rng(0)
    rows = [
        check_row("left:V1 query", "weights", 0.1 + 0.01 * rng.standard_normal(12)),
        check_row("right:V1 query", "weights", 0.9 + 0.01 * rng.standard_normal(12)),
    ]
    frame = widgets.attention_explorer(
        explorer, checks=iter(rows), source=ENCODER, region="left:V1"
    )
    assert (
        attention_verdict(rows[:1]) in frame.status.value and "right:V1" not in frame.status.value
    )
    frame.set(region="right:V1")
    assert "hardly changes when all weights are randomised" in frame.status.value
    frame.set(head=0)
    assert "mean over heads" in frame.status.value
    frame.set(region="left:V2")
    assert "Not checked" in frame.status.value and "check_roi_attention" in frame.status.value
    frame.set(source=CONSULTED)
    assert "lesion the ROIs" in frame.status.value


def test_blocks_and_heads_are_counted_from_one_for_people(explorer):
    frame = widgets.attention_explorer(explorer, source=BACKBONE, block=0, head=1)
    assert ("1", 0) in frame.controls["block"].options and ("2", 1) in frame.controls[
        "head"
    ].options
    title = attention.figure_of(frame.state, explorer).get_suptitle()
    assert "block 1, head 2" in title


def test_the_card_of_a_hidden_figure_gives_its_place_up(explorer):
    frame = widgets.attention_explorer(explorer, source=LOOKED)
    cards = [box for box in frame.children[3].children]
    assert [card.layout.display for card in cards] == ["block", *4 * ["none"]]
    frame.set(source=CONSULTED)
    assert [card.layout.display for card in cards] == ["block", "block", *3 * ["none"]]


def test_a_map_has_a_colour_bar_with_its_ends(explorer, tmp_path):
    frame = widgets.attention_explorer(explorer, folder=tmp_path, source=LOOKED)
    weights = explorer.attention(LOOKED, "test", 0)["map"]
    (bar,) = re.findall(
        r"bmfl-bar'.*?<span>(.*?)</span>.*?<span>([^<]*)</span></div>", shown(frame)
    )
    assert bar == (f"{weights.min():.2g}", f"{weights.max():.2g}")


def shown(frame):
    return frame.children[3].children[0].children[0].value


@pytest.mark.parametrize(
    ("source", "rows"), [(BACKBONE, ["block 1", "block 2"]), (ENCODER, ["left", "right"])]
)
def test_all_heads_and_queries_are_seen_in_one_look(source, rows, explorer, tmp_path):
    frame = widgets.attention_explorer(explorer, folder=tmp_path, source=source, tiles=True)
    tiles = attention.select(frame.state, explorer)["tiles"]
    assert list(tiles)[:2] == rows and len({len(of) for of in tiles.values()}) == 1
    n = sum(len(of) for of in tiles.values())
    assert len(attention.figure_of(frame.state, explorer).axes) == n and frame.error == ""
    assert frame.children[3].children[4].layout.display == "block"
    frame.set(source=CONSULTED)
    assert "no maps to tile" in frame.status.value and frame.error == ""


def test_a_patch_names_its_vertices_and_a_vertex_shows_where_it_looks(explorer, tmp_path):
    frame = widgets.attention_explorer(explorer, folder=tmp_path, source=ENCODER, linked=True)
    weights = explorer.attention(ENCODER, "test", 0)["map"]
    found = attention.select(frame.state, explorer)
    assert found["patch"] == np.unravel_index(weights.argmax(), weights.shape)
    _, patches, cortex = frame.figures
    patches.clicked = json.dumps({"trace": 0, "index": 0, "x": 1, "y": 2})
    assert frame.state.patch == 2 * weights.shape[1] + 1 and "row 3, column 2" in frame.status.value
    effect = explorer.patch_effect("test", 0, patch=(2, 1), grid=weights.shape)
    order = cortex.surface.order
    np.testing.assert_allclose(cortex.plot.data[-1].intensity, effect[order])
    place = int(np.flatnonzero(explorer.mask(["LO"])[order])[0])
    trace = len(cortex.plot.data) - 1
    cortex.clicked = json.dumps({"trace": trace, "index": place, "x": 0, "y": 0})
    assert frame.error == "" and frame.state.region.endswith(":LO") and frame.state.patch == -1
    own = explorer.attention(ENCODER, "test", 0, region=frame.state.region)["map"]
    np.testing.assert_allclose(patches.plot.data[0].z, own)


def test_only_the_filled_patch_changes_and_only_what_reads_it(explorer):
    whole = explorer.image("test", 4)
    grid = explorer.attention(ENCODER, "test", 4)["map"].shape
    effects = [explorer.patch_effect("test", 4, patch=(r, 0), grid=grid) for r in range(2)]
    assert effects[0].shape == (explorer.atlas.n_vertices,) and np.abs(effects[0]).max() > 0
    assert not np.allclose(*effects)
    np.testing.assert_array_equal(explorer.image("test", 4), whole)
    with pytest.raises(DataError, match="a patch within a grid"):
        explorer.patch_effect("test", 4, patch=grid, grid=grid)


@pytest.mark.parametrize("source", [BACKBONE, ENCODER, LOOKED])
def test_a_button_measures_the_checks_of_the_shown_map(source, explorer, tmp_path, monkeypatch):
    few = functools.partial(explorer.check_map, n=4)
    monkeypatch.setattr(explorer, "check_map", few)
    frame = widgets.attention_explorer(explorer, folder=tmp_path, source=source)
    assert "Not checked" in frame.status.value
    frame.children[4].children[0].click()
    assert frame.error == "" and "Sanity checks:" in frame.status.value
    if source == ENCODER:  # the verdict on one map is not shown for another one
        first, other = explorer.map_choices(ENCODER)["regions"][:2]
        for region, said in ((other, "Not checked"), (first, "Sanity checks:")):
            frame.set(region=region)
            assert said in frame.status.value


# --- out of distribution


def test_hostile_image_ids_are_shown_as_text():
    evil = "<img src=x onerror=alert(1)>"
    rows = [
        {
            "model": m,
            "split": "test",
            "shift": "masked",
            "severity": 3,
            "id": evil,
            "correct": m == "b",
        }
        for m in ("a", "b")
    ]
    frame = widgets.ood_explorer(pd.DataFrame(rows))
    assert frame.error == ""
    texts = [
        child.value
        for card in frame.children[3].children
        for child in getattr(card.children[0], "children", ())
        if hasattr(child, "value")
    ]
    assert any("&lt;img src=x" in text for text in texts) and not any(
        "<img" in text for text in texts
    )


def graded(right):
    """Per-image rows of two models, which classify the first `right` images of 100 correctly."""
    return pd.DataFrame(
        [
            {
                "model": model,
                "split": "test",
                "shift": "masked" if severity else "",
                "severity": severity,
                "id": f"i{i}",
                "correct": i < n,
            }
            for (model, severity), n in right.items()
            for i in range(100)
        ]
    )


def test_the_first_images_are_those_that_a_model_still_recognises():
    right = {("fusion", s): n for s, n in {0: 90, 1: 88, 3: 50, 5: 20}.items()}
    right |= {("backbone", s): n for s, n in {0: 80, 1: 60, 3: 47, 5: 22}.items()}
    source = ood.Source(graded(right))
    state = ood.resolve(ood.State(), source)
    assert (state.model, state.other, state.severity) == ("backbone", "fusion", 3)
    assert ood.resolve(ood.State(severity=5), source).severity == 5
    found = ood.select(ood.State(), source)
    np.testing.assert_allclose(found["grid"], [[0.1, 0.28, 0.03, -0.02]])
    # p is at least that of the exact McNemar test: 2 / 2**10, 2 / 2**28, 0.25 and 0.5
    assert found["marks"].tolist() == [["*", "*", "", ""]]
    numbers = widgets.ood_explorer(graded(right)).figures[0].plot.data[-1]
    assert list(numbers.text) == ["+10*", "+28*", "+3", "-2"]
    figure = ood.figure_of(ood.State(), source)
    assert "+28*" in [t.get_text() for t in figure.axes[0].texts]
    assert "* differs: p (Holm" in figure.axes[0].get_xlabel()


def test_numbers_can_be_read_on_every_colour():
    def luminance(rgb):
        parts = [c / 12.92 if c <= 0.04045 else ((c + 0.055) / 1.055) ** 2.4 for c in rgb]
        return float(np.dot(parts, [0.2126, 0.7152, 0.0722]))

    for scale in (DIVERGING, SEQUENTIAL):
        for rgb in sample_colorscale(scale, np.linspace(0, 1, 101).tolist(), colortype="tuple"):
            ink = {"black": 0.0, "white": 1.0}[ink_on(rgb)]
            light, dark = sorted((luminance(rgb), ink), reverse=True)
            assert (light + 0.05) / (dark + 0.05) >= 4.5, (scale, rgb)


def test_the_numbers_of_the_grid_are_those_of_its_cells(result, explorer):
    frame = widgets.ood_explorer(result, explorer, show=ood.SHOW[1])
    plot = frame.figures[0].plot
    grid, numbers = np.asarray(plot.data[0].z), plot.data[-1]
    cells = {(x, y): text for x, y, text in zip(numbers.x, numbers.y, numbers.text)}
    assert len(cells) == np.isfinite(grid).sum() == len(numbers.textfont.color)
    for (x, y), text in cells.items():
        assert text == f"{grid[plot.data[0].y.index(y), plot.data[0].x.index(x)]:.0f}"


# --- runs


def test_runs_lead_with_accuracy_fold_seeds_and_show_what_differs(tmp_path):
    for epochs in (5, 20):
        parameters = {"study": "planted", "epochs": epochs, "device": "cpu", "<b>x</b>": epochs}
        record = Record("03_fusion_training", parameters, {"name": "planted", "simulated": True})
        plain = {"unit": "fraction", "split": "test", "n": 10, "selection": "none"}
        record.add("nll", 1.0, model="fusion", **plain)
        for model in ("fusion", "backbone"):
            for seed in (0, 1):
                value = epochs / 100 + seed / 10
                record.add("accuracy", value, model=model, seed=seed, **plain)
        record.finish(tmp_path / "out" / "sweep" / f"run-{epochs}")
    model = tmp_path / "out/sweep/run-20/models/fusion/seed-0/fusion.json"
    model.parent.mkdir(parents=True)
    history = [{"epoch": e, "val_accuracy": e / 10} for e in (1, 2)]
    model.write_text(json.dumps({"history": history}))
    reports = tmp_path / "reports"
    reports.mkdir()
    (reports / "sweep.md").write_text("verdict")
    frame = widgets.run_browser(tmp_path / "out", pictures=tmp_path)
    found = runs.select(frame.state, runs.Source(tmp_path / "out"))
    assert frame.error == "" and frame.state.metric == "accuracy"
    assert found["labels"] == ["fusion", "backbone"] and found["shared"] == "test"
    assert "accuracy of two runs (test)" in frame.figures[0].plot.layout.title.text
    assert found["values"]["sweep/run-20"][0, 0] == pytest.approx(0.25)
    first = found["runs"][0]
    assert "epochs" in first and "study: planted" not in first and "device" not in first
    table = frame.children[3].children[0].children[0].children[0]
    shown = json.loads(table.content.value)
    assert "<b>x</b>" in [column["name"] for column in shown["columns"]]
    assert [[link["kind"] for link in row["links"]] for row in shown["rows"]] == [["report"]] * 2
    (line,) = frame.figures[1].plot.data
    np.testing.assert_allclose(line.y, [10, 20])
    frame.set(seeds=True)
    labels = runs.select(frame.state, runs.Source(tmp_path / "out"))["labels"]
    assert labels == ["fusion seed 0", "fusion seed 1", "backbone seed 0", "backbone seed 1"]


def test_runs_open_with_the_newest_pair_that_measured_something_in_common(tmp_path):
    measured = {
        "old": ("accuracy", "fusion"),
        "alike": ("accuracy", "fusion"),
        "unlike": ("accuracy", "ReAlnet"),
        "newest": ("accuracy", "fusion"),
    }
    for age, (name, (metric, model)) in enumerate(measured.items()):
        record = Record("03_fusion_training", {}, {"name": "planted"})
        plain = {"unit": "fraction", "split": "test", "n": 10, "selection": "none"}
        record.add(metric, 0.5, model=model, **plain)
        record.finish(tmp_path / name)
        os.utime(tmp_path / name / "record.json", (age, age))
    chosen = runs.resolve(runs.State(), runs.Source(tmp_path))
    assert (chosen.first, chosen.second) == ("newest", "alike")
    chosen = runs.resolve(runs.State(first="unlike"), runs.Source(tmp_path))
    assert (chosen.first, chosen.second) == ("unlike", "newest"), "no run shares a row with it"
    chosen = runs.resolve(runs.State(second="old"), runs.Source(tmp_path))
    assert (chosen.first, chosen.second) == ("newest", "old")


def test_a_header_sorts_the_runs_and_sorts_them_the_other_way_round(tmp_path):
    for name, epochs, label in (("a", 5, "x"), ("b", 20, "z"), ("c", 10, "y"), ("d", None, "y")):
        given = {"label": label} | ({} if epochs is None else {"epochs": epochs})
        record = Record("03_fusion_training", given, {"name": "planted", "n_classes": 4})
        record.add("accuracy", 0.5, unit="fraction", split="test", n=10, selection="none")
        record.finish(tmp_path / "out" / name)
    frame = widgets.run_browser(tmp_path / "out", pictures=tmp_path)
    table = frame.children[3].children[0].children[0].children[0]

    def click(column):
        table.clicked = json.dumps({"column": column, "at": click.count})
        click.count += 1
        shown = json.loads(table.content.value)
        (order,) = {c["order"] for c in shown["columns"] if c["name"] == column}
        assert not any(c["order"] for c in shown["columns"] if c["name"] != column)
        return order, "".join(row["cells"][0] for row in shown["rows"])

    click.count = 0
    assert click("epochs") == ("descending", "bcad")
    assert click("epochs") == ("ascending", "acbd"), "a run without a value stands last"
    assert click("label")[0] == "ascending" and frame.state.sort == "label"
    assert "sort='label'" in (frame.show_code() and frame.code.value)
    assert click("label")[1][0] == "b" and frame.error == ""
    frame.undo()
    assert frame.state.sort == "label" and not frame.state.reverse


def shapes(figure):
    return [(s.name, s.x0 if s.yref == "paper" else s.y0) for s in figure.plot.layout.shapes]


def test_accuracies_have_a_chance_line_where_the_number_of_classes_is_known(
    result, explorer, tmp_path
):
    frame = widgets.ood_explorer(result, explorer, folder=tmp_path)
    assert shapes(frame.figures[1]) == [("chance", 25.0)]
    alone = widgets.ood_explorer(result.per_image, folder=tmp_path)
    assert shapes(alone.figures[1]) == [("chance", 25.0)]
    axis = ood.figure_of(frame.state, ood.Source(result, explorer)).axes[1]
    assert "chance" in axis.get_legend_handles_labels()[1]
    for name, n_classes in (("a", 4), ("b", 10)):
        record = Record("03_fusion_training", {}, {"name": name, "n_classes": n_classes})
        for metric in ("accuracy", "nll"):
            record.add(metric, 0.5, unit="fraction", split="test", n=10, selection="none")
        record.finish(tmp_path / "out" / name)
    frame = widgets.run_browser(tmp_path / "out", pictures=tmp_path)
    assert shapes(frame.figures[0]) == [("chance, 0.1", 0.1), ("chance, 0.25", 0.25)]
    frame.set(second=frame.state.first)
    assert [name for name, _ in shapes(frame.figures[0])] == ["chance"]
    frame.set(metric="nll")
    assert shapes(frame.figures[0]) == [] and frame.error == ""


def test_every_widget_says_which_weights_its_backbone_has(result, explorer, tmp_path, monkeypatch):
    weights = "vit_tiny14, random weights (seed 0), untrained"
    assert explorer.weights == weights
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    assert f"Backbone: {weights}." in frame.note.value
    frame.save_html()
    assert weights in (tmp_path / "surface-1.html").read_text()
    assert weights in widgets.ood_explorer(result, explorer).note.value
    assert "unknown; pass the explorer" in widgets.ood_explorer(result).note.value
    record = Record("00_quickstart", {}, {"name": "planted"})
    record.add("accuracy", 0.5, unit="fraction", split="test", n=10, selection="none")
    record.finish(tmp_path / "out" / "new")
    monkeypatch.setattr("bmfl_lab.runtime._LOADED_BACKBONES", {})  # as in a process without any
    record.finish(tmp_path / "out" / "bare")
    said = widgets.run_browser(tmp_path / "out", first="new", second="bare").note.value
    assert f"Backbone of new: {weights}" in said and "Backbone of bare: not recorded" in said


def test_a_long_name_widens_its_list():
    widths = [
        int(dropdown("Image set", [name], name).layout.width[:-2])
        for name in ("test", "a" * 40, "a" * 400)
    ]
    assert widths[0] == 300 < widths[1] < widths[2] <= 560
