"""Hostile names of classes, images, ROIs and runs on real pages: they are shown and never act."""

import html

import nbformat
import pandas as pd
import pytest
from jupyter_page import watching
from nbconvert.filters import markdown2html
from widget_page import SETUP

from bmfl_lab.evaluation.report import headline, report
from bmfl_lab.records import MetricRow
from bmfl_lab.runs.export import export_html

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1800)]

ACT = "document.documentElement.dataset.owned=1"
NAMES = {
    "class": f"<img src=x onerror={ACT}>",
    "image": f"<script>{ACT}</script>",
    "ROI": f"<svg onload={ACT}>",
    "run": f"</script><iframe srcdoc='<script>parent.{ACT}</script>'>",
    "model": f"\"' onmouseover='{ACT}' style='position:fixed;inset:0'",
    "subject": f"[x](javascript:{ACT}) <a href='javascript:{ACT}'>y</a>",
    "shift": f"<details open ontoggle={ACT}>",
    "study": f"<style>@import 'http://192.0.2.1/x.css'</style><body onload={ACT}>",
    "note": f"{{{{constructor.constructor('{ACT}')()}}}} $\\href{{javascript:{ACT}}}{{x}}$",
}
OWNED = "() => 'owned' in document.documentElement.dataset"
WIDGETS = (
    "surface = widgets.surface_viewer(explorer, region=names['ROI']); surface",
    "ablation = widgets.region_ablation(explorer); ablation",
    "attention = widgets.attention_explorer(explorer); attention",
    "result = evaluate_ood(models, study, shifts=[('masked', 3)], n_boot=20)\n"
    "ood = widgets.ood_explorer(result, explorer); ood",
    "runs = widgets.run_browser('hostile'); runs",
)


def rename(names):
    """Return a cell that gives classes, images, ROIs, models and runs hostile names."""
    return f"""
import dataclasses, numpy as np, pathlib
from bmfl_lab.records import Record
names = {names!r}
classes = tuple(f"{{names['class']}} {{k}}" for k in range(len(study.class_names)))
def renamed(images):
    ids = np.array([f"{{names['image']}} {{k}}" for k in images.ids], object)
    given = classes if images.class_names else ()
    return dataclasses.replace(images, ids=ids, class_names=given)
def marked(atlas):
    rois = {{**atlas.rois, names["ROI"]: next(iter(atlas.rois.values()))}}
    return dataclasses.replace(atlas, rois=rois)
def person(subject):
    stimuli, atlas = renamed(subject.stimuli), marked(subject.atlas)
    return dataclasses.replace(subject, stimuli=stimuli, atlas=atlas)
study = dataclasses.replace(study, sets={{k: renamed(v) for k, v in study.sets.items()}},
    subjects={{k: person(v) for k, v in study.subjects.items()}})
models = {{names["model"]: dataclasses.replace(models["fusion"], class_names=classes),
    "backbone": dataclasses.replace(models["backbone"], class_names=classes)}}
encoder = dataclasses.replace(encoder, atlas=marked(encoder.atlas))
explorer = Explorer(study, models, encoder, store=store)
for k in (1, 2):
    place = dict(split="test", n=100, selection="none", model=names["model"], shift=names["shift"])
    about = {{"name": names["study"], "fingerprint": "0", "simulated": True}}
    record = Record("00_quickstart", {{"seed": k, "label": names["note"]}}, about)
    record.add("accuracy", 0.5, unit="fraction", subject=names["subject"], roi=names["ROI"], **place)
    _ = record.finish(pathlib.Path("hostile") / f"run-{{k}} " / names["run"].replace("/", "_")[:120])
"""


@pytest.fixture
def page(chrome):
    """Return a function that opens a file, waits, and returns the page after checking it."""
    with watching(chrome, _NoLab()) as opened:

        def show(path):
            watched = opened()
            dialogs = []
            watched.page.on("dialog", lambda d: (dialogs.append(d.message), d.dismiss()))
            watched.page.goto(f"file://{path}")
            watched.page.wait_for_timeout(1500)
            assert not watched.page.evaluate(OWNED) and not dialogs
            assert watched.hosts == set() and not watched.page.locator("iframe, svg").count()
            return watched.page

        yield show


