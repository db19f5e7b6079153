"""Every widget in a real JupyterLab: it opens, answers controls and clicks, fits theme and width, and asks no host."""

import io

import numpy as np
import pytest
from PIL import Image
from scipy import ndimage

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

SETUP = """
import warnings; warnings.simplefilter("ignore")
import widgets
from bmfl_lab import load_study
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.evaluation import Explorer, evaluate_ood
from bmfl_lab.training import load_encoder, load_fusion
study, store = load_study("planted"), FeatureStore(r"{root}/features")
encoder = load_encoder(r"{root}/encoder")
spec = study.backbone
backbone = load_backbone(spec.name, spec.weights, image_size=spec.image_size, resize=spec.resize)
models = {{h: load_fusion(r"{root}/" + h, backbone, encoder=encoder, store=store) for h in ("fusion", "backbone")}}
explorer = Explorer(study, models, encoder, store=store)
"""
WIDGETS = {
    "surface": "surface = widgets.surface_viewer(explorer, region='FFC'); surface",
    "ablation": "ablation = widgets.region_ablation(explorer); ablation",
    "attention": "attention = widgets.attention_explorer(explorer, compare='another image', other_index=9); attention",
    "ood": "result = evaluate_ood(models, study, shifts=[('masked', 1), ('masked', 3), ('masked', 5), ('sketch', 3)], n_boot=20)\n"
    "ood = widgets.ood_explorer(result, explorer); ood",
    "runs": "import pathlib, nbformat\n"
    "from bmfl_lab.records import Record\n"
    "for k in (1, 2):\n"
    "    record = Record('00_quickstart', {'study': 'planted', 'seed': k}, study.summary())\n"
    "    record.extend(evaluate_ood(models, study, n_boot=20, seed=k).rows); record.finish(f'out/run-{k}')\n"
    "done = nbformat.v4.new_notebook(cells=[nbformat.v4.new_markdown_cell('# The executed notebook of run 1')])\n"
    "nbformat.write(done, 'out/run-1/executed.ipynb')\n"
    "runs = widgets.run_browser('out'); runs",
}


def coloured(picture):
    """Return the places (x, y) inside coloured spots of a picture of grey cortex, the largest first."""
    rgb = np.asarray(Image.open(io.BytesIO(picture)).convert("RGB")).astype(int)
    colour = rgb.max(2) - rgb.min(2) > 40
    colour[:, int(0.8 * colour.shape[1]) :] = False  # the colour bar
    spots, n = ndimage.label(ndimage.binary_dilation(colour))
    found = []
    for spot in range(1, n + 1):
        y, x = np.nonzero((spots == spot) & colour)
        middle = np.argmin(np.abs(y - np.median(y)) + np.abs(x - np.median(x)))
        found.append((len(y), int(x[middle]), int(y[middle])))
    return [(x, y) for _, x, y in sorted(found, reverse=True)[:8]]


class Page:
    """A notebook with all five widgets, run once."""

    def __init__(self, lab, watched, models):
        self.lab, self.watched, self.page = lab, watched, watched.page
        name = lab.write("widgets.ipynb", [SETUP.format(root=models), *WIDGETS.values()])
        watched.run_all(lab, name, timeout=600)
        assert watched.kernel_errors() == []
        self.page.wait_for_function("() => document.querySelectorAll('.bmfl-frame').length === 5", timeout=120_000)
        self.page.wait_for_timeout(2000)

    def frame(self, name):
        return self.page.locator(".bmfl-frame").nth(list(WIDGETS).index(name))

    def status(self, name):
        return self.frame(name).locator(".bmfl-status, .bmfl-error").first.inner_text()

    def change(self, name, act):
        """Do something and wait until the widget's figures show something else."""
        self.watched.change(list(WIDGETS).index(name), act)

    def press(self, frame, label, key="ArrowRight"):
        self.watched.press(frame, label, key)

    def dot(self, name):
        """Click on coloured places of the cortex, the largest first, until the kernel hears of one."""
        canvas = self.frame(name).locator(".gl-container canvas").first
        canvas.scroll_into_view_if_needed()
        before = self.status(name)
        box = canvas.bounding_box()
        for x, y in coloured(canvas.screenshot()):
            at = box["x"] + x, box["y"] + y
            self.page.mouse.move(at[0] - 3, at[1] - 3)
            self.page.mouse.move(*at, steps=3)
            self.page.wait_for_timeout(350)
            self.page.mouse.click(*at)  # the button is down for less than a frame
            for _ in range(20):
                self.page.wait_for_timeout(250)
                if self.status(name) != before:
                    return True
        return False

    def healthy(self):
        assert self.watched.kernel_errors() == []
        assert self.watched.errors == []
        assert self.watched.hosts <= {"127.0.0.1"}, self.watched.hosts


