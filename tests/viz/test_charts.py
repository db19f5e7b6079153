"""Contact sheets, panels, and showing a figure."""

import io

import matplotlib
import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmfl_lab.errors import DataError
from bmfl_lab.viz.charts import (
    DIVERGING,
    PALETTE,
    SEQUENTIAL,
    colour_scale,
    colours,
    contact_sheet,
    distinct_colours,
    markers,
    panels,
)


def plain(value, side=16):
    return np.full((side, side, 3), value, dtype=np.uint8)


def test_grid_of_named_rows_and_columns():
    rows = {
        "masked": {"clean": plain(0), "severity 1": plain(90)},
        "snow": {"clean": plain(0), "severity 1": plain(255)},
    }
    figure = contact_sheet(rows, title="Shifts")
    assert len(figure.axes) == 4
    assert [a.get_title() for a in figure.axes[:2]] == ["clean", "severity 1"]
    assert {t.get_text() for t in figure.texts} >= {"masked", "snow", "Shifts"}
    assert np.array_equal(figure.axes[3].images[0].get_array(), plain(255))
    FigureCanvasAgg(figure).print_png(io.BytesIO())


def test_refusals():
    for bad in ({}, {"a": [plain(1).astype(float)]}, {"a": []}):
        with pytest.raises(DataError, match=r"uint8 images of shape \(H, W, 3\)"):
            contact_sheet(bad)


def test_empty_places_are_hidden_and_labels_stand_once_a_column_and_row():
    with panels(5, 3, cell=(2, 2), margin=(1, 0.5), title="T") as drawn:
        for k, ax in enumerate(drawn):
            image = ax.imshow(np.eye(3) * k)
            ax.plot([0, 1], [0, 1], label="line")
            ax.set_title(f"panel {k}")
        drawn.label("x", "y")
        drawn.legend()
        drawn.colour_bar(image, "unit")
    fig = drawn.figure
    FigureCanvasAgg(fig).print_png(io.BytesIO())
    assert tuple(fig.get_size_inches()) == (7.0, 4.5) and fig.get_suptitle() == "T"
    grid = fig.axes[:6]
    assert [a.get_visible() for a in grid] == [True] * 5 + [False]
    assert [a.get_xlabel() for a in grid] == ["", "", "x", "x", "x", ""]
    assert [a.get_ylabel() for a in grid] == ["y", "", "", "y", "", ""]
    with panels(3, 2, cell=(2, 2), sharex=True) as shared:
        shared.label("x")
    numbered = [a.xaxis.get_tick_params()["labelbottom"] for a in shared]
    assert numbered == [False, True, True], "a panel above an empty place has no numbers"
    assert len(fig.axes) == 7 and fig.axes[6].get_ylabel() == "unit" and len(fig.legends) == 1
    assert not plt.get_fignums()


def test_the_heading_goes_to_a_lone_panel_unless_it_has_a_name():
    with panels(cell=(3, 2), title="heading") as drawn:
        (ax,) = drawn
    assert ax.get_title(loc="left") == "heading" and not drawn.figure.get_suptitle()
    with panels(cell=(3, 2), title="heading") as drawn:
        next(iter(drawn)).set_title("name")
    assert (
        next(iter(drawn)).get_title(loc="left") == "name"
        and drawn.figure.get_suptitle() == "heading"
    )


def test_no_two_names_share_a_colour():
    assert len(set(colours(f"ROI {i}" for i in range(120)).values())) == 120
    assert "#000000" not in distinct_colours(60, without="#000000")
    assert colours(["a", "b", "a"]) == dict(zip("ab", distinct_colours(2)))


FUSIONS = ("backbone", "concat", "fusion", "attributes", "linear probe", "mean colour")
ALIGNED = ("original", "aligned", "no_fmri", "shuffled", "noise", "head_only")


