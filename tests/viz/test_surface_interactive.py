"""The interactive surface shows each value at its own vertex and swaps maps without touching the mesh."""

import subprocess
import sys

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, DataError
from bmfl_lab.viz.mesh import N_FSAVERAGE5, curvature, load_mesh, on_mesh, symmetric_range
from bmfl_lab.viz.surface_interactive import SurfaceLayout, surface_figure, swap_map


@pytest.fixture(scope="module")
def atlas():
    """The hindmost vertices of both hemispheres, every second one in V1."""
    index, side = [], []
    for number, hemisphere in enumerate(("left", "right")):
        points, _ = load_mesh(hemisphere)
        back = np.flatnonzero(points[:, 1] < np.percentile(points[:, 1], 8))
        index.append(back)
        side.append(np.full(len(back), number, dtype=np.int8))
    index, side = np.concatenate(index), np.concatenate(side)
    return Atlas(side, {"V1": np.arange(len(index)) % 2 == 0}, index, "fsaverage5")


def test_values_land_on_their_own_vertex(atlas):
    values = np.arange(atlas.n_vertices, dtype=float)
    maps = on_mesh(values, atlas)
    assert maps["left"].shape == (N_FSAVERAGE5,)
    side = np.asarray(atlas.hemisphere)
    for number, hemisphere in enumerate(("left", "right")):
        mine = side == number
        np.testing.assert_array_equal(maps[hemisphere][atlas.surface_index[mine]], values[mine])
        assert np.isfinite(maps[hemisphere]).sum() == mine.sum()


def test_fine_vertices_of_fsaverage_are_left_out():
    atlas = Atlas(np.zeros(2, np.int8), {}, np.asarray([5, N_FSAVERAGE5 + 7]), "fsaverage")
    assert np.nansum(on_mesh(np.asarray([2.0, 3.0]), atlas)["left"]) == 2.0


def test_swapping_changes_intensity_and_keeps_the_mesh(atlas):
    layout = SurfaceLayout(atlas)
    first = np.linspace(0, 1, atlas.n_vertices)
    figure = surface_figure(first, atlas, title="simulated", unit="r", layout=layout)
    x, faces = np.array(figure.data[-1].x), np.array(figure.data[-1].i)
    np.testing.assert_allclose(figure.data[-1].intensity, first[layout.order])
    swap_map(figure, -first, layout, title="other", unit="z")
    np.testing.assert_allclose(figure.data[-1].intensity, -first[layout.order])
    np.testing.assert_array_equal(figure.data[-1].x, x)
    np.testing.assert_array_equal(figure.data[-1].i, faces)
    assert figure.layout.title.text == "other"


def test_missing_values_open_a_hole_instead_of_showing_zero(atlas):
    layout = SurfaceLayout(atlas)
    values = np.ones(atlas.n_vertices)
    values[: atlas.n_left] = np.nan
    figure = surface_figure(values, atlas, layout=layout)
    corners = np.stack([figure.data[-1].i, figure.data[-1].j, figure.data[-1].k])
    assert len(corners.T) < len(layout.faces)
    assert np.isfinite(values[layout.order][corners]).all()


def test_hover_names_the_roi(atlas):
    names = SurfaceLayout(atlas).names()
    assert names[0].startswith("left V1") and "no ROI" in names[1]


def test_signed_maps_are_symmetric_and_diverging(atlas):
    low, high, signed = symmetric_range(np.asarray([-1.0, 0.0, 3.0]))
    assert signed and low == -high
    assert symmetric_range(np.asarray([0.2, 0.4]))[0] == 0.0
    assert symmetric_range(np.asarray([np.nan]))[:2] == (0.0, 1.0)


def test_refusals(atlas):
    with pytest.raises(ConfigError, match="a surface among"):
        load_mesh("left", "inflate")
    with pytest.raises(ConfigError, match="a hemisphere among"):
        load_mesh("lh")
    with pytest.raises(DataError, match="vertices on one of the surfaces"):
        on_mesh(np.zeros(2), Atlas(np.zeros(2, np.int8), {}))
    with pytest.raises(DataError, match="one value for each of"):
        on_mesh(np.zeros(3), atlas)


@pytest.mark.parametrize("surface, part", [("inflated", "inflated"), ("white", "white_matter"), ("flat", "flat")])
def test_the_mesh_is_that_of_nilearn(surface, part):
    datasets = pytest.importorskip("nilearn.datasets")
    for hemisphere in ("left", "right"):
        points, faces = load_mesh(hemisphere, surface)
        mesh = datasets.load_fsaverage("fsaverage5")[part].parts[hemisphere]
        np.testing.assert_array_equal(points, mesh.coordinates)
        np.testing.assert_array_equal(faces, mesh.faces)
        depth = datasets.load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts[hemisphere]
        np.testing.assert_array_equal(curvature(hemisphere), np.ravel(depth) > 0)


def test_drawing_a_cortex_does_not_import_nilearn():
    code = "import sys; from bmfl_lab.viz.mesh import load_mesh; load_mesh('left'); print('nilearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