class _NoLab:
    def put_setting(self, name, value):
        """Do nothing: a file has no settings of JupyterLab."""


def test_a_report_shows_hostile_names(page, tmp_path):
    place = {"unit": "fraction", "split": NAMES["shift"], "n": 400, "roi": NAMES["ROI"]}
    place |= {"subject": NAMES["subject"], "selection": NAMES["note"], "notes": NAMES["note"]}
    rows = [
        MetricRow("pearson_r", value, seed=seed, model=model, **place)
        for model, value in ((NAMES["model"], 0.7), (NAMES["class"], 0.6))
        for seed in (0, 1)
    ]
    frame = pd.DataFrame([vars(r) for r in rows])
    frame = frame.assign(run_id=f"04-1{NAMES['run']}", study=NAMES["study"])
    shown = headline(["02_brain_encoder"], frame)
    text = report(frame, f"Report of {NAMES['image']}", ["ok"], shown)
    (tmp_path / "report.html").write_text(
        f"<!doctype html><meta charset=utf-8><body>{markdown2html(text)}", encoding="utf-8"
    )
    shown = page(tmp_path / "report.html").locator("body").inner_text()
    for name in ("class", "ROI", "model"):
        assert NAMES[name] in shown.replace("\u200b", ""), name


def test_an_exported_notebook_shows_hostile_names(page, tmp_path):
    outputs = [
        nbformat.v4.new_output("display_data", {kind: name})
        for name in NAMES.values()
        for kind in ("text/html", "text/markdown", "text/plain", "text/latex", "image/svg+xml")
    ]
    outputs += [
        nbformat.v4.new_output("stream", name="stdout", text=name) for name in NAMES.values()
    ]
    code = nbformat.v4.new_code_cell("\n".join(f"# {n}" for n in NAMES.values()), outputs=outputs)
    prose = [nbformat.v4.new_markdown_cell(f"# {n}\n\n{html.escape(n)}") for n in NAMES.values()]
    source = tmp_path / "a.ipynb"
    nbformat.write(nbformat.v4.new_notebook(cells=[*prose, code]), source)
    shown = page(export_html(source)).locator("body").inner_text()
    for name in ("class", "image", "ROI"):
        assert NAMES[name] in shown, name


def test_widgets_show_hostile_names(lab, watch, models):
    watched = watch(width=1280)
    cells = [SETUP.format(root=models), rename(NAMES), *WIDGETS]
    watched.run_all(lab, lab.write("hostile.ipynb", cells), timeout=900)
    page = watched.page
    page.wait_for_function(
        "() => document.querySelectorAll('.bmfl-frame').length === 5", timeout=300_000
    )
    page.wait_for_timeout(3000)
    assert watched.kernel_errors() == []
    for k in range(len(WIDGETS)):
        frame = page.locator(".bmfl-frame").nth(k)
        frame.scroll_into_view_if_needed()
        box = frame.bounding_box()
        for share in (0.2, 0.4, 0.6, 0.8):  # what is written when the mouse stands on a mark
            page.mouse.move(box["x"] + share * box["width"], box["y"] + box["height"] / 2)
            page.wait_for_timeout(300)
    assert not page.evaluate(OWNED)
    frames = " ".join(page.locator(".bmfl-frame").all_inner_texts())
    assert page.locator(".bmfl-frame iframe, .bmfl-frame img[src=x]").count() == 0
    assert NAMES["model"] in frames and watched.hosts <= {"127.0.0.1"}, watched.hosts
    listed = page.locator(".bmfl-frame option").all_text_contents()
    # a list of choices writes each space as one that does not break
    assert any(NAMES["ROI"] in text.replace("\u00a0", " ") for text in listed), listed