def test_a_model_has_its_colour_and_marker_in_every_figure():
    together = colours([*FUSIONS, *ALIGNED])
    assert len(set(together.values())) == 12
    for name in (*FUSIONS, *ALIGNED):
        assert colours([name]) == {name: together[name]}
    assert colours(["fusion", "backbone"]) == {k: together[k] for k in ("fusion", "backbone")}
    assert markers(["fusion", "backbone"]) == {
        k: markers(FUSIONS)[k] for k in ("fusion", "backbone")
    }
    assert "*" not in markers([*FUSIONS, *ALIGNED]).values(), "a star marks significance"
    # a name without a colour of its own never looks like a model that stands in another figure
    assert not set(colours(["new model", "fusion"]).values()) & (
        set(together.values()) - {together["fusion"]}
    )
    assert colours(["fusion", "another"])["another"] != "#F0E442", "thin yellow lines on white"
    assert colours(["encoding", "shuffled pairs"])["encoding"] == PALETTE[0]
    # encoders use the colours of fusion models again, and get others if both are drawn
    assert colours(["ridge", "backbone"])["ridge"] != colours(["ridge", "backbone"])["backbone"]


def hexadecimal(colour):
    return np.array([int(colour[i : i + 2], 16) / 255 for i in (1, 3, 5)])


def test_colour_blind_readers_tell_aligned_networks_and_the_backbone_apart():
    shown = [hexadecimal(c) for c in colours([*ALIGNED, "backbone"]).values()]
    for vision in VISION.values():
        places = [lab(c, vision) for c in shown]
        apart = [np.linalg.norm(a - b) for i, a in enumerate(places) for b in places[:i]]
        assert min(apart) > 20


def test_negative_values_are_not_drawn_on_a_sequential_scale():
    assert colour_scale(np.array([0.1, 0.4])) == {"cmap": SEQUENTIAL, "vmin": 0, "vmax": 0.4}
    scale = colour_scale(np.array([-0.3, 0.1, np.nan]))
    assert scale == {"cmap": DIVERGING, "vmin": -0.3, "vmax": 0.3}


# Machado et al. (2009), severity 1
VISION = {
    "normal": np.eye(3),
    "protan": [
        [0.152286, 1.052583, -0.204868],
        [0.114503, 0.786281, 0.099216],
        [-0.003882, -0.048116, 1.051998],
    ],
    "deutan": [
        [0.367322, 0.860646, -0.227968],
        [0.280085, 0.672501, 0.047413],
        [-0.011820, 0.042940, 0.968881],
    ],
    "tritan": [
        [1.255528, -0.076749, -0.178779],
        [-0.078411, 0.930809, 0.147602],
        [0.004733, 0.691367, 0.303900],
    ],
}


def lab(rgb, vision):
    """Return CIELAB coordinates of sRGB colours as a kind of vision perceives them."""
    linear = np.where(rgb <= 0.04045, rgb / 12.92, ((rgb + 0.055) / 1.055) ** 2.4)
    linear = np.clip(linear @ np.transpose(vision), 0, 1)
    xyz = linear @ [[0.4124, 0.2126, 0.0193], [0.3576, 0.7152, 0.1192], [0.1805, 0.0722, 0.9505]]
    xyz = xyz / [0.9505, 1, 1.089]
    f = np.where(xyz > 0.008856, np.cbrt(xyz), 7.787 * xyz + 16 / 116)
    return np.stack(
        [
            116 * f[..., 1] - 16,
            500 * (f[..., 0] - f[..., 1]),
            200 * (f[..., 1] - f[..., 2]),
        ],
        -1,
    )


def closest_to_grey(name):
    """Return the smallest distance of a colour map to the greys of the cortex, at equal light."""
    colour = matplotlib.colormaps[name](np.linspace(0, 1, 64))[:, :3]
    return min(
        np.linalg.norm(lab(light * colour, v) - lab(np.full(3, light * grey), v), axis=-1).min()
        for v in VISION.values()
        for light in (0.72, 0.86, 1.0)
        for grey in (0.6, 0.8)
    )


def test_values_stay_visible_on_grey_cortex_for_every_kind_of_colour_vision():
    assert closest_to_grey(SEQUENTIAL) > 12 > 6 > closest_to_grey("cividis")


def test_red_is_positive():
    low, high = matplotlib.colormaps[DIVERGING]([0.1, 0.9])
    assert low[2] > low[0] and high[0] > high[2]
