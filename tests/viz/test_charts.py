"""Contact sheets, panels, and showing a figure."""

import io

import matplotlib.pyplot as plt
import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from PIL import Image

from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.viz import show
from bmfl_lab.viz.charts import contact_sheet, panels


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


def test_the_picture_is_saved_and_displayed(tmp_path, capsys):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    assert show(figure, tmp_path, "line") is None
    assert Image.open(tmp_path / "figures" / "line.png").format == "PNG"
    assert "Image" in capsys.readouterr().out


def test_names_stay_in_the_folder(tmp_path):
    with pytest.raises(ConfigError, match="a plain file name for the figure"):
        show(Figure(), tmp_path, "../line")
