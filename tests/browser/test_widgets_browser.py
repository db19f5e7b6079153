"""Every widget in a real JupyterLab: it opens, answers controls and clicks, fits theme and width, and asks no host."""

import re

import pytest
from widget_page import SETUP, WIDGETS

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

CONTROLS = {
    "surface": [
        lambda p, f: p.press(f, "Image"),
        lambda p, f: f.get_by_label("Map", exact=True).select_option("encoding accuracy"),
        lambda p, f: f.get_by_label("Hemispheres", exact=True).select_option("left"),
        lambda p, f: f.get_by_label("Region", exact=True).select_option("V1"),
    ],
    "ablation": [
        lambda p, f: f.get_by_label("HVC", exact=True).check(),
        lambda p, f: f.get_by_label("Lesion", exact=True).select_option("zero"),
        lambda p, f: p.press(f, "Strength", "ArrowLeft"),
        lambda p, f: p.press(f, "Image"),
    ],
    "attention": [
        lambda p, f: p.press(f, "Image"),
        lambda p, f: f.get_by_label("Attention", exact=True).select_option(
            "encoder: ROI query over patches"
        ),
        lambda p, f: f.get_by_label("Shift", exact=True).select_option("masked"),
        lambda p, f: p.press(f, "Opacity"),
    ],
    "ood": [
        lambda p, f: f.get_by_label("Grid", exact=True).select_option("accuracy of the first"),
        lambda p, f: f.get_by_label("Shift or set", exact=True).select_option("sketch"),
        lambda p, f: f.get_by_label("Images", exact=True).select_option("only the first is right"),
    ],
    "runs": [lambda p, f: f.get_by_label("Metric", exact=True).select_option("balanced_accuracy")],
}

PICTURES = """async (e) => { const all = [...e.querySelectorAll('.bmfl-picture img')].filter(i => i.offsetParent);
    return Promise.all(all.map(async i => String(new Uint8Array(await (await fetch(i.src)).arrayBuffer())))) }"""


def test_two_images_beside_each_other_differ_with_their_maps(opened):
    frame = opened.frame("attention")
    frame.get_by_label("Attention", exact=True).select_option("encoder: ROI query over patches")
    opened.watched.settle()
    first, first_map, other, other_map = frame.evaluate(PICTURES)
    assert first != other and first_map != other_map
    opened.watched.shoot(frame, "attention-two-images")
    opened.change("attention", lambda f: opened.press(f, "Other image"))
    opened.watched.settle()  # the picture and its map arrive apart
    changed = frame.evaluate(PICTURES)
    assert changed[:2] == [first, first_map] and changed[2] != other and changed[3] != other_map
    frame.get_by_label("Attention", exact=True).select_option("fusion: brain over patches")
    opened.healthy()


@pytest.mark.parametrize("name", WIDGETS)
def test_a_widget_opens_and_answers_its_controls(name, opened):
    opened.watched.shoot(opened.frame(name), f"{name}-1280-light")
    for act in CONTROLS[name]:
        opened.change(name, lambda frame, act=act: act(opened, frame))
    opened.watched.settle()
    opened.watched.shoot(opened.frame(name), f"{name}-1280-light-changed")
    opened.healthy()


def order(frame, column):
    """Return how a column of the table sorts it, and the names of the runs from top to bottom."""
    header = frame.locator("th", has=frame.page.get_by_role("button", name=column))
    names = frame.locator(".bmfl-table tbody td:first-child").all_inner_texts()
    return header.get_attribute("aria-sort"), [name.split("\n")[0] for name in names]


def test_a_header_sorts_the_table_by_mouse_and_by_keyboard(opened):
    frame = opened.frame("runs")
    header = frame.get_by_role("button", name="seed")
    header.click()
    opened.watched.settle()
    assert order(frame, "seed") == ("descending", ["run-2", "run-1"])
    opened.page.keyboard.press("Enter")  # the header keeps the focus
    opened.watched.settle()
    assert order(frame, "seed") == ("ascending", ["run-1", "run-2"])
    assert frame.locator(".bmfl-table a").count() == 1
    opened.healthy()