@pytest.fixture(scope="module")
def opened(lab, watch_module, models):
    return Page(lab, watch_module(width=1280), models)


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
        lambda p, f: f.get_by_label("Attention", exact=True).select_option("encoder: ROI query over patches"),
        lambda p, f: f.get_by_label("Shift", exact=True).select_option("masked"),
        lambda p, f: p.press(f, "Opacity"),
    ],
    "ood": [
        lambda p, f: f.get_by_label("Grid", exact=True).select_option("accuracy of the first"),
        lambda p, f: f.get_by_label("Shift or set", exact=True).select_option("sketch"),
        lambda p, f: f.get_by_label("Flips", exact=True).select_option("only the first is right"),
    ],
    "runs": [lambda p, f: f.get_by_label("Metric", exact=True).select_option("balanced_accuracy")],
}


PICTURES = """async (e) => { const all = [...e.querySelectorAll('.bmfl-picture img')].filter(i => i.offsetParent);
    return Promise.all(all.map(async i => String(new Uint8Array(await (await fetch(i.src)).arrayBuffer())))) }"""


def test_the_cortex_is_drawn_in_colours(opened):
    for name in ("surface", "ablation"):
        canvas = opened.frame(name).locator(".gl-container canvas").first
        canvas.scroll_into_view_if_needed()
        opened.page.wait_for_timeout(500)
        assert coloured(canvas.screenshot()), f"the canvas of {name} shows no map"
        assert opened.frame(name).get_by_text("WebGL is not supported").count() == 0


def drawn(canvas):
    """The pixels of a canvas on the page, int (h, w, 3)."""
    canvas.scroll_into_view_if_needed()
    return np.asarray(Image.open(io.BytesIO(canvas.screenshot())).convert("RGB")).astype(int)


def differing(one, other):
    """How much the pixels of two canvases differ, without the frame's edge and the colour bar."""
    height = min(len(one), len(other))  # a canvas may begin within a pixel of the page
    inner = slice(5, height - 5), slice(5, -80)
    return np.abs(one[inner] - other[inner]).max(2)


PLAIN = """async (e) => { const plotly = await globalThis.__bmflPlotly, box = document.createElement('div'); box.id = 'plain';
    box.style.cssText = `position:fixed;left:0;top:0;z-index:99;width:${e.clientWidth}px;height:${e.clientHeight}px`;
    document.body.append(box);
    await plotly.newPlot(box, structuredClone(e.data), structuredClone(e.layout), {displayModeBar: false}) }"""


@pytest.mark.parametrize("view", ["posterior", "ventral", "left lateral"])
def test_the_cortex_looks_as_plotly_draws_it(view, opened):
    frame = opened.frame("surface")
    frame.get_by_label("View", exact=True).select_option(view)
    opened.watched.settle()
    plot = frame.locator(".js-plotly-plot").first
    ours = drawn(plot.locator(".gl-container canvas").first)
    plot.evaluate(PLAIN)
    opened.page.wait_for_timeout(1500)
    plain = drawn(opened.page.locator("#plain .gl-container canvas").first)
    opened.page.evaluate("() => document.querySelector('#plain').remove()")
    frame.get_by_label("View", exact=True).select_option("posterior")
    opened.watched.settle()
    # ink in both, and other only along edges, which are smoothed differently
    assert all((np.abs(part - part[5, 5]).max(2) > 30).mean() > 0.1 for part in (ours, plain))
    assert (differing(ours, plain) > 60).mean() < 0.02
    opened.healthy()


