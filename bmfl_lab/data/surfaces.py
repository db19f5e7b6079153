"""Index maps between the fsaverage and fsaverage5 meshes and the vertices of a subject.

FreeSurfer's average surfaces are icosahedra, subdivided 5 (fsaverage5: 10,242 vertices a
hemisphere) or 7 times (fsaverage: 163,842). Each subdivision keeps the vertices there are and
appends one at the middle of each edge, so that fsaverage5 is the first part of fsaverage. The finer
spheres are made here from fsaverage5's faces and checked at each step; nothing is downloaded.

References
----------
.. [1] Fischl et al. (1999), High-resolution intersubject averaging and a coordinate system for the
cortical surface.
"""

from __future__ import annotations

from functools import lru_cache
from pathlib import Path

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import ConfigError, DataError, message

MESHES = {"fsaverage5": 10_242, "fsaverage6": 40_962, "fsaverage": 163_842}
_LEVELS = {"fsaverage5": 0, "fsaverage6": 1, "fsaverage": 2}


@lru_cache(maxsize=3)
def sphere(mesh: str = "fsaverage") -> tuple[np.ndarray, np.ndarray]:
    """Return the unit sphere of a mesh: vertices (n, 3) and faces (m, 3); the same for both hemispheres.

    Raises
    ------
    ConfigError
        If the mesh is unknown.
    DataError
        If the fsaverage5 sphere at hand is not a subdivided icosahedron.
    """
    if mesh not in MESHES:
        raise ConfigError(
            message(f"a mesh among {tuple(MESHES)}", repr(mesh), "choose one of them")
        )
    if mesh == "fsaverage5":
        import nilearn.datasets
        import nilearn.surface

        loaded = nilearn.surface.load_surf_mesh(
            nilearn.datasets.fetch_surf_fsaverage("fsaverage5")["sphere_left"]
        )
        vertices, faces = (
            np.asarray(loaded.coordinates, np.float64),
            np.asarray(loaded.faces, np.int64),
        )
        vertices = vertices / np.linalg.norm(vertices, axis=1, keepdims=True)
        check_subdivision(vertices, faces, 2_562)
        return vertices, faces
    return _subdivide(*sphere({1: "fsaverage5", 2: "fsaverage6"}[_LEVELS[mesh]]))


