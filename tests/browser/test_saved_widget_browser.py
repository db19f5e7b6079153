"""A widget in a saved notebook: its picture is shown as soon as its kernel is gone."""

import pytest

from bmfl_lab.records import Record

pytestmark = pytest.mark.browser


def shown(page):
    """Return how many widgets, pictures and complaints about a missing widget are visible."""
    places = (".bmfl-frame", ".jp-RenderedImage img", "text=model not found")
    return [page.locator(place).locator("visible=true").count() for place in places]


def test_the_picture_replaces_the_widget_when_the_kernel_is_gone(lab, watch):
    for number in (1, 2):
        record = Record("00_quickstart", {"seed": number}, {"name": "planted"})
        place = {"split": "test", "n": 100, "selection": "none", "model": "fusion"}
        record.add("accuracy", 0.4 + number / 10, unit="fraction", **place)
        record.finish(lab.root / "saved" / f"run-{number}")
    name = lab.write("saved.ipynb", ["import widgets", "widgets.run_browser('saved')"])
    watched = watch(width=1280)
    watched.run_all(lab, name)
    page = watched.page
    page.wait_for_selector(".bmfl-frame .js-plotly-plot .main-svg", timeout=90_000)
    assert shown(page) == [1, 0, 0], "while the widget lives, its picture is hidden"
    assert page.get_by_text("Copy as code", exact=True).is_visible()
    page.evaluate("() => window.jupyterapp.commands.execute('docmanager:save')")
    page.wait_for_timeout(3000)
    lab.stop_kernels()
    page.goto(f"{lab.url}/lab/tree/{name}?token={lab.token}&reset")
    page.wait_for_selector("text=/Python 3.*\\| Idle/", timeout=90_000)
    page.wait_for_selector(".jp-RenderedImage img", timeout=60_000)
    page.wait_for_timeout(4000)
    assert shown(page) == [0, 1, 0], "only the picture is shown"
    assert page.locator(".jp-RenderedImage img").evaluate("e => e.naturalWidth > 200")
