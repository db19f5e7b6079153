"""ROI masks of an Algonauts 2023 folder: read, and checked against each other."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from bmfl_lab.data.atlas import ALGONAUTS_ROIS, HEMISPHERES, Atlas
from bmfl_lab.data.pickles import read_mapping
from bmfl_lab.data.surfaces import MESHES
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import load_npy

SIDES = ("lh", "rh")
N_FSAVERAGE = MESHES["fsaverage"]
Guard = Callable[[Path], Path]


def read_atlas(
    folder: Path, n_vertices: tuple[int, int], guard: Guard, *, need_all: bool
) -> tuple[Atlas, list[str]]:
    """Read ``roi_masks`` as an atlas on fsaverage: the challenge's six classes, and any others with files there.

    Parameters
    ----------
    folder : Path
        The subject's folder.
    n_vertices : (int, int)
        Vertices of the left and right responses.
    guard : callable
        ``guard(path) -> path``, refuses paths that may not be read.
    need_all : bool
        Refuse if one of the six ROI classes is missing.

    Returns
    -------
    atlas : Atlas
    missing : list of str
        ROI classes without files.

    Raises
    ------
    DataError
        If lengths, labels, names or spaces disagree.
    """
    masks = folder / "roi_masks"
    index = [
        _all_vertices(guard(masks / f"{side}.all-vertices_fsaverage_space.npy")) for side in SIDES
    ]
    _check_lengths([len(i) for i in index], n_vertices, masks)
    rois: dict[str, np.ndarray] = {}
    missing = []
    own = sorted(
        {p.stem.removeprefix("mapping_") for p in masks.glob("mapping_*.npy")} - set(ALGONAUTS_ROIS)
    )
    for kind in (*ALGONAUTS_ROIS, *own):
        files = [masks / f"mapping_{kind}.npy"]
        files += [
            masks / f"{s}.{kind}_{space}_space.npy"
            for s in SIDES
            for space in ("challenge", "fsaverage")
        ]
        absent = [f.name for f in files if not f.exists()]
        if absent and (need_all or len(absent) < len(files)):
            raise DataError(
                message(
                    f"the files of ROI class {kind!r} in {masks}",
                    f"no {absent}",
                    "download the folder again",
                )
            )
        if absent:
            missing.append(kind)
            continue
        codes = np.concatenate(
            [_codes(masks, side, kind, index[k], guard) for k, side in enumerate(SIDES)]
        )
        for name, mask in _by_name(codes, kind, read_mapping(guard(files[0])), masks).items():
            if name in rois:
                raise DataError(
                    message(
                        "ROI names used once", f"{name!r} again in {kind!r}", "rename one of them"
                    )
                )
            rois[name] = mask
    atlas = Atlas(
        hemisphere=np.repeat(np.arange(2, dtype=np.int8), [len(i) for i in index]),
        rois=rois,
        surface_index=np.concatenate(index).astype(np.int64),
        mesh="fsaverage",
    )
    return atlas, missing


def _mask(path: Path, n: int, what: str) -> np.ndarray:
    values = np.asarray(load_npy(path))
    if values.dtype.kind == "f" and np.array_equal(values, np.rint(values)):
        values = values.astype(np.int64)
    if values.dtype.kind not in "iub" or values.shape != (n,):
        raise DataError(
            message(
                f"whole-number labels of shape ({n},), {what}, in {path}",
                f"{values.dtype} {values.shape}",
                "use the masks that belong to these responses",
            )
        )
    return values.astype(np.int64)


def _all_vertices(path: Path) -> np.ndarray:
    mask = _mask(path, N_FSAVERAGE, "one a vertex of fsaverage")
    if not mask.any():  # the challenge writes 1, but any label above or below 0 means "inside"
        raise DataError(
            message(f"at least one vertex that is not 0 in {path}", "none", "download it again")
        )
    return np.flatnonzero(mask)


def _check_lengths(masked: list[int], n_vertices: tuple[int, int], masks: Path) -> None:
    if tuple(masked) == tuple(n_vertices):
        return
    swapped = masked == [n_vertices[1], n_vertices[0]]
    raise DataError(
        message(
            f"{n_vertices[0]} left and {n_vertices[1]} right vertices in {masks}, as in the responses",
            f"{masked[0]} and {masked[1]}" + (": left and right are swapped" if swapped else ""),
            "put lh and rh files back in their places"
            if swapped
            else "use masks and responses of the same subject",
        )
    )


def _codes(masks: Path, side: str, kind: str, index: np.ndarray, guard: Guard) -> np.ndarray:
    here = _mask(
        guard(masks / f"{side}.{kind}_challenge_space.npy"), len(index), "one a response vertex"
    )
    full = _mask(
        guard(masks / f"{side}.{kind}_fsaverage_space.npy"),
        N_FSAVERAGE,
        "one a vertex of fsaverage",
    )
    differ = int(np.sum(full[index] != here))
    outside = int(np.count_nonzero(full)) - int(np.count_nonzero(full[index]))
    if differ or outside:
        hemisphere = HEMISPHERES[SIDES.index(side)]
        raise DataError(
            message(
                f"the same {kind} labels in challenge and fsaverage space, {hemisphere} hemisphere",
                f"{differ} vertices that differ and {outside} labelled vertices outside the responses",
                "use mask files of one subject and one version",
            )
        )
    return here


def _by_name(
    codes: np.ndarray, kind: str, mapping: dict[int, str], masks: Path
) -> dict[str, np.ndarray]:
    """Return a mask per ROI name after checking labels against the mapping in both directions."""
    used = set(np.unique(codes).tolist()) - {0}
    known = {i + 1: name for i, name in enumerate(ALGONAUTS_ROIS.get(kind, ()))}
    unnamed = sorted(used - set(mapping))
    # a standard ROI may be absent in a subject; a label of the user's own must occur
    unused = sorted(c for c in mapping if c != 0 and c not in used and mapping[c] != known.get(c))
    misnamed = sorted(
        c for c in mapping if mapping[c] in known.values() and known.get(c) != mapping[c]
    )
    if unnamed or unused or misnamed:
        raise DataError(
            message(
                f"labels of {kind} that agree with mapping_{kind}.npy in {masks}",
                f"labels without a name {unnamed}, names without a vertex {unused}, standard names at other labels {misnamed}",
                "use mask and mapping files of one version",
            )
        )
    return {name: codes == code for code, name in mapping.items() if code != 0}
