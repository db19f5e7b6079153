"""Widgets without a browser: states select arrays, errors become sentences, and no torch is needed."""

import ast
import base64
import dataclasses
import io
import subprocess
import sys
import types
from pathlib import Path

import numpy as np
import pandas as pd
import pytest
from IPython.core.interactiveshell import InteractiveShell
from IPython.utils.capture import capture_output
from PIL import Image

import widgets
from bmfl_lab import evaluation
from bmfl_lab.data.shifts import shifted
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.models.lesion import Lesion
from bmfl_lab.records import Record
from widgets import ablation, attention, ood, runs, surface
from widgets.frame import name_of

ROOT = Path(__file__).resolve().parents[2]


def test_an_image_gives_the_same_probabilities_alone_and_in_its_set(explorer, parts):
    _, models, _, _ = parts
    logits = models["fusion"].logits(parts[0].set("test"))
    wanted = np.exp(logits[7]) / np.exp(logits[7]).sum()
    assert np.abs(explorer.probabilities("fusion", "test", 7) - wanted).max() < 1e-5


def test_a_lesion_in_the_explorer_is_that_of_the_model(explorer, parts):
    study, models, _, _ = parts
    lesion = Lesion(explorer.mask(["FFC"]), "mean", 1.0)
    stimuli = study.set("test")
    rows = np.unique(np.linspace(0, len(stimuli) - 1, 60).astype(int))
    right = models["fusion"].logits(stimuli, lesion)[rows].argmax(1) == stimuli.labels[rows]
    table = explorer.batch("fusion", ["test"], explorer.lesion(["FFC"]))
    assert table["accuracy"][0, 1] == pytest.approx(right.mean())
    assert table["n"][0] == 60 and table["low"][0, 1] <= right.mean() <= table["high"][0, 1]


def test_lesions_from_remembered_image_tokens_give_the_same_answer(explorer, parts):
    model, rows = parts[1]["fusion"], slice(0, 9)
    test = parts[0].set("test")
    stored, response = model.inputs.tokens(test), model.predict_responses(test)
    side = model.image_side(stored.cls[rows], stored.patches[rows])
    for lesion in (None, explorer.lesion(["FFC"], "zero"), explorer.lesion(["LVC"], "mean", 0.5)):
        given = stored.cls[rows], stored.patches[rows], response[rows], lesion
        plain, again = (
            model.classify(*given, weights=True),
            model.classify(*given, weights=True, image_side=side),
        )
        assert plain.keys() == again.keys() == {"logits", "vb", "bv"}
        for name in plain:
            np.testing.assert_allclose(again[name], plain[name], atol=1e-5)


def test_one_pass_through_the_backbone_answers_a_shifted_image(explorer, parts):
    passes = []
    handle = explorer.backbone.patch_embed.register_forward_hook(lambda *_: passes.append(1))
    explorer.probabilities("fusion", "test", 11, "masked", 4)
    explorer.probabilities("backbone", "test", 11, "masked", 4)
    explorer.predicted("test", 11, "masked", 4)
    explorer.attention("encoder: ROI query over patches", "test", 11, "masked", 4)
    handle.remove()
    assert len(passes) == 1


@pytest.mark.parametrize("region", ["LVC", "HVC", "FFC"])
def test_random_lesions_lie_outside_and_have_the_size_of_the_lesion(region, explorer):
    lesion, side = explorer.lesion([region]), np.asarray(explorer.atlas.hemisphere)
    controls = explorer.random_lesions(lesion)
    for control in controls:
        assert not (control.mask & lesion.mask).any()
        for number in (0, 1):
            inside = lesion.mask[side == number].sum()
            outside = (~lesion.mask[side == number]).sum()
            assert control.mask[side == number].sum() == min(inside, outside)
    table = explorer.batch("fusion", ["test"], lesion)
    assert table["n_control"] == controls[0].mask.sum() and np.isfinite(table["accuracy"]).all()


def test_a_lesion_of_everything_has_no_control(explorer):
    lesion = dataclasses.replace(
        explorer.lesion(["V1"]), mask=np.ones(explorer.atlas.n_vertices, bool)
    )
    table = explorer.batch("fusion", ["test"], lesion)
    assert table["n_control"] == 0 and np.isnan(table["accuracy"][0]).tolist() == [
        False,
        False,
        True,
    ]


@pytest.mark.parametrize("source", range(4))
def test_attention_shares_sum_to_at_most_one(explorer, source):
    name = explorer.sources[source]
    found = explorer.attention(name, "test", 3, "masked", 2, model="fusion")
    total = float((found["map"] if "map" in found else found["weights"]).sum())
    assert (0 < total < 1) if name.startswith("backbone") else total == pytest.approx(1, abs=1e-4)


