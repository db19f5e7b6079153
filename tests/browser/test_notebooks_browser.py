"""Notebooks in a real JupyterLab: run whole with their widgets, and opened as files without a kernel."""

import shutil
from pathlib import Path

import nbformat
import pytest

ROOT = Path(__file__).resolve().parents[2]

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


CONTROLS = {
    "05": [
        lambda w, f: f.get_by_label("FFC", exact=True).click(),
        lambda w, f: w.press(f, "Image"),
    ],
    "06": [
        lambda w, f: w.press(f, "Image"),
        lambda w, f: f.get_by_label("ROI query", exact=True).select_option(index=0),
    ],
}


@pytest.mark.parametrize("number", CONTROLS)
def test_a_notebook_runs_whole_with_its_widgets(number, lab, watch):
    (path,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    shutil.copy(path, lab.root / path.name)
    watched = watch(width=1280)
    watched.run_all(lab, path.name, timeout=900)
    frames = watched.page.locator(".bmfl-frame")
    assert frames.count() == 1
    frame = frames.first
    watched.shoot(frame, f"{path.stem}-widget")
    said = frame.locator(".bmfl-status").inner_text()
    for act in CONTROLS[number]:
        watched.change(0, lambda f, act=act: act(watched, f))
        watched.settle()
    assert frame.locator(".bmfl-status").inner_text() != said
    watched.shoot(frame, f"{path.stem}-widget-changed")
    watched.shoot(watched.page.locator(".jp-OutputArea-output img").last, f"{path.stem}-static")
    assert watched.kernel_errors() == [] and watched.errors == []
    assert watched.hosts <= {"127.0.0.1"}, watched.hosts


@pytest.mark.parametrize("number, least", [("00", 3), ("06", 8)])
def test_an_executed_notebook_shows_its_figures_without_a_kernel(
    number, least, lab, watch, tmp_path
):
    # run as the runner does, without the widgets; then opened elsewhere, with no kernel to ask
    papermill = pytest.importorskip("papermill")
    (source,) = (ROOT / "notebooks").glob(f"{number}_*.ipynb")
    executed = lab.root / f"executed-{number}.ipynb"
    papermill.execute_notebook(
        source, executed, {"out": str(tmp_path)}, progress_bar=False, cwd=tmp_path
    )
    notebook = nbformat.read(executed, 4)
    notebook.metadata.kernelspec = {"name": "gone", "display_name": "gone", "language": "python"}
    nbformat.write(notebook, executed)
    watched = watch(width=1280)
    page = watched.page
    page.goto(f"{lab.url}/lab/tree/{executed.name}?token={lab.token}&reset")
    page.wait_for_selector(".jp-Notebook", timeout=90_000)
    page.wait_for_selector(".jp-OutputArea img", timeout=60_000)
    page.wait_for_timeout(2000)
    figures = page.locator(".jp-OutputArea img")
    assert figures.count() >= least
    for k in range(figures.count()):
        assert figures.nth(k).evaluate("e => e.complete && e.naturalWidth > 200")
        assert figures.nth(k).get_attribute("src").startswith("data:image/png")
    answer = page.get_by_alt_text("The answer on the planted study")
    answer.scroll_into_view_if_needed()
    page.wait_for_function("e => e.complete && e.naturalWidth > 200", arg=answer.element_handle())
    watched.shoot(figures.last, f"{source.stem}-no-kernel")
    assert watched.kernel_errors() == [] and watched.errors == []
    assert watched.hosts <= {"127.0.0.1"}, watched.hosts
