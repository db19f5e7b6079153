"""The interactive surface shows each value at its own vertex and swaps maps without touching the mesh."""

import subprocess
import sys

import numpy as np
import pytest

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError
from bmfl_lab.viz.surface import (
    N_FSAVERAGE4,
    N_FSAVERAGE5,
    coarser_faces,
    curvature,
    load_mesh,
    on_mesh,
    symmetric_range,
    vertex_normals,
)
from bmfl_lab.viz.surface_interactive import (
    VIEWS,
    SurfaceLayout,
    best_view,
    name_places,
    surface_figure,
    swap_map,
)


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
    figure = surface_figure(first, layout, title="simulated", unit="r")
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
    figure = surface_figure(values, layout)
    corners = np.stack([figure.data[-1].i, figure.data[-1].j, figure.data[-1].k])
    assert len(corners.T) < len(layout.faces)
    assert np.isfinite(values[layout.order][corners]).all()


@pytest.mark.parametrize("view", VIEWS)
def test_the_view_of_a_region_is_the_side_on_which_it_lies(view):
    eye = np.array([VIEWS[view][axis] for axis in "xyz"])
    index, side = [], []
    for number, hemisphere in enumerate(("left", "right")):
        points, _ = load_mesh(hemisphere)
        towards = (points - points.mean(0)) @ eye
        index.append(np.flatnonzero(towards > np.percentile(towards, 97)))
        side.append(np.full(len(index[-1]), number, dtype=np.int8))
    side = np.concatenate(side)
    layout = SurfaceLayout(Atlas(side, {}, np.concatenate(index), "fsaverage5"))
    region = side == 1 if view.startswith("right") else side == 0
    assert best_view(layout, region) == view
    places = name_places(layout, region)
    assert places.shape == (1, 3) and np.linalg.norm(layout.points - places, axis=1).min() < 15
    assert name_places(layout, np.ones(len(side), bool)).shape == (2, 3)
    assert best_view(layout, np.zeros(len(side), bool)) == "posterior"


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


@pytest.mark.parametrize(
    "surface, part", [("inflated", "inflated"), ("white", "white_matter"), ("flat", "flat")]
)
def test_the_mesh_is_that_of_nilearn(surface, part):
    datasets = pytest.importorskip("nilearn.datasets")
    for hemisphere in ("left", "right"):
        points, faces = load_mesh(hemisphere, surface)
        mesh = datasets.load_fsaverage("fsaverage5")[part].parts[hemisphere]
        np.testing.assert_array_equal(points, mesh.coordinates)
        np.testing.assert_array_equal(faces, mesh.faces)
        depth = datasets.load_fsaverage_data(mesh="fsaverage5", data_type="sulcal").data.parts[
            hemisphere
        ]
        np.testing.assert_array_equal(curvature(hemisphere), np.ravel(depth) > 0)


def halved(faces):
    """Cut every triangle in four, as FreeSurfer does: old vertices first, then the middles of the edges."""
    middles = {}

    def middle(a, b):
        return middles.setdefault(frozenset((a, b)), 1 + faces.max() + len(middles))

    cut = []
    for a, b, c in faces.tolist():
        ab, bc, ca = middle(a, b), middle(b, c), middle(c, a)
        cut += [(a, ab, ca), (ab, b, bc), (ca, bc, c), (ab, bc, ca)]
    return np.asarray(cut)


def test_the_coarser_mesh_is_the_one_that_was_cut():
    sides = [(0, 2, 4), (2, 1, 4), (1, 3, 4), (3, 0, 4), (2, 0, 5), (1, 2, 5), (3, 1, 5), (0, 3, 5)]
    octahedron = halved(np.asarray(sides))  # 18 vertices, 32 faces
    found = coarser_faces(halved(octahedron)[::-1], n_coarse=18)

    def turned(faces):  # the same triangles in the same direction, whichever corner is named first
        return {tuple(np.roll(f, -int(np.argmin(f)))) for f in np.asarray(faces)}

    assert turned(found) == turned(octahedron) and len(found) == len(octahedron)


@pytest.mark.parametrize("hemisphere", ["left", "right"])
def test_the_grey_brain_is_closed_and_lies_under_the_map(hemisphere):
    everywhere = Atlas(np.zeros(N_FSAVERAGE5, np.int8), {}, np.arange(N_FSAVERAGE5), "fsaverage5")
    if hemisphere == "right":
        everywhere = Atlas(
            np.ones(N_FSAVERAGE5, np.int8), {}, np.arange(N_FSAVERAGE5), "fsaverage5"
        )
    layout = SurfaceLayout(everywhere)
    points, faces, sulci = layout.base[hemisphere == "right"]
    assert (
        points.shape == (N_FSAVERAGE4, 3)
        and faces.shape == (5120, 3)
        and len(sulci) == N_FSAVERAGE4
    )
    edges = {
        frozenset(e) for f in faces.tolist() for e in ((f[0], f[1]), (f[1], f[2]), (f[2], f[0]))
    }
    assert len(points) - len(edges) + len(faces) == 2  # Euler: a closed surface without holes
    # between its corners the fine mesh has one more vertex an edge, so that these are where the two
    # differ most
    fine, fine_faces = layout.points, layout.faces
    ends = {v: set() for v in range(N_FSAVERAGE4, N_FSAVERAGE5)}
    for face in fine_faces.tolist():
        for a in face:
            if a >= N_FSAVERAGE4:
                ends[a].update(b for b in face if b < N_FSAVERAGE4)
    under = np.asarray([points[sorted(ends[v])].mean(0) for v in ends])
    up = vertex_normals(fine, fine_faces)
    above = ((fine[N_FSAVERAGE4:] - under) * up[N_FSAVERAGE4:]).sum(1)
    assert 0 < above.min() and above.max() < 1.5, (above.min(), above.max())  # mm
    assert (((fine[:N_FSAVERAGE4] - points) * up[:N_FSAVERAGE4]).sum(1) > 0).all()


def test_the_normals_of_a_sphere_point_away_from_its_middle():
    points, faces = load_mesh("left", "sphere")
    outwards = points / np.linalg.norm(points, axis=1, keepdims=True)
    assert (vertex_normals(points, faces) * outwards).sum(1).min() > 0.99


def test_drawing_a_cortex_does_not_import_nilearn():
    code = "import sys; from bmfl_lab.viz.surface import load_mesh; load_mesh('left'); print('nilearn' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=120)
    assert done.stdout.strip() == "False", done.stdout + done.stderr