def test_the_widget_shows_the_maps_of_the_attention_functions(explorer, parts):
    study, models, encoder, _ = parts
    few, place = study.set("test").subset([3, 5]), ("test", 5)
    expected = {
        explorer.sources[0]: evaluation.backbone_attention(
            explorer.backbone, few, blocks=(0,), normalise=False
        )[1, 0],
        explorer.sources[1]: evaluation.roi_attention(encoder, few)[1, 2],
        explorer.sources[3]: evaluation.brain_attention(models["fusion"], few)[1],
    }
    query = evaluation.query_names(encoder)[2]
    for source, maps in expected.items():
        for head in (-1, 1):
            found = explorer.attention(
                source, *place, model="fusion", block=0, region=query, head=head
            )["map"]
            np.testing.assert_allclose(
                found, maps.mean(0) if head < 0 else maps[head], rtol=2e-3, atol=1e-6
            )
    consulted = evaluation.consulted_rois(models["fusion"], few).iloc[1]
    found = explorer.attention(explorer.sources[2], *place, model="fusion")
    assert list(found["regions"]) == list(consulted.index)
    np.testing.assert_allclose(found["weights"], consulted, rtol=2e-3, atol=1e-6)


def test_a_shifted_image_is_predicted_as_the_encoder_predicts_its_set(explorer, parts):
    study, _, encoder, _ = parts
    two = shifted(study.set("test"), "masked", 2, 0).subset([4, 6])
    np.testing.assert_allclose(
        explorer.predicted("test", 6, "masked", 2), encoder.predict_stimuli(two)[1], atol=2e-3
    )
    alone = Explorer(study, None, encoder)
    np.testing.assert_allclose(
        alone.predicted("test", 6), explorer.all_predicted("test")[6], atol=1e-4
    )


def test_what_was_asked_for_lately_is_remembered():
    explorer = Explorer.__new__(Explorer)
    explorer._cache, made = {}, []
    for i in range(800):
        explorer._cached(("kept",), lambda: made.append("kept"))
        explorer._cached(("image", i), lambda: None)
    assert made == ["kept"] and len(explorer._cache) <= 256


def test_queries_of_the_encoder_are_named_by_their_vertices(explorer):
    regions = explorer.map_choices("encoder: ROI query over patches")["regions"]
    assert set(regions) == {f"{s}:{r}" for s in ("left", "right") for r in explorer.atlas.present}


def test_surface_select_hides_what_is_below_the_threshold(explorer):
    state = surface.State(region="FFC", threshold=0.5, hemispheres="left")
    found = surface.select(state, explorer)
    drawn = np.isfinite(found["values"])
    assert drawn.any() and (np.abs(found["values"][drawn]) >= 0.5).all()
    assert not drawn[np.asarray(explorer.atlas.hemisphere) == 1].any()
    left = explorer.mask(["FFC"]) & (np.asarray(explorer.atlas.hemisphere) == 0)
    response = explorer.all_predicted("test")[:, left].mean(1)
    labels = explorer.stimuli("test").labels
    assert found["tuning"]["mean"] == pytest.approx(
        [response[labels == c].mean() for c in range(4)]
    )
    assert found["tuning"]["best"][0] == response.argmax()


def test_a_click_switches_a_region_off_and_on_and_breaks_a_group_up(explorer):
    atlas = explorer.atlas
    vertex = int(np.flatnonzero(atlas.rois["LO"])[0])
    assert ablation.toggled((), atlas, vertex) == ("LO",)
    assert ablation.toggled(("LO", "V1"), atlas, vertex) == ("V1",)
    rest = ablation.toggled(("HVC",), atlas, vertex)
    assert np.array_equal(
        atlas.select(rest), atlas.select("HVC") & ~np.asarray(atlas.rois["LO"], bool)
    )


def test_ood_select_counts_the_images_that_flip(explorer, parts):
    study, models, _, _ = parts
    result = evaluate_ood(models, study, shifts=[("masked", 5)], sets=["test"], n_boot=10)
    source = ood.Source(result, explorer)
    found = ood.select(ood.State(), source)
    cell = result.per_image[result.per_image["shift"] == "masked"].pivot(
        index="id", columns="model", values="correct"
    )
    assert set(found["flips"]) == set(cell.index[cell["fusion"] & ~cell["backbone"]])
    assert found["grid"][0, -1] == pytest.approx(cell["fusion"].mean() - cell["backbone"].mean())
    first = (
        result.per_image.set_index(["model", "shift", "id"]).sort_index().loc[("fusion", "masked")]
    )
    names = study.set("test").class_names
    for identifier, text in zip(found["flips"], found["answers"]):
        true = names[first.loc[identifier, "label"]]
        assert f"true: {true}" in text and f"fusion: {true}" in text
        assert f"backbone: {true}" not in text


