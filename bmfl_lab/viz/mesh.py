"""The surfaces of figures (fsaverage5 and fsLR 32k), and the position of vertices on them.

The full name of a surface begins with its mesh: "inflated" is a surface of fsaverage5,
"fsLR32k/inflated" one of the group average on fsLR 32k, and "fsLR32k/sub-10/inflated" one of a
subject.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from bmfl_lab.data import fslr
from bmfl_lab.errors import ConfigError, DataError, message, nearest

if TYPE_CHECKING:
    from bmfl_lab.data.atlas import Atlas

HEMISPHERES = ("left", "right")
SURFACES = ("inflated", "pial", "white", "flat", "sphere")
N_FSAVERAGE5, N_FSAVERAGE4 = 10242, 2562
VALID_MESHES = ("fsaverage5", "fsaverage", fslr.MESH)
_FILES = {"inflated": "infl"}


@lru_cache(maxsize=16)
def load_mesh(hemisphere: str, surface: str = "inflated") -> tuple[np.ndarray, np.ndarray]:
    """Return the mesh of one hemisphere: fsaverage5 as shipped with nilearn, or fsLR 32k.

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    surface : str, default "inflated"
        "inflated", "pial", "white", "flat" or "sphere" of fsaverage5, or the full name of a surface
        of fsLR 32k, which `bmfl_lab.data.fslr.load_surface` reads.

    Returns
    -------
    coordinates : ndarray of float32, shape (10242, 3), or (32492, 3) on fsLR 32k
        Coordinates of the vertices in mm.
    faces : ndarray of int32, shape (20480, 3) or (64980, 3), or fewer for a cut flat surface
        Vertex indices of each triangle.

    Raises
    ------
    ConfigError
        If the hemisphere or surface is unknown.
    """
    mesh, _, name = surface.rpartition("/")
    if mesh:
        return fslr.load_surface(hemisphere, name, mesh)
    if hemisphere not in HEMISPHERES:
        raise ConfigError(
            message(
                f"a hemisphere among {HEMISPHERES}",
                repr(hemisphere),
                nearest(hemisphere, HEMISPHERES),
            )
        )
    if surface not in SURFACES:
        raise ConfigError(
            message(f"a surface among {SURFACES}", repr(surface), nearest(surface, SURFACES))
        )
    points, faces = _gifti(_FILES.get(surface, surface), hemisphere)
    return np.asarray(points, dtype=np.float32), np.asarray(faces, dtype=np.int32)


def surface_name(surface: str, atlas: Atlas) -> str:
    """Return the full name of a surface for the mesh of an atlas.

    Parameters
    ----------
    surface : str
        Name such as "inflated".
    atlas : Atlas
        Position of the vertices.

    Returns
    -------
    str
        The name as given, or for example "fsLR32k/inflated".
    """
    return f"{atlas.mesh}/{surface}" if _on_fslr(atlas) else surface


def _on_fslr(atlas: Atlas) -> bool:
    return str(atlas.mesh).split("/")[0] == fslr.MESH


def _gifti(name: str, hemisphere: str) -> list[np.ndarray]:
    """Return the arrays of one of nilearn's fsaverage5 files.

    The files are read directly: importing nilearn.datasets takes longer than drawing a cortex.
    """
    import importlib.util

    import nibabel

    found = importlib.util.find_spec("nilearn")
    path = (
        Path(found.origin).parent
        / "datasets"
        / "data"
        / "fsaverage5"
        / f"{name}_{hemisphere}.gii.gz"
    )
    return [part.data for part in nibabel.load(path).darrays]


@lru_cache(maxsize=8)
def curvature(hemisphere: str, surface: str = "inflated") -> np.ndarray:
    """Return 1 in sulci and 0 on gyri of one hemisphere, float32 (n_vertices of the mesh,).

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    surface : str, default "inflated"
        Full name of a surface, which tells the mesh.
    """
    mesh, _, _ = surface.rpartition("/")
    if mesh:
        return fslr.sulci(hemisphere, mesh)
    return (np.asarray(_gifti("sulc", hemisphere)[0], dtype=np.float32).ravel() > 0).astype(
        np.float32
    )


def coarser_faces(faces: np.ndarray, n_coarse: int = N_FSAVERAGE4) -> np.ndarray:
    """Return the triangles of the next coarser mesh of a nested icosahedron.

    From one of FreeSurfer's meshes to the next, every edge is halved, and the first vertices of the
    finer mesh are those of the coarser one. The middle one of four new triangles has the middles of
    the old edges as corners.

    Parameters
    ----------
    faces : ndarray of int, shape (4 * m, 3)
        Triangles of the finer mesh.
    n_coarse : int
        Number of vertices of the coarser mesh; by default 2562, that of fsaverage4.

    Returns
    -------
    ndarray of int, shape (m, 3)
        Corners among the first `n_coarse` vertices, with the same orientation.

    Raises
    ------
    DataError
        If the faces are not those of such a mesh, such as those of the cut flat surface.
    """
    edges = np.concatenate([faces[:, [i, j]] for i in range(3) for j in range(3) if i != j]).astype(
        np.int64
    )
    halves = edges[(edges[:, 0] >= n_coarse) & (edges[:, 1] < n_coarse)]
    # one number per edge is sorted much faster than rows
    halves = np.stack(
        np.divmod(np.unique(halves[:, 0] * n_coarse + halves[:, 1]), n_coarse), axis=1
    )
    middles = faces[(faces >= n_coarse).all(1)]
    found, counts = np.unique(halves[:, 0], return_counts=True)
    if (
        4 * len(middles) != len(faces)
        or not np.array_equal(found, np.unique(middles))
        or np.any(counts != 2)
    ):
        raise DataError(
            message(
                f"a closed mesh whose first {n_coarse} vertices are those of the coarser one",
                f"{len(faces)} faces",
                "give the faces of a whole fsaverage hemisphere",
            )
        )
    ends = np.zeros((faces.max() + 1, 2), dtype=faces.dtype)
    ends[found] = halves[:, 1].reshape(-1, 2)
    of = ends[middles]
    # a corner lies at the end of two edges whose middles follow each other
    return np.stack([_shared(of[:, k - 1], of[:, k]) for k in range(3)], axis=1)


def _shared(one: np.ndarray, other: np.ndarray) -> np.ndarray:
    """Return the number that each row of two (m, 2) arrays has in common."""
    return np.where((one[:, :1] == other).any(1), one[:, 0], one[:, 1])


def vertex_normals(coordinates: np.ndarray, faces: np.ndarray) -> np.ndarray:
    """Return the unit normals of vertices: the mean of their triangles' normals, weighted by area.

    Parameters
    ----------
    coordinates : ndarray, shape (V, 3)
        Coordinates of the vertices.
    faces : ndarray of int, shape (m, 3)
        Vertices of each triangle.

    Returns
    -------
    ndarray of float, shape (V, 3)
    """
    a, b, c = (coordinates[faces[:, k]] for k in range(3))
    each = np.cross(b - a, c - a)
    total = np.zeros(coordinates.shape)
    for k in range(3):
        np.add.at(total, faces[:, k], each)
    return total / np.maximum(np.linalg.norm(total, axis=1, keepdims=True), 1e-12)


def mesh_index(atlas: Atlas) -> np.ndarray:
    """Return the vertex of the drawn mesh for each of the atlas's vertices, -1 if there is none.

    Of the 163,842 vertices per hemisphere of fsaverage, the first 10,242 are those of fsaverage5,
    because the two meshes are nested; the others are left out.

    Parameters
    ----------
    atlas : Atlas
        Atlas on fsaverage5, fsaverage or fsLR 32k.

    Returns
    -------
    ndarray of int64, shape (n_vertices,)

    Raises
    ------
    DataError
        If the atlas lies on no surface that can be drawn.
    """
    if str(atlas.mesh).split("/")[0] not in VALID_MESHES or atlas.surface_index is None:
        raise DataError(
            message(
                f"vertices on one of the surfaces {VALID_MESHES}",
                repr(atlas.mesh),
                "give the atlas a mesh and a surface_index",
            )
        )
    index = np.asarray(atlas.surface_index, dtype=np.int64)
    return index if _on_fslr(atlas) else np.where(index < N_FSAVERAGE5, index, -1)


def on_mesh(values: np.ndarray, atlas: Atlas) -> dict[str, np.ndarray]:
    """Assign values per vertex to the two hemispheres of the drawn mesh.

    Parameters
    ----------
    values : ndarray, shape (n_vertices,)
        One value per vertex of the atlas; NaN means no data.
    atlas : Atlas
        Position of the vertices.

    Returns
    -------
    dict of str to ndarray of float64, shape (10242,), or (32492,) on fsLR 32k
        "left" and "right"; NaN where there is no data.

    Raises
    ------
    DataError
        If lengths differ or the atlas lies on no surface.
    """
    values = np.asarray(values, dtype=np.float64)
    if values.shape != (atlas.n_vertices,):
        raise DataError(
            message(
                f"one value for each of {atlas.n_vertices} vertices",
                f"shape {values.shape}",
                "use values and atlas of one subject",
            )
        )
    index, side = mesh_index(atlas), np.asarray(atlas.hemisphere)
    found = {}
    for number, hemisphere in enumerate(HEMISPHERES):
        mine = (side == number) & (index >= 0)
        found[hemisphere] = np.full(fslr.N_VERTICES if _on_fslr(atlas) else N_FSAVERAGE5, np.nan)
        found[hemisphere][index[mine]] = values[mine]
    return found


def symmetric_range(values: np.ndarray, signed: bool | None = None) -> tuple[float, float, bool]:
    """Return the limits of the colours of a map, ignoring the most extreme 1 % of the values.

    Parameters
    ----------
    values : ndarray of float
        Values of the map; NaN is ignored.
    signed : bool, optional
        Whether the limits are symmetric about zero; by default if there are values on both sides.

    Returns
    -------
    low, high : float
        Limits. The lower one of an unsigned map is 0 or its minimum.
    signed : bool
        Whether the limits are symmetric about zero.
    """
    finite = np.asarray(values, dtype=float)
    finite = finite[np.isfinite(finite)]
    if not finite.size:
        return 0.0, 1.0, False
    if signed is None:
        signed = bool(finite.min() < 0 < finite.max())
    if signed:
        top = float(np.percentile(np.abs(finite), 99)) or 1.0
        return -top, top, True
    low, high = float(min(0.0, finite.min())), float(np.percentile(finite, 99))
    return low, high if high > low else low + 1.0, False
