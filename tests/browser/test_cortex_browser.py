"""The live cortex in a real JupyterLab: drawn as plotly draws it, over the last map or whole, clicked on."""

import numpy as np
import pytest
from jupyter_page import INSERT, RUN
from plotly.offline import get_plotlyjs
from widget_page import SETUP, WIDGETS, coloured, differing, drawn

from widgets.shelf import SCRIPT

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_cortex_is_drawn_in_colours(opened):
    for name in ("surface", "ablation"):
        canvas = opened.frame(name).locator(".gl-container canvas").first
        canvas.scroll_into_view_if_needed()
        opened.page.wait_for_timeout(500)
        assert coloured(canvas.screenshot()), f"the canvas of {name} shows no map"
        assert opened.frame(name).get_by_text("WebGL is not supported").count() == 0


PLAIN = """async (e) => { const plotly = await globalThis.__bmflPlotly, box = document.createElement('div'); box.id = 'plain';
    box.style.cssText = `position:fixed;left:0;top:0;z-index:99;width:${e.clientWidth}px;height:${e.clientHeight}px`;
    document.body.append(box);
    await plotly.newPlot(box, structuredClone(e.data), structuredClone(e.layout), {displayModeBar: false}) }"""


@pytest.mark.parametrize("view", ["posterior", "ventral", "left lateral"])
def test_the_cortex_looks_as_plotly_draws_it(view, opened):
    frame = opened.frame("surface")
    frame.get_by_label("View", exact=True).select_option(view)
    plot = frame.locator(".js-plotly-plot").first
    opened.page.wait_for_function(
        "([e, view]) => e._fullLayout.uirevision === view", arg=[plot.element_handle(), view]
    )
    opened.watched.settle()
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
COUNTED = """(e) => { const plot = e._fullLayout.scene._scene.glplot, redraw = plot.redraw; e.redrawn = 0;
    plot.redraw = () => { e.redrawn += 1; redraw() }; return e.dataset.drawn }"""
REDRAWN = """(e) => { const plot = e._fullLayout.scene._scene.glplot;
    const kept = plot.gl.getContextAttributes().preserveDrawingBuffer; plot.redraw(); return kept }"""


def test_another_map_is_drawn_over_the_last_one_as_if_anew(opened):
    frame = opened.frame("surface")
    plot, maps = frame.locator(".js-plotly-plot").first, frame.get_by_label("Map", exact=True)
    canvas = plot.locator(".gl-container canvas").first
    maps.select_option("predicted response")
    opened.watched.settle()
    opened.page.mouse.move(0, 0)  # beside the figure: under a pointer it is drawn whole
    plot.evaluate(REDRAWN)
    count, before = plot.evaluate(COUNTED), drawn(canvas)
    key = [frame.locator(f".bmfl-key-{part}").first for part in ("title", "bar")]
    assert "predicted response" in key[0].inner_text() and "response, z" in key[1].inner_text()
    opened.change("surface", lambda _: maps.select_option("encoding accuracy"))
    opened.watched.settle()
    assert "encoding accuracy" in key[0].inner_text() and "validation r" in key[1].inner_text()
    assert plot.evaluate("e => e.dataset.drawn") == count, "the figure was laid out anew"
    assert plot.evaluate("e => e.redrawn") == 0, "the figure was drawn whole"
    over = drawn(canvas)
    assert plot.evaluate(REDRAWN), "no graphics card here: the picture has to stay between draws"
    opened.page.wait_for_timeout(500)
    assert (differing(over, before) > 40).sum() > 50, "the canvas stayed as it was"
    whole = drawn(canvas)
    assert (differing(over, whole) > 0).sum() == 0
    maps.select_option("predicted response")
    opened.watched.settle()
    # plotly's first picture, with inner sides along its edges, is not drawn over: here there is not
    # even one
    plot.evaluate(UNSPARED)
    maps.select_option("encoding accuracy")
    opened.watched.settle()
    assert (differing(whole, drawn(canvas)) > 0).sum() == 0
    maps.select_option("predicted response")
    opened.watched.settle()
    opened.healthy()


def test_the_label_beside_the_pointer_follows_another_map(opened):
    frame = opened.frame("surface")
    maps, canvas = (
        frame.get_by_label("Map", exact=True),
        frame.locator(".gl-container canvas").first,
    )
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


READ = """([script, source]) => { const load = new Function(script.replace(/^export default.*$/m, 'return load'))();
    delete window.Plotly;
    const found = [typeof load(source).react, 'Plotly' in window]; delete window.Plotly; return found }"""


@pytest.mark.parametrize("wrapper", ["as it comes", "another"])
def test_plotly_is_read_whatever_stands_around_it(wrapper, opened):
    source, head = get_plotlyjs(), "var Plotly=(()=>{"
    assert source.count(head) == 1, "plotly.js begins in another way now: see load in live.js"
    if wrapper == "another":
        source = source.replace(head, "var Plotly = (() => {")
    # the file as it stands names its library to the window at its end; without what stands around
    # it it does not
    assert opened.page.evaluate(READ, [SCRIPT, source]) == ["function", wrapper == "another"]
    opened.healthy()


def test_as_with_a_graphics_card_another_map_is_drawn_whole(lab, watch, models):
    watched = watch(width=1280)
    # what the page would find where a card draws; here the processor still does
    watched.page.add_init_script("globalThis.__bmflSlow = false")
    name = lab.write("card.ipynb", [SETUP.format(root=models), WIDGETS["surface"]])
    watched.run_all(lab, name, timeout=600)
    frame = watched.page.locator(".bmfl-frame")
    plot = frame.locator(".js-plotly-plot").first
    plot.locator(".gl-container canvas").first.wait_for(timeout=60_000)
    canvas, maps = plot.locator(".gl-container canvas").first, frame.get_by_label("Map", exact=True)
    maps.select_option("predicted response")
    watched.settle()
    count, before = plot.evaluate("e => e.dataset.drawn"), drawn(canvas)
    watched.change(0, lambda _: maps.select_option("encoding accuracy"))
    watched.settle()
    after = drawn(canvas)
    assert (differing(after, before) > 40).sum() > 50, "the canvas stayed as it was"
    assert plot.evaluate("e => e.dataset.drawn") == count, "the figure was laid out anew"
    assert not plot.evaluate(REDRAWN), "the picture is only kept where there is no graphics card"
    watched.page.wait_for_timeout(500)
    assert (differing(after, drawn(canvas)) > 0).sum() == 0
    assert watched.kernel_errors() == [] and watched.errors == []


def test_a_pointer_that_rests_where_a_figure_appears_is_over_it(lab, watch, models):
    watched = watch(width=1280)
    watched.run_all(lab, lab.write("rests.ipynb", [SETUP.format(root=models)]), timeout=600)
    watched.page.mouse.move(750, 1030)
    watched.page.evaluate(INSERT, WIDGETS["surface"])
    watched.page.evaluate(RUN)
    plot = watched.page.locator(".bmfl-frame .js-plotly-plot").first
    plot.locator(".gl-container canvas").first.wait_for(timeout=60_000)
    watched.settle()
    assert plot.evaluate("e => e.matches(':hover')"), "the figure appeared elsewhere"
    plot.evaluate(REDRAWN)  # the first change after the first picture is drawn whole in any case
    plot.evaluate(COUNTED)
    maps = watched.page.get_by_label("Map", exact=True)
    watched.change(0, lambda _: maps.select_option("encoding accuracy"))
    assert plot.evaluate("e => e.redrawn") > 0, "what stands beside the pointer stayed as it was"
    assert watched.kernel_errors() == [] and watched.errors == []
