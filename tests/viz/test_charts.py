"""Contact sheets."""

from __future__ import annotations

import io

import numpy as np
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg

from bmfl_lab.errors import DataError
from bmfl_lab.viz.charts import contact_sheet


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


def test_plain_list_wraps():
    assert len(contact_sheet([plain(i) for i in range(5)], n_columns=2).axes) == 5


def test_refusals():
    for bad in ([], [plain(1).astype(float)], {"a": []}):
        with pytest.raises(DataError, match=r"uint8 images of shape \(H, W, 3\)"):
            contact_sheet(bad)
