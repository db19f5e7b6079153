"""fsaverage and fsaverage5 are nested, with FreeSurfer's own numbering."""

import numpy as np
import pytest

from bmfl_lab.data import surfaces
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, DataError


def test_fsaverage_has_the_numbering_of_the_published_icosahedron():
    vertices, faces = surfaces.sphere("fsaverage")
    assert vertices.shape == (163_842, 3) and faces.shape == (327_680, 3)
    # vertices and triangles of FreeSurfer's ic7 tessellation as MNE-Python distributes it
    # (icos.fif.gz), 4 decimals
    published = [[-0.0070, 0.0051, 1.0], [-0.6654, 0.0613, 0.7440], [0.0140, 0.0, -0.9999]]
    np.testing.assert_allclose(vertices[[40_962, 100_000, 163_841]], published, atol=2e-4)
    assert faces[[20_480, 200_000, 327_679]].tolist() == [
        [10242, 92164, 92162],
        [56696, 119310, 24802],
        [163113, 11, 160926],
    ]
    surfaces.check_subdivision(vertices, faces, 40_962)


def test_index_maps_are_nested_both_ways():
    down = surfaces.mesh_index("fsaverage", "fsaverage5")
    up = surfaces.mesh_index("fsaverage5", "fsaverage6")
    assert down.tolist() == list(range(10_242)) and up[:10_242].tolist() == down.tolist()
    assert np.bincount(up).min() >= 1


def test_a_renumbered_sphere_is_refused():
    vertices, faces = surfaces.sphere("fsaverage5")
    with pytest.raises(DataError, match="no middle of an edge"):
        surfaces.check_subdivision(vertices[::-1], 10_241 - faces, 2_562)
    moved = vertices.copy()
    moved[9000] = vertices[9001]
    with pytest.raises(DataError, match="away from the middle"):
        surfaces.check_subdivision(moved, faces, 2_562)
    with pytest.raises(ConfigError, match="a mesh among"):
        surfaces.sphere("fsaverage9")


def test_sphere_file_is_verified(tmp_path):
    from nibabel.freesurfer import write_geometry

    vertices, faces = surfaces.sphere("fsaverage5")
    write_geometry(str(tmp_path / "lh.sphere"), vertices * 100, faces)
    assert surfaces.verify_sphere(tmp_path / "lh.sphere", "fsaverage5") < 1e-5
    write_geometry(str(tmp_path / "bad"), vertices[::-1] * 100, faces)
    with pytest.raises(DataError, match="the vertex numbering of fsaverage5"):
        surfaces.verify_sphere(tmp_path / "bad", "fsaverage5")


def test_challenge_vertices_reach_fsaverage5():
    centre = surfaces.sphere("fsaverage")[0]
    patch = np.flatnonzero(centre[:, 2] > 0.9)
    atlas = Atlas(
        np.repeat([0, 1], len(patch)), {}, surface_index=np.tile(patch, 2), mesh="fsaverage"
    )
    height = np.concatenate([centre[patch, 2], -centre[patch, 2]])
    left, right = surfaces.to_mesh(height, atlas)
    shown = np.isfinite(left)
    truth = surfaces.sphere("fsaverage5")[0][:, 2]
    np.testing.assert_allclose(left[truth > 0.9], truth[truth > 0.9], atol=1e-12)
    assert not shown[truth < 0.88].any() and np.array_equal(np.isfinite(right), shown)
    np.testing.assert_array_equal(right[shown], -left[shown])
    with pytest.raises(DataError, match="values of shape"):
        surfaces.to_mesh(height[:-1], atlas)
    with pytest.raises(ConfigError, match="an atlas on a surface mesh"):
        surfaces.challenge_to_mesh(Atlas(np.zeros(3), {}), 0)