MARKS = """e => [...e.querySelectorAll('.scatterlayer .trace')].map(
    trace => [...trace.querySelectorAll('.points path')].map(p => p.getBoundingClientRect()).map(b => (b.top + b.bottom) / 2))"""


def test_the_intervals_of_two_runs_stand_one_above_the_other(opened):
    first, second = opened.frame("runs").locator(".js-plotly-plot").first.evaluate(MARKS)
    assert len(first) == len(second) > 3
    assert all(5 < abs(one - other) < 20 for one, other in zip(first, second)), (first, second)


def test_every_widget_names_the_weights_of_its_backbone(opened):
    for name in WIDGETS:
        note = opened.frame(name).locator(".bmfl-note", has_text="Backbone").inner_text()
        assert "vit_tiny14, random weights (seed 0), untrained" in note, name


CELL = """(e, [x, y]) => { const place = (axis, name) => axis._offset + axis.l2p(axis._categories.indexOf(name));
    return [place(e._fullLayout.xaxis, x), place(e._fullLayout.yaxis, y)] }"""


def test_a_click_on_the_grid_chooses_shift_and_severity(opened):
    frame = opened.frame("ood")
    chosen = {k: frame.get_by_label(k, exact=True) for k in ("Shift or set", "Severity")}
    chosen["Shift or set"].select_option("sketch")
    opened.watched.settle()
    assert "sketch 3" in opened.status("ood")
    plot = frame.locator(".js-plotly-plot").first
    plot.scroll_into_view_if_needed()
    opened.page.wait_for_timeout(500)
    x, y = plot.evaluate(CELL, ["5", "masked"])  # the middle of that cell
    opened.change("ood", lambda _: plot.click(position={"x": x, "y": y}))
    opened.watched.settle()
    shift, severity = (c.locator("option:checked").inner_text() for c in chosen.values())
    assert shift == "masked" and severity == "5"
    assert "masked 5" in opened.status("ood")
    opened.healthy()


def test_controls_are_reached_and_worked_by_the_keyboard(opened):
    from playwright.sync_api import expect

    frame = opened.frame("attention")
    frame.get_by_label("Image set", exact=True).focus()
    seen = set()
    for _ in range(16):
        seen.add(
            opened.page.evaluate(
                "() => (document.activeElement.getAttribute('role') || document.activeElement.tagName)"
            )
        )
        opened.page.keyboard.press("Tab")
    assert {"SELECT", "slider"} <= {s if s == "slider" else s.upper() for s in seen}, seen
    lists, cell = (
        frame.get_by_label("Head", exact=True),
        "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex",
    )
    lists.focus()  # the last Tab may have left this cell
    before, place = lists.input_value(), opened.page.evaluate(cell)
    opened.page.keyboard.press("ArrowDown")
    opened.watched.settle()
    assert lists.input_value() != before and opened.page.evaluate(cell) == place, (
        "the page took a list's key for itself"
    )
    frame.get_by_text("Copy as code", exact=True).focus()
    opened.page.keyboard.press("Enter")
    code = re.compile(re.escape("figure_of(state, explorer)"))
    expect(frame.locator("textarea")).to_have_value(code, timeout=30_000)
    opened.healthy()


# sizes of the places of all visible figures, and of what was drawn there
SIZES = """(e) => [...e.querySelectorAll('.js-plotly-plot')].filter(p => p.offsetParent && p.clientWidth).map(
    p => [p.clientWidth, p.clientHeight, p._fullLayout.width, p._fullLayout.height])"""


