"""Every widget in a real JupyterLab: it opens, answers its controls, and says no word to a foreign host."""

import shutil
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(900)]

SETUP = """
import warnings; warnings.simplefilter("ignore")
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.training import presets, train_brain_encoder, train_fusion
import dataclasses, widgets
study, store = load_study("planted"), FeatureStore()
config, encoder_config = presets("tiny")
encoder = train_brain_encoder(encoder_config, study, store=store)
models = {h: train_fusion(dataclasses.replace(config, head=h), study, encoder=encoder, store=store) for h in ("fusion", "backbone")}
explorer = Explorer(study, models, encoder, store=store)
"""
WIDGETS = {
    "surface": "frame = widgets.surface_viewer(explorer, region='FFC'); frame",
    "ablation": "frame = widgets.region_ablation(explorer); frame",
    "attention": "frame = widgets.attention_explorer(explorer, compare='another image'); frame",
    "ood": "result = evaluate_ood(models, study, shifts=[('masked', 1), ('masked', 3), ('masked', 5), ('sketch', 3)], n_boot=20)\n"
    "frame = widgets.ood_explorer(result, explorer); frame",
    "runs": "from bmfl_lab.records import Record\n"
    "for k in (1, 2):\n"
    "    record = Record('00_quickstart', {'study': 'planted', 'seed': k}, study.summary())\n"
    "    record.extend(evaluate_ood(models, study, n_boot=20, seed=k).rows); record.finish(f'out/run-{k}')\n"
    "frame = widgets.run_browser('out'); frame",
}


def pictures(watched):
    """What the figures draw, as text: it changes when a figure changes."""
    script = """() => [...document.querySelectorAll('.bmfl-frame .js-plotly-plot')].map(e => JSON.stringify(
        e.data.map(t => [t.source, t.x, t.y, t.z, t.intensity]))).join()"""
    return watched.page.evaluate(script)


def change(watched, act):
    before = pictures(watched)
    act(watched.page)
    watched.page.wait_for_function(
        """(before) => [...document.querySelectorAll('.bmfl-frame .js-plotly-plot')].map(e => JSON.stringify(
        e.data.map(t => [t.source, t.x, t.y, t.z, t.intensity]))).join() !== before""",
        arg=before,
        timeout=30_000,
    )


def press_slider(page, label):
    row = page.locator(".widget-slider", has=page.locator(f".widget-label:text-is('{label}')"))
    row.locator(".noUi-handle").focus()
    page.keyboard.press("ArrowRight")


ACTS = {
    "surface": lambda page: press_slider(page, "Image"),
    "ablation": lambda page: page.get_by_label("HVC", exact=True).check(),
    "attention": lambda page: press_slider(page, "Image"),
    "ood": lambda page: page.get_by_label("Grid", exact=True).select_option("accuracy of the first"),
    "runs": lambda page: page.get_by_label("Metric", exact=True).select_option("balanced_accuracy"),
}


def healthy(watched):
    assert watched.kernel_errors() == []
    assert watched.errors == []
    assert watched.hosts <= {"127.0.0.1"}, watched.hosts


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_opens_and_answers_a_control(name, lab, watch):
    notebook = lab.write(f"{name}.ipynb", [SETUP, WIDGETS[name]])
    watched = watch(width=1280)
    watched.run_all(lab, notebook)
    watched.page.wait_for_selector(".bmfl-frame .js-plotly-plot", timeout=60_000)
    watched.page.wait_for_timeout(1500)
    frame = watched.page.locator(".bmfl-frame")
    watched.shoot(frame, f"{name}-1280-light")
    change(watched, ACTS[name])
    watched.settle()
    watched.shoot(frame, f"{name}-1280-light-changed")
    healthy(watched)


@pytest.mark.parametrize("width, dark", [(1280, True), (1920, False), (1920, True)])
def test_a_widget_fits_both_themes_and_widths(width, dark, lab, watch):
    notebook = lab.write(f"surface-{width}-{dark}.ipynb", [SETUP, WIDGETS["surface"]])
    watched = watch(width=width, dark=dark)
    watched.run_all(lab, notebook)
    watched.page.wait_for_selector(".bmfl-frame .js-plotly-plot", timeout=60_000)
    frame = watched.page.locator(".bmfl-frame")
    inner, outer = (frame.evaluate(f"e => e.{side}Width") for side in ("scroll", "client"))
    assert inner <= outer + 2, "the widget is wider than its place"
    watched.shoot(frame, f"surface-{width}-{'dark' if dark else 'light'}")
    healthy(watched)


@pytest.mark.parametrize("number", ["05", "06"])
def test_a_notebook_runs_whole_with_its_widgets(number, lab, watch):
    for path in sorted((ROOT / "notebooks").glob(f"{number}_*.ipynb")):
        shutil.copy(path, lab.root / path.name)
        watched = watch(width=1280)
        watched.run_all(lab, path.name, timeout=600)
        for i in range(watched.page.locator(".bmfl-frame").count()):
            watched.shoot(watched.page.locator(".bmfl-frame").nth(i), f"{path.stem}-widget-{i}")
        healthy(watched)