def frames(explorer, result, folder):
    record = Record("00_quickstart", {"seed": 0}, {"name": "planted", "simulated": True})
    for seed in (0, 1):
        record.add(
            "accuracy",
            0.5 + seed / 10,
            unit="fraction",
            split="test",
            n=10,
            selection="none",
            model=f"m{seed}",
        )
    for name in ("a", "b"):
        record.finish(folder / "out" / name)
    return {
        "surface": widgets.surface_viewer(explorer, folder=folder),
        "ablation": widgets.region_ablation(explorer, folder=folder),
        "attention": widgets.attention_explorer(explorer, folder=folder),
        "ood": widgets.ood_explorer(result, explorer, folder=folder),
        "runs": widgets.run_browser(folder / "out", pictures=folder),
    }


def sent(frame):
    """All that the page gets of a widget's figures."""
    return [(figure.geometry.value, figure.state.value) for figure in frame.figures]


def test_every_widget_opens_changes_and_saves_its_twin(explorer, result, tmp_path):
    changes = {
        "surface": {"region": "FFC"},
        "ablation": {"regions": ("HVC",)},
        "attention": {"source": "fusion: image over ROIs"},
        "ood": {"show": "accuracy of the first"},
        "runs": {"second": "a"},
    }
    for name, frame in frames(explorer, result, tmp_path).items():
        assert frame.error == "", (name, frame.error)
        before = sent(frame)
        frame.set(**changes[name])
        assert frame.error == "", (name, frame.error)
        assert before != sent(frame) or name == "runs"
        for act in (frame.save_figure, frame.save_html):
            assert act()
        assert (tmp_path / f"{name}-1.png").read_bytes().startswith(b"\x89PNG")
        for ending in ("pdf", "svg", "csv"):
            assert (tmp_path / f"{name}-1.{ending}").stat().st_size > 0
        page = (tmp_path / f"{name}-1.html").read_text()
        assert "plotly" in page and 'src="http' not in page
        assert name == "runs" or "(simulated responses)" in page


def test_every_widget_is_displayed_with_a_picture_for_pages_without_a_kernel(
    explorer, result, tmp_path
):
    for name, frame in frames(explorer, result, tmp_path).items():
        bundle = frame._repr_mimebundle_()
        view = bundle["application/vnd.jupyter.widget-view+json"]
        assert view["model_id"] == frame.model_id, name
        picture = Image.open(io.BytesIO(base64.b64decode(bundle["image/png"])))
        assert picture.format == "PNG" and min(picture.size) > 200, name


def displayed(frame):
    """Return the bundles that a cell with a widget as its last line displays."""
    shell = InteractiveShell.instance()
    try:
        with capture_output() as shown:
            shell.display_formatter.format(frame)
    finally:
        InteractiveShell.clear_instance()
    return [output.data for output in shown.outputs]


def test_a_cell_shows_the_picture_and_the_widget(explorer, tmp_path):
    style, picture, view = displayed(widgets.surface_viewer(explorer, folder=tmp_path))
    assert "bmfl-frame" in style["text/html"] and "image/png" not in style
    assert picture["text/plain"].startswith("Cortex of") and len(picture["image/png"]) > 1000
    assert "application/vnd.jupyter.widget-view+json" in view and "image/png" not in view


def test_a_widget_without_a_figure_is_displayed_all_the_same(tmp_path):
    frame = widgets.run_browser(tmp_path)
    assert frame.error and "image/png" not in frame._repr_mimebundle_()
    (view,) = displayed(frame)
    assert "application/vnd.jupyter.widget-view+json" in view