@pytest.mark.parametrize("width", [900, 1440])
@pytest.mark.parametrize("dark", [True, False])
def test_widgets_follow_theme_and_width(width, dark, opened):
    opened.page.set_viewport_size({"width": width, "height": 1500})
    theme = f"JupyterLab {'Dark' if dark else 'Light'}"
    opened.page.evaluate(
        "(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme
    )
    opened.page.wait_for_function(
        f"() => document.body.dataset.jpThemeLight === '{'false' if dark else 'true'}'",
        timeout=60_000,
    )
    opened.page.wait_for_timeout(2500)
    for name in WIDGETS:
        frame = opened.frame(name)
        inner, outer = (frame.evaluate(f"e => e.{side}Width") for side in ("scroll", "client"))
        assert inner <= outer + 8, (
            f"{name} is wider than its place"
        )  # margins of hidden figures cut nothing off
        for *place, drawn_width, drawn_height in frame.evaluate(SIZES):
            assert [drawn_width, drawn_height] == pytest.approx(place, abs=1), (
                f"a figure of {name} does not fit"
            )
        paper, ink = frame.locator(".js-plotly-plot").first.evaluate(
            "e => [e._fullLayout.paper_bgcolor, e._fullLayout.font.color]"
        )
        assert (
            luminance(opened.page, paper) < 0.3 if dark else luminance(opened.page, paper) > 0.7
        ), paper
        assert luminance(opened.page, ink) > 0.6 if dark else luminance(opened.page, ink) < 0.4, ink
        opened.watched.shoot(frame, f"{name}-{width}-{'dark' if dark else 'light'}")
    for caption in opened.frame("ood").locator("figcaption").all():
        size, inner, outer = caption.evaluate(
            "e => [parseFloat(getComputedStyle(e).fontSize), e.scrollWidth, e.clientWidth]"
        )
        assert size >= 12 and inner <= outer
    assert opened.frame("ood").locator("figcaption", has_text="true:").count() == 10
    table = opened.frame("runs").locator(".bmfl-table")
    hidden = table.evaluate("e => e.scrollWidth > e.clientWidth + 1")
    assert opened.frame("runs").get_by_text("Scroll the table sideways").is_visible() == hidden
    table.evaluate("e => { e.scrollLeft = 1e4 }")
    first, whole = (table.locator(k).first.bounding_box() for k in ("td", "xpath=."))
    assert abs(first["x"] - whole["x"]) < 2, "the names of the runs scroll away"
    opened.healthy()


def luminance(page, colour):
    """How bright a CSS colour is, 0 to 1, by the browser's own reading of it on mid grey."""
    red, green, blue = page.evaluate(
        """(c) => { const x = document.createElement('canvas').getContext('2d', {willReadFrequently: true});
        x.fillStyle = '#808080'; x.fillRect(0, 0, 1, 1); x.fillStyle = c; x.fillRect(0, 0, 1, 1);
        return [...x.getImageData(0, 0, 1, 1).data].slice(0, 3) }""",
        colour,
    )
    return (0.2126 * red + 0.7152 * green + 0.0722 * blue) / 255


def test_the_executed_notebook_of_a_run_opens_from_the_table(opened):
    with opened.page.context.expect_page() as popup:
        opened.frame("runs").get_by_text("notebook", exact=True).last.click()
    shown = ".jp-RenderedMarkdown:has-text('The executed notebook of run 1')"
    popup.value.wait_for_selector(shown, timeout=120_000)
    popup.value.close()


def test_bad_input_gives_a_sentence_and_leaves_the_widget_usable(lab, watch, models):
    cells = [
        SETUP.format(root=models),
        "import dataclasses\nwidgets.surface_viewer(Explorer(study, store=store))",
        'widgets.surface_viewer(Explorer(dataclasses.replace(study, subjects={}), None, encoder, store=store), show="subject\'s response")',
    ]
    watched = watch(width=1280)
    watched.run_all(lab, lab.write("bad.ipynb", cells), timeout=600)
    page = watched.page
    frames = page.locator(".bmfl-frame")
    frames.nth(1).locator(".bmfl-error").wait_for(timeout=60_000)
    assert "a subject with responses" in frames.nth(1).locator(".bmfl-error").inner_text()
    frames.nth(0).get_by_label("Map", exact=True).select_option("predicted response")
    frames.nth(0).locator(".bmfl-error").wait_for(timeout=60_000)
    assert "Expected a brain encoder" in frames.nth(0).locator(".bmfl-error").inner_text()
    watched.shoot(frames.nth(0), "surface-error")
    frames.nth(0).get_by_label("Map", exact=True).select_option("noise ceiling")
    frames.nth(0).locator(".bmfl-status", has_text="vertices drawn").wait_for(timeout=60_000)
    assert watched.errors == [] and watched.hosts <= {"127.0.0.1"}