def _subdivide(vertices: np.ndarray, faces: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Split each face in four, numbering new vertices and faces as FreeSurfer's ``ic6.tri`` and ``ic7.tri`` do."""
    n = len(vertices)
    edges = np.sort(
        np.stack([faces[:, [2, 0]], faces[:, [1, 2]], faces[:, [0, 1]]], 1).reshape(-1, 2), axis=1
    )
    _, first, inverse = np.unique(
        edges[:, 0] * n + edges[:, 1], return_index=True, return_inverse=True
    )
    rank = np.empty(len(first), np.int64)
    rank[np.argsort(first)] = np.arange(len(first))
    ca, bc, ab = (n + rank[inverse].reshape(-1, 3)).T
    a, b, c = faces.T
    middle = vertices[edges[np.sort(first)]].mean(1)
    middle /= np.linalg.norm(middle, axis=1, keepdims=True)
    rest = np.stack([[ca, bc, c], [ab, bc, ca], [ab, b, bc]]).transpose(2, 0, 1).reshape(-1, 3)
    return np.concatenate([vertices, middle]), np.concatenate([np.stack([a, ab, ca], 1), rest])


def check_subdivision(
    vertices: np.ndarray, faces: np.ndarray, n_coarse: int, tolerance: float = 5e-4
) -> None:
    """Refuse a sphere whose first `n_coarse` vertices are not its next coarser icosahedron.

    Every later vertex must have exactly two neighbours among the first ones and lie in the middle
    between them.

    Raises
    ------
    DataError
        If that does not hold; then no index map between the meshes is valid.
    """
    n = len(vertices)
    edges = np.concatenate([faces[:, [0, 1]], faces[:, [1, 2]], faces[:, [2, 0]]])
    edges = np.sort(edges, axis=1).astype(np.int64)
    edges = np.stack(np.divmod(np.unique(edges[:, 0] * n + edges[:, 1]), n), 1)
    coarse = edges[edges[:, 0] < n_coarse]
    counts = np.bincount(coarse[:, 1], minlength=n)
    problem = None
    if np.any(coarse[:, 1] < n_coarse) or np.any(counts[n_coarse:] != 2):
        problem = "vertices that are no middle of an edge"
    else:
        parents = coarse[np.argsort(coarse[:, 1], kind="stable"), 0].reshape(-1, 2)
        middle = vertices[parents].mean(1)
        middle /= np.linalg.norm(middle, axis=1, keepdims=True)
        unit = vertices[n_coarse:] / np.linalg.norm(vertices[n_coarse:], axis=1, keepdims=True)
        worst = float(np.abs(middle - unit).max())
        if worst > tolerance:
            problem = f"a vertex {worst:.2g} of a radius away from the middle of its edge"
    if problem:
        raise DataError(
            message(
                f"a sphere of {n} vertices nested on {n_coarse}",
                problem,
                "use FreeSurfer's own sphere file",
            )
        )


def verify_sphere(path: str | Path, mesh: str = "fsaverage", tolerance: float = 2e-3) -> float:
    """Compare a FreeSurfer sphere file (``lh.sphere``) with the sphere made here.

    Returns
    -------
    float
        Largest distance of a coordinate, in radii.

    Raises
    ------
    DataError
        If the file has another number of vertices or another numbering.
    """
    import nibabel.freesurfer

    given, _ = nibabel.freesurfer.read_geometry(str(path))
    made = sphere(mesh)[0]
    if given.shape != made.shape:
        raise DataError(
            message(
                f"{len(made)} vertices in {path}", f"{len(given)}", f"give the sphere of {mesh}"
            )
        )
    worst = float(np.abs(given / np.linalg.norm(given, axis=1, keepdims=True) - made).max())
    if worst > tolerance:
        raise DataError(
            message(
                f"the vertex numbering of {mesh} in {path}",
                f"a distance of {worst:.2g} radii",
                "give its own sphere",
            )
        )
    return worst


def mesh_index(source: str, target: str) -> np.ndarray:
    """Return, for each vertex of `target`, the nearest vertex of `source` on the sphere.

    Downwards (fsaverage to fsaverage5) this is the identity on the first vertices, which is
    checked.

    Returns
    -------
    ndarray of int64, shape (n_target,)

    Raises
    ------
    ConfigError
        If a mesh is unknown.
    """
    from scipy.spatial import cKDTree

    a, b = sphere(source)[0], sphere(target)[0]
    if len(b) <= len(a):
        if not np.array_equal(a[: len(b)], b):
            raise DataError(
                message(
                    f"{target} nested in {source}", "other coordinates", "report this as a defect"
                )
            )
        return np.arange(len(b), dtype=np.int64)
    return np.asarray(cKDTree(a).query(b)[1], dtype=np.int64)


def challenge_to_mesh(
    atlas: Atlas, hemisphere: int, mesh: str = "fsaverage5", max_distance: float = 0.02
) -> np.ndarray:
    """Return which of the atlas's vertices to show at each vertex of a mesh.

    Parameters
    ----------
    atlas : Atlas
        With `surface_index` and `mesh`.
    hemisphere : int
        0 = left, 1 = right.
    mesh : str, default "fsaverage5"
        Mesh to draw on.
    max_distance : float, default 0.02
        Farthest a shown vertex may lie, in radii (0.02 of 100 mm = 2 mm; fsaverage5's edges are
        about 3.5 mm long).

    Returns
    -------
    ndarray of int64, shape (n_mesh,)
        Index into the atlas's vertices, -1 where there are none near.

    Raises
    ------
    ConfigError
        If the atlas lies on no surface.
    """
    from scipy.spatial import cKDTree

    if atlas.surface_index is None or atlas.mesh is None:
        raise ConfigError(
            message(
                "an atlas on a surface mesh",
                "one without surface_index",
                "draw a bar chart instead",
            )
        )
    rows = np.flatnonzero(np.asarray(atlas.hemisphere) == hemisphere)
    out = np.full(MESHES[mesh], -1, dtype=np.int64)
    where = np.asarray(atlas.surface_index)[rows]
    if not len(rows):
        return out
    if atlas.mesh == mesh:
        out[where] = rows
        return out
    distance, nearest = cKDTree(sphere(atlas.mesh)[0][where]).query(sphere(mesh)[0])
    near = distance <= max_distance
    out[near] = rows[nearest[near]]
    return out


def to_mesh(
    values: np.ndarray, atlas: Atlas, mesh: str = "fsaverage5"
) -> tuple[np.ndarray, np.ndarray]:
    """Resample a map to a mesh by the nearest vertex.

    Parameters
    ----------
    values : ndarray of float, shape (n_vertices,)
        One value a vertex of `atlas`.

    Returns
    -------
    left, right : ndarray of float64, shape (n_mesh,)
        NaN where the subject has no vertex.

    Raises
    ------
    DataError
        If the length differs from the atlas's.
    """
    if np.shape(values) != (atlas.n_vertices,):
        raise DataError(
            message(
                f"values of shape ({atlas.n_vertices},)",
                f"{np.shape(values)}",
                "use this subject's map",
            )
        )
    padded = np.append(np.asarray(values, dtype=np.float64), np.nan)
    left, right = (padded[challenge_to_mesh(atlas, side, mesh)] for side in (0, 1))
    return left, right
