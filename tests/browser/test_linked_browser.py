"""Attention and cortex linked by clicks, and lesions kept and undone, in a real JupyterLab."""

import pytest
from widget_page import coloured

pytestmark = [pytest.mark.browser, pytest.mark.slow, pytest.mark.timeout(1200)]

# the middle of a patch in a heat map of patches
PATCH = """(e, [x, y]) => { const place = (axis, at) => axis._offset + axis.l2p(at);
    return [place(e._fullLayout.xaxis, x), place(e._fullLayout.yaxis, y)] }"""


def test_a_patch_and_the_cortex_are_linked_by_clicks(opened):
    frame = opened.frame("attention")
    frame.get_by_label("Attention", exact=True).select_option("encoder: ROI query over patches")
    opened.watched.settle()
    opened.change("attention", lambda f: f.get_by_label("Linked cortex", exact=True).check())
    opened.watched.settle()
    patches = frame.locator(".js-plotly-plot").nth(1)
    patches.scroll_into_view_if_needed()
    opened.page.wait_for_timeout(500)
    x, y = patches.evaluate(PATCH, [1, 2])
    opened.change("attention", lambda _: patches.click(position={"x": x, "y": y}))
    opened.watched.settle()
    assert "Patch in row 3, column 2" in opened.status("attention")
    query = frame.get_by_label("ROI query", exact=True)
    query.select_option("left:FFC")
    opened.watched.settle()
    canvas = frame.locator(".gl-container canvas").first
    canvas.scroll_into_view_if_needed()
    opened.page.wait_for_timeout(1000)
    box = canvas.bounding_box()
    for x, y in coloured(canvas.screenshot()):  # one of them is another region
        at = box["x"] + x, box["y"] + y
        opened.page.mouse.move(at[0] - 3, at[1] - 3)
        opened.page.mouse.move(*at, steps=3)
        opened.page.wait_for_timeout(350)
        opened.page.mouse.click(*at)
        opened.page.wait_for_timeout(2500)
        if query.input_value() != "left:FFC":
            break
    opened.watched.settle()
    assert query.input_value() != "left:FFC", "no click on the cortex reached the kernel"
    opened.page.mouse.move(0, 0)
    opened.watched.shoot(frame, "attention-linked")
    frame.get_by_label("All heads or ROIs", exact=True).check()
    opened.watched.settle()
    opened.watched.shoot(frame, "attention-tiles")
    opened.page.set_viewport_size({"width": 900, "height": 1500})
    opened.page.wait_for_timeout(2500)
    natural, shown = frame.locator(".bmfl-picture img[alt^='each map']").evaluate(
        "e => [e.naturalWidth, e.getBoundingClientRect().width]"
    )
    assert shown == natural, "the names of heads would be too small to read"
    inner, outer = (frame.evaluate(f"e => e.{side}Width") for side in ("scroll", "client"))
    assert inner <= outer + 8, "the widget is cut beside the open sidebar"
    opened.watched.shoot(frame, "attention-tiles-900")
    opened.page.set_viewport_size({"width": 1280, "height": 1500})
    for name in ("All heads or ROIs", "Linked cortex"):
        frame.get_by_label(name, exact=True).uncheck()
    opened.watched.settle()
    opened.healthy()


def test_lesions_are_kept_beside_each_other_and_undone(opened):
    frame = opened.frame("ablation")
    button = {name: frame.get_by_text(name, exact=True) for name in ("Keep beside", "Undo")}
    frame.get_by_label("HVC", exact=True).check()
    opened.watched.settle()
    opened.change("ablation", lambda _: button["Keep beside"].click())
    opened.watched.settle()
    frame.get_by_label("HVC", exact=True).uncheck()
    frame.get_by_label("V1", exact=True).check()
    opened.watched.settle()
    legend = ".js-plotly-plot .legendtext"
    assert "kept: HVC" in frame.locator(legend).all_text_contents()
    assert "V1 lesioned" in opened.status("ablation")
    opened.page.mouse.move(0, 0)
    opened.watched.shoot(frame, "ablation-kept")
    opened.page.set_viewport_size({"width": 900, "height": 1500})
    opened.page.wait_for_timeout(2500)
    inner, outer = (frame.evaluate(f"e => e.{side}Width") for side in ("scroll", "client"))
    assert inner <= outer + 8, "the widget is cut beside the open sidebar"
    opened.watched.shoot(frame, "ablation-900")
    opened.page.set_viewport_size({"width": 1280, "height": 1500})
    opened.page.wait_for_timeout(2500)
    for regions in ("No lesion", "HVC lesioned"):
        button["Undo"].click()
        opened.watched.settle()
        assert regions in opened.status("ablation")
    opened.healthy()


def test_pictures_of_the_other_widgets(opened):
    for name in ("surface", "ood", "runs"):
        opened.watched.shoot(opened.frame(name), f"{name}-page")
    opened.healthy()