def test_the_copied_cell_runs_and_makes_the_saved_picture(explorer, result, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    states = {
        "surface": {"region": "FFC", "hemispheres": "left", "index": 2},
        "ablation": {"regions": ("HVC",), "strength": 0.5},
        "attention": {
            "source": "encoder: ROI query over patches",
            "compare": "another image",
            "other_index": 3,
        },
        "ood": {"show": "accuracy of the first"},
        "runs": {},
    }
    for name, frame in frames(explorer, result, tmp_path).items():
        frame.set(**states[name])
        assert frame.error == "", (name, frame.error)
        frame.show_code()
        exec(frame.code.value, {"explorer": explorer, "result": result})
        frame.save_figure()
        shown, saved = (Image.open(tmp_path / p) for p in (f"figures/{name}.png", f"{name}-1.png"))
        np.testing.assert_array_equal(np.asarray(shown), np.asarray(saved), err_msg=name)


def test_copied_code_names_the_variable_of_the_notebook(monkeypatch):
    thing = object()
    shell = types.SimpleNamespace(user_ns={"_": thing, "mine": thing})
    monkeypatch.setattr("IPython.get_ipython", lambda: shell)
    assert name_of(thing, "explorer") == "mine"
    assert name_of(object(), "explorer") == "explorer"
    assert name_of(ROOT / "out", "folder") == repr(str(ROOT / "out"))


def broken(images):
    def read(_):
        raise OSError("truncated file")

    return StimulusSet(
        "test", images.ids, read, images.digest_of, images.labels, images.class_names
    )


def test_missing_parts_give_a_sentence_and_leave_the_widget_usable(explorer, parts, tmp_path):
    study, models, encoder, store = parts
    without = widgets.surface_viewer(Explorer(study, None, None, store=store), folder=tmp_path)
    assert without.error == "" and without.state.show == "subject's response"
    without.set(show="predicted response")
    assert "Expected a brain encoder; got none" in without.status.value
    without.set(show="noise ceiling")
    assert without.error == ""
    nowhere = widgets.surface_viewer(explorer, images="nope", folder=tmp_path)
    assert "an image set" in nowhere.error
    nowhere.set(images="val")
    assert nowhere.error == "" and nowhere.state.images == "val"
    dull = dataclasses.replace(study.subject(), noise_ceiling=None)
    unknown = widgets.surface_viewer(
        Explorer(dataclasses.replace(study, subjects={dull.name: dull})), show="noise ceiling"
    )
    assert "a noise ceiling of" in unknown.error
    bare = dataclasses.replace(study, subjects={})
    nobody = widgets.surface_viewer(
        Explorer(bare, None, encoder, store=store), show="subject's response"
    )
    assert "a subject with responses" in nobody.error
    lesion = widgets.region_ablation(
        Explorer(bare, {"backbone": models["backbone"]}, None, store=store)
    )
    assert lesion.error == ""
    lesion.set(regions=("V1",))
    assert "a model with a brain to lesion" in lesion.error
    lesion.set(regions=())
    assert lesion.error == ""
    frame = widgets.region_ablation(explorer, folder=tmp_path)
    frame.set(regions=("FFA-9",))
    assert "an ROI or region group" in frame.error
    frame.set(regions=("V1",))
    assert frame.error == ""
    viewer = widgets.surface_viewer(explorer, folder=tmp_path)
    viewer.set(region="FFA-9")
    assert "region that the study has" in viewer.error and viewer.state.region == ""


def test_an_image_that_cannot_be_read_gives_a_sentence(parts):
    study, models, encoder, store = parts
    spoiled = dataclasses.replace(study, sets={**study.sets, "test": broken(study.set("test"))})
    frame = widgets.attention_explorer(
        Explorer(spoiled, models, encoder, store=store), source="backbone: CLS over patches"
    )
    assert "truncated file" in frame.error
    frame.set(images="val")
    assert frame.error == ""


def test_bad_sources_are_refused(explorer, tmp_path):
    with pytest.raises(DataError, match="pass the result of evaluate_ood"):
        ood.Source(pd.DataFrame({"model": []}))
    with pytest.raises(ConfigError, match="a trained model"):
        ablation.select(ablation.State(model="nope"), explorer)
    with pytest.raises(ConfigError, match="an attention source"):
        attention.select(attention.State(source="nope"), explorer)
    (tmp_path / "x").mkdir()
    (tmp_path / "x" / "record.json").write_text("{")
    frame = widgets.run_browser(tmp_path)
    assert "1 damaged" in frame.error
    assert runs.Source(tmp_path).damaged.keys() == {"x"}


def test_models_and_the_explorer_are_one_readable_line(explorer, parts):
    _, models, encoder, _ = parts
    for shown in (*models.values(), encoder, explorer):
        text = repr(shown)
        assert "\n" not in text and len(text) < 500 and text.startswith(type(shown).__name__)
    assert "simulated" in repr(encoder) and repr(encoder) in repr(models["fusion"])
    assert repr(encoder) not in repr(models["backbone"]) and "'fusion', 'backbone'" in repr(
        explorer
    )


def test_no_widget_imports_torch():
    paths = sorted((ROOT / "widgets").glob("*.py"))
    assert len(paths) >= 7
    for path in paths:
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            names = [a.name for a in node.names] if isinstance(node, ast.Import) else []
            names += [node.module or ""] if isinstance(node, ast.ImportFrom) else []
            assert not any(n.split(".")[0] == "torch" for n in names), path


def test_importing_the_widgets_loads_no_torch_and_does_not_wait_for_matplotlib():
    told = "print([m for m in ('torch', 'matplotlib') if m in sys.modules])"
    code = f"import sys, widgets; [getattr(widgets, n) for n in widgets.__all__]; {told}"
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.stdout.strip() == "[]", done.stdout + done.stderr


def test_the_package_exports_five_widgets():
    assert widgets.__all__ == [
        "attention_explorer",
        "ood_explorer",
        "region_ablation",
        "run_browser",
        "surface_viewer",
    ]
    with pytest.raises(AttributeError, match="no attribute 'nope'"):
        widgets.nope  # noqa: B018