def test_a_lesion_gives_the_cortex_new_values_without_a_new_layout(opened):
    frame = opened.frame("ablation")
    plot = frame.locator(".js-plotly-plot").first
    state = "e => [e.dataset.drawn, Math.max(...e._fullData.at(-1).intensity)]"
    before, box = plot.evaluate(state), frame.get_by_label("V2", exact=True)
    opened.change("ablation", lambda _: box.check())
    opened.watched.settle()
    assert plot.evaluate(state) == [before[0], 1]
    canvas = plot.locator(".gl-container canvas").first
    rgb = drawn(canvas)
    opened.change("ablation", lambda _: box.uncheck())
    opened.watched.settle()
    assert plot.evaluate(state) == [before[0], 0]
    assert (differing(drawn(canvas), rgb) > 40).sum() > 50, "the canvas stayed as it was"
    opened.healthy()


UNSPARED = """(e) => { const plot = e._fullLayout.scene._scene.glplot;
    for (const thing of plot.objects) thing.outer = false;
    plot.gl.bindFramebuffer(plot.gl.FRAMEBUFFER, null);
    plot.gl.clear(plot.gl.COLOR_BUFFER_BIT | plot.gl.DEPTH_BUFFER_BIT) }"""
REDRAWN = """(e) => { const plot = e._fullLayout.scene._scene.glplot;
    const kept = plot.gl.getContextAttributes().preserveDrawingBuffer; plot.redraw(); return kept }"""


def test_another_map_is_drawn_over_the_last_one_as_if_anew(opened):
    frame = opened.frame("surface")
    plot, maps = frame.locator(".js-plotly-plot").first, frame.get_by_label("Map", exact=True)
    canvas = plot.locator(".gl-container canvas").first
    maps.select_option("predicted response")
    opened.watched.settle()
    count, before = plot.evaluate("e => e.dataset.drawn"), drawn(canvas)
    key = [frame.locator(f".bmfl-key-{part}").first for part in ("title", "bar")]
    assert "predicted response" in key[0].inner_text() and "response, z" in key[1].inner_text()
    opened.change("surface", lambda _: maps.select_option("encoding accuracy"))
    opened.watched.settle()
    assert "encoding accuracy" in key[0].inner_text() and "validation r" in key[1].inner_text()
    assert plot.evaluate("e => e.dataset.drawn") == count, "the figure was laid out anew"
    over = drawn(canvas)
    assert plot.evaluate(REDRAWN), "no graphics card here: the picture has to stay between draws"
    opened.page.wait_for_timeout(500)
    assert (differing(over, before) > 40).sum() > 50, "the canvas stayed as it was"
    whole = drawn(canvas)
    assert (differing(over, whole) > 0).sum() == 0
    maps.select_option("predicted response")
    opened.watched.settle()
    # plotly's first picture, with inner sides along its edges, is not drawn over: here there is not even one
    plot.evaluate(UNSPARED)
    maps.select_option("encoding accuracy")
    opened.watched.settle()
    assert (differing(whole, drawn(canvas)) > 0).sum() == 0
    maps.select_option("predicted response")
    opened.watched.settle()
    opened.healthy()


def test_the_label_beside_the_pointer_follows_another_map(opened):
    frame = opened.frame("surface")
    maps, canvas = frame.get_by_label("Map", exact=True), frame.locator(".gl-container canvas").first
    maps.select_option("predicted response")
    opened.watched.settle()
    canvas.scroll_into_view_if_needed()
    box, label = canvas.bounding_box(), frame.locator(".hovertext").first
    for x, y in coloured(canvas.screenshot()):
        opened.page.mouse.move(box["x"] + x - 3, box["y"] + y - 3)
        opened.page.mouse.move(box["x"] + x, box["y"] + y, steps=3)
        opened.page.wait_for_timeout(600)
        if label.count():
            break
    assert "response, z" in label.text_content()
    # the pointer stays where it is
    opened.change("surface", lambda _: maps.select_option("encoding accuracy"))
    opened.watched.settle()
    assert "validation r" in label.text_content()
    opened.page.mouse.move(0, 0)
    maps.select_option("predicted response")
    opened.watched.settle()
    opened.healthy()


