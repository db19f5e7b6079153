"""The live cortex in a real JupyterLab: drawn in colours, recoloured by a change, and clicked on."""

import numpy as np
import pytest
from widget_page import coloured, differing, drawn

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]


def test_the_cortex_is_drawn_in_colours(opened):
    for name in ("surface", "ablation"):
        canvas = opened.frame(name).locator(".gl-container canvas").first
        canvas.scroll_into_view_if_needed()
        opened.page.wait_for_timeout(500)
        assert coloured(canvas.screenshot()), f"the canvas of {name} shows no map"
        assert opened.frame(name).get_by_text("WebGL is not supported").count() == 0


def test_a_lesion_recolours_the_cortex(opened):
    frame = opened.frame("ablation")
    plot = frame.locator(".js-plotly-plot").first
    highest = "e => Math.max(...e._fullData.at(-1).intensity)"
    box, canvas = frame.get_by_label("V2", exact=True), plot.locator(".gl-container canvas").first
    shown = {}
    for act in (box.check, box.uncheck):
        opened.change("ablation", lambda _, act=act: act())
        opened.watched.settle()
        shown[plot.evaluate(highest)] = drawn(canvas)
    assert shown.keys() == {1, 0}
    assert (differing(shown[0], shown[1]) > 40).sum() > 50, "the canvas stayed as it was"
    opened.healthy()


EYE = "e => { const { x, y, z } = e._fullLayout.scene._scene.getCamera().eye; return [x, y, z] }"


def turn(opened, plot):
    """Turn the cortex by hand and return where the camera is when it has come to rest."""
    canvas = plot.locator(".gl-container canvas").first
    canvas.scroll_into_view_if_needed()
    box = canvas.bounding_box()
    at = box["x"] + box["width"] / 2, box["y"] + box["height"] / 2
    opened.page.mouse.move(*at)
    opened.page.mouse.down()
    opened.page.mouse.move(at[0] + 60, at[1], steps=5)
    opened.page.mouse.up()
    opened.page.mouse.move(0, 0)
    turned = None
    while turned is None or turned != plot.evaluate(EYE):  # a busy page turns it later
        turned = plot.evaluate(EYE)
        opened.page.wait_for_timeout(1000)
    return turned


def face_regions(opened, name):
    """Turn a cortex that was turned by hand back to where its regions can be seen and clicked on."""
    for view in ("dorsal", "posterior"):
        opened.frame(name).get_by_label("View", exact=True).select_option(view)
        opened.watched.settle()


NAMES = """e => { const trace = e._fullData.find(t => t.name === 'names');
    return [trace.customdata, [trace.x, trace.y, trace.z]] }"""


def in_front(plot):
    """Return how far the names stand from their regions, and whether towards the camera."""
    places, shown = (np.asarray(part, float) for part in plot.evaluate(NAMES))
    away, eye = shown.T - places, np.asarray(plot.evaluate(EYE))
    return np.linalg.norm(away, axis=1), (away @ eye) / np.linalg.norm(eye)


def test_names_stand_in_front_of_the_brain_however_it_is_turned(opened):
    plot = opened.frame("ablation").locator(".js-plotly-plot").first
    before = plot.evaluate(EYE)
    for _ in range(2):
        distance, towards = in_front(plot)
        assert len(distance) > 10 and towards == pytest.approx(distance) and min(distance) > 20
        turned = turn(opened, plot)
        assert turned != pytest.approx(before, abs=1e-3), "the cortex was not turned"
    face_regions(opened, "ablation")
    opened.healthy()


ASPECT = "e => Object.values(e._fullLayout.scene.aspectratio)"


def test_a_brain_fills_its_place_from_the_beginning(opened):
    plots = [
        opened.frame(name).locator(".js-plotly-plot").first for name in ("surface", "ablation")
    ]
    first = [plot.evaluate(ASPECT) for plot in plots]
    for width in (1000, 1280):
        opened.page.set_viewport_size({"width": width, "height": 1500})
        opened.page.wait_for_timeout(3000)
    for plot, found in zip(plots, first):
        assert plot.evaluate(ASPECT) == pytest.approx(found, rel=0.02)
    opened.healthy()


def test_another_map_changes_colours_title_and_colour_bar_and_keeps_the_camera(opened):
    frame = opened.frame("surface")
    plot, maps = frame.locator(".js-plotly-plot").first, frame.get_by_label("Map", exact=True)
    canvas = plot.locator(".gl-container canvas").first
    maps.select_option("predicted response")
    opened.watched.settle()
    turned = turn(opened, plot)
    before, label = drawn(canvas), plot.get_attribute("aria-label")
    assert abs(turned[0]) > 0.1, "the cortex was not turned"
    assert "predicted response" in label and "response, z" in label
    opened.change("surface", lambda _: maps.select_option("encoding accuracy"))
    opened.watched.settle()
    label = plot.get_attribute("aria-label")
    assert "encoding accuracy" in label and "validation r" in label
    texts = " ".join(plot.locator("svg text").all_text_contents())
    assert "encoding accuracy" in texts and "validation r" in texts
    assert plot.evaluate(EYE) == pytest.approx(turned, abs=1e-6)
    assert (differing(drawn(canvas), before) > 40).sum() > 50, "the canvas stayed as it was"
    opened.healthy()


def test_another_view_turns_the_camera_and_a_turn_by_hand_after_it_stays_too(opened):
    frame = opened.frame("surface")
    plot, maps = frame.locator(".js-plotly-plot").first, frame.get_by_label("Map", exact=True)
    view = frame.get_by_label("View", exact=True)
    for name in ("ventral", "posterior"):
        view.select_option(name)
        opened.watched.settle()
        chosen = plot.evaluate(EYE)
        assert (chosen[2] < -0.5) == (name == "ventral"), "another view did not turn the camera"
        turned = turn(opened, plot)
        assert turned != pytest.approx(chosen, abs=1e-3), "the cortex was not turned"
        for option in ("encoding accuracy", "predicted response"):
            maps.select_option(option)
            opened.watched.settle()
            assert plot.evaluate(EYE) == pytest.approx(turned, abs=1e-6), (name, option)
    face_regions(opened, "surface")
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
