"""The static brain map."""

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError
from bmfl_lab.viz.mesh import load_mesh
from bmfl_lab.viz.surface import _border, surface_panel


def make():
    back = [load_mesh(side)[0][:, 1] for side in ("left", "right")]
    index = [np.flatnonzero(y < -20) for y in back]
    y = np.concatenate([b[i] for b, i in zip(back, index)])
    atlas = Atlas(
        np.repeat([0, 1], [len(i) for i in index]),
        {"V1": y < -80},
        surface_index=np.concatenate(index),
        mesh="fsaverage5",
    )
    return y, atlas


def test_panel_has_both_hemispheres_and_one_bar():
    y, atlas = make()
    figure = surface_panel(y + 60, atlas, title="Made map", unit="mm", outline=["V1"], views=("lateral", "ventral"))
    assert len(figure.axes) == 5 and figure.axes[-1].get_ylabel() == "mm"
    low, high = figure.axes[-1].get_ylim()
    assert low == pytest.approx(-high)
    bare = surface_panel(np.full(len(y), np.nan), atlas, title="None", unit="r", signed=False, views=("medial",))
    face = bare.axes[0].collections[0].get_facecolors()
    assert np.ptp(face[:, :3], axis=1).max() < 1e-9  # no data: grey only


def test_border_is_closed_and_bad_names_are_refused():
    y, atlas = make()
    faces = load_mesh("left")[1]
    inside = load_mesh("left")[0][:, 1] < -80
    _, degree = np.unique(_border(faces, inside), return_counts=True)
    assert np.all(degree % 2 == 0)
    with pytest.raises(ConfigError, match="did you mean 'lateral'"):
        surface_panel(y, atlas, title="t", unit="u", views=("latral",))