def test_two_images_beside_each_other_differ_with_their_maps(opened):
    frame = opened.frame("attention")
    frame.get_by_label("Attention", exact=True).select_option("encoder: ROI query over patches")
    opened.watched.settle()
    first, first_map, other, other_map = frame.evaluate(PICTURES)
    assert first != other and first_map != other_map
    opened.watched.shoot(frame, "attention-two-images")
    opened.change("attention", lambda f: opened.press(f, "Other image"))
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


def test_a_click_on_the_cortex_names_its_region_and_switches_it_off(opened):
    opened.frame("surface").get_by_label("Map", exact=True).select_option("predicted response")
    opened.frame("surface").get_by_label("Hemispheres", exact=True).select_option("both")
    opened.watched.settle()
    assert opened.dot("surface"), "no click on the cortex reached the kernel"
    said = opened.status("surface")
    region = opened.frame("surface").get_by_label("Region", exact=True).input_value()
    assert "vertices, mean" in said and region
    opened.watched.shoot(opened.frame("surface"), "surface-clicked")
    for box in opened.frame("ablation").locator("input[type=checkbox]:checked:enabled").all():
        box.uncheck()
    opened.watched.settle()
    assert opened.dot("ablation"), "no click on the cortex reached the kernel"
    ticked = opened.frame("ablation").locator("input[type=checkbox]:checked:enabled")
    assert ticked.count() == 1 and "vertices" in opened.status("ablation")
    opened.watched.shoot(opened.frame("ablation"), "ablation-clicked")
    opened.healthy()


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
    frame = opened.frame("attention")
    frame.get_by_label("Image set", exact=True).focus()
    seen = set()
    for _ in range(16):
        seen.add(opened.page.evaluate("() => (document.activeElement.getAttribute('role') || document.activeElement.tagName)"))
        opened.page.keyboard.press("Tab")
    assert {"SELECT", "slider"} <= {s if s == "slider" else s.upper() for s in seen}, seen
    lists, cell = frame.get_by_label("Head", exact=True), "() => window.jupyterapp.shell.currentWidget.content.activeCellIndex"
    before, place = lists.input_value(), opened.page.evaluate(cell)
    lists.focus()
    opened.page.keyboard.press("ArrowDown")
    opened.watched.settle()
    assert lists.input_value() != before and opened.page.evaluate(cell) == place, "the page took a list's key for itself"
    frame.get_by_text("Copy as code", exact=True).focus()
    opened.page.keyboard.press("Enter")
    opened.watched.settle()
    assert "figure_of(state, explorer)" in frame.locator("textarea").input_value()
    opened.healthy()


@pytest.mark.parametrize("width", [1280, 1920])
@pytest.mark.parametrize("dark", [True, False])
def test_widgets_follow_theme_and_width(width, dark, opened):
    opened.page.set_viewport_size({"width": width, "height": 1500})
    theme = f"JupyterLab {'Dark' if dark else 'Light'}"
    opened.page.evaluate("(theme) => window.jupyterapp.commands.execute('apputils:change-theme', {theme})", theme)
    opened.page.wait_for_function(
        f"() => document.body.dataset.jpThemeLight === '{'false' if dark else 'true'}'", timeout=60_000
    )
    opened.page.wait_for_timeout(2500)
    for name in WIDGETS:
        frame = opened.frame(name)
        inner, outer = (frame.evaluate(f"e => e.{side}Width") for side in ("scroll", "client"))
        assert inner <= outer + 8, f"{name} is wider than its place"  # margins of hidden figures cut nothing off
        paper, ink = frame.locator(".js-plotly-plot").first.evaluate(
            "e => [e._fullLayout.paper_bgcolor, e._fullLayout.font.color]"
        )
        assert luminance(opened.page, paper) < 0.3 if dark else luminance(opened.page, paper) > 0.7, paper
        assert luminance(opened.page, ink) > 0.6 if dark else luminance(opened.page, ink) < 0.4, ink
        opened.watched.shoot(frame, f"{name}-{width}-{'dark' if dark else 'light'}")
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
        "widgets.surface_viewer(Explorer(dataclasses.replace(study, subjects={}), None, encoder, store=store), show=\"subject's response\")",
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
