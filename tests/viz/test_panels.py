"""The set-up that figures of several panels share."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmfl_lab.viz.panels import panels


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


def test_nothing_stays_open_after_an_error():
    before = plt.get_fignums()
    with pytest.raises(ZeroDivisionError), panels(cell=(3, 2)):
        raise ZeroDivisionError
    assert plt.get_fignums() == before
