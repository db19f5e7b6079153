"""The spaces of NSD's betas: which vertices or voxels there are, their ROIs, and the reader of a session."""

from __future__ import annotations

import warnings
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from bmfl_lab.data import nsd_files as files
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import DataError, message

SIDES = ("lh", "rh")
Guard = Callable[[Path], Path]


@dataclass(frozen=True)
class Space:
    """Where the betas of a subject lie.

    Parameters
    ----------
    atlas : Atlas
        Vertices or voxels of the ``nsdgeneral`` mask with their ROIs.
    read : callable
        Session to its betas, float32 (n_vertices, n_trials).
    ncsnr : ndarray of float, shape (n_vertices,), optional
        Signal-to-noise ratio of a single presentation, where NSD's map is there.
    missing : list of str
        ROI classes without label maps.
    native_only : list of str
        ROI classes labelled on the subject's own surface only, without the transform that brings
        them here.
    """

    atlas: Atlas
    read: Callable[[int], np.ndarray]
    ncsnr: np.ndarray | None
    missing: list[str]
    native_only: list[str]


def _rois(
    folders: Sequence[Path],
    pattern: str,
    kinds: Sequence[str],
    flat: Callable[[list[np.ndarray], Path], np.ndarray | None],
    guard: Guard,
) -> tuple[dict[str, np.ndarray], list[str], list[str]]:
    """Read label maps by class; `flat` turns the maps of a class into one vector, or None where it cannot."""
    rois: dict[str, np.ndarray] = {}
    missing, elsewhere = [], []
    for kind in kinds:
        sides = [pattern.format(side=side, kind=kind) for side in SIDES]
        folder = next((f for f in folders if all((f / s).is_file() for s in sides)), None)
        if folder is None:
            missing.append(kind)
            continue
        tables = [f / f"{kind}.mgz.ctab" for f in (folder, *folders)]
        table = next((t for t in tables if t.is_file()), tables[0])
        read = [files.read_labels(guard(folder / s), guard(table)) for s in sides]
        labels = flat([r[0] for r in read], folder / sides[0])
        if labels is None:
            elsewhere.append(kind)
            continue
        rois.update({name: labels == code for code, name in read[0][1].items()})
    return rois, missing, elsewhere


def _to_fsaverage(transforms: Path, sizes: list[int], guard: Guard) -> list[np.ndarray] | None:
    """Return, for each vertex of fsaverage, the 0-based vertex of the subject's own surface that lies there."""
    paths = [transforms / f"{side}.white-to-fsaverage.mgz" for side in SIDES]
    if not all(p.is_file() for p in paths):
        return None
    found = []
    for path, size in zip(paths, sizes):
        values = np.ravel(files.load_image(guard(path), "the transform to fsaverage"))
        if values.size != size or not np.array_equal(values, np.rint(values)) or values.min() < 1:
            raise DataError(
                message(
                    f"{size} vertex numbers from 1 in {path}",
                    f"{values.size} values, smallest {values.min()}",
                    "download the file again from NSD",
                )
            )
        found.append(values.astype(np.int64) - 1)  # NSD counts from 1
    return found


def _on_mesh(maps: list[np.ndarray], sources: list[np.ndarray], where: Path) -> list[np.ndarray]:
    """Take each fsaverage vertex's label from the subject's own surface, as nsdcode's nearest neighbour does."""
    for own, source in zip(maps, sources):
        if source.max() >= own.size:
            raise DataError(
                message(
                    f"labels of at least {source.max() + 1} vertices, to which white-to-fsaverage refers, in {where}",
                    f"{own.size}",
                    "use labels and transforms of one subject",
                )
            )
    return [own.ravel()[source] for own, source in zip(maps, sources)]


def surface(root: Path, betas: Path, subject: int, kinds: Sequence[str], guard: Guard) -> Space:
    """Return ``nsdgeneral`` on fsaverage.

    Labels on fsaverage are taken as they are; those on the subject's own surface, as NSD ships most
    classes, are brought over by ``transforms/{lh,rh}.white-to-fsaverage.mgz``.

    Raises
    ------
    DataError
        If the mask is missing, or labels or transforms do not fit.

    Warns
    -----
    UserWarning
        If classes are labelled on the subject's own surface only and the transform is not there.
    """
    who = f"subj{subject:02d}"
    folders = [root / f"nsddata/freesurfer/{name}/label" for name in ("fsaverage", who)]
    transforms = root / f"nsddata/ppdata/{who}/transforms"
    general = [
        files.load_image(guard(folders[0] / f"{s}.nsdgeneral.mgz"), "the nsdgeneral mask")
        for s in SIDES
    ]
    index = [np.flatnonzero(np.squeeze(g) > 0) for g in general]
    sizes = [g.size for g in general]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray | None:
        if where.parent != folders[0]:
            sources = _to_fsaverage(transforms, sizes, guard)
            if sources is None:
                return None
            maps = _on_mesh(maps, sources, where)
        if [m.size for m in maps] != sizes:
            raise DataError(
                message(
                    f"labels of {sizes} vertices, the mesh of the betas, in {where}",
                    f"{[m.size for m in maps]}",
                    "put labels on fsaverage there, those of the subject's own surface into its own folder",
                )
            )
        return np.concatenate([m.ravel()[i] for m, i in zip(maps, index)])

    rois, missing, elsewhere = _rois(folders, "{side}.{kind}.mgz", kinds, flat, guard)
    if elsewhere:
        wanted = (
            f"lh and rh.white-to-fsaverage.mgz in {transforms}, to bring ROI labels to fsaverage"
        )
        found = f"none: {', '.join(elsewhere)} of {who} are left out"
        warnings.warn(message(wanted, found, "download the two transforms from NSD"), stacklevel=3)
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [len(i) for i in index])
    return Space(
        atlas=Atlas(hemisphere, rois, surface_index=np.concatenate(index), mesh="fsaverage"),
        read=_surface_reader(betas, index, sizes, guard),
        ncsnr=_surface_ncsnr(betas, index, sizes, guard),
        missing=missing,
        native_only=elsewhere,
    )


def _surface_reader(
    betas: Path, index: list[np.ndarray], sizes: list[int], guard: Guard
) -> Callable:
    def read(session: int) -> np.ndarray:
        parts = []
        for side, chosen, size in zip(SIDES, index, sizes):
            path = betas / f"{side}.betas_session{session:02d}.mgh"
            data = files.surface_betas(guard(path))
            if len(data) != size:
                raise DataError(
                    message(
                        f"{size} vertices in {path}", f"{len(data)}", "use betas in fsaverage space"
                    )
                )
            parts.append(data[chosen])
            del data
        return np.concatenate(parts)

    return read


def _surface_ncsnr(
    betas: Path, index: list[np.ndarray], sizes: list[int], guard: Guard
) -> np.ndarray | None:
    paths = [betas / f"{side}.ncsnr.mgh" for side in SIDES]
    if not all(p.is_file() for p in paths):
        return None
    maps = [np.ravel(files.load_image(guard(p), "ncsnr")) for p in paths]
    if [len(m) for m in maps] != sizes:
        got = f"{[len(m) for m in maps]}"
        raise DataError(
            message(f"ncsnr of {sizes} vertices in {betas}", got, "use the maps in fsaverage space")
        )
    return np.concatenate([m[i] for m, i in zip(maps, index)])


def volume(root: Path, betas: Path, subject: int, kinds: Sequence[str], guard: Guard) -> Space:
    """Return ``nsdgeneral`` in the 1.8 mm volume.

    Raises
    ------
    DataError
        If the masks are missing or overlap, or labels lie on another grid.
    """
    folder = root / f"nsddata/ppdata/subj{subject:02d}/func1pt8mm/roi"
    names = [folder / f"{s}.nsdgeneral.nii.gz" for s in SIDES]
    masks = [files.load_image(guard(p), "the nsdgeneral mask") > 0 for p in names]
    if masks[0].shape != masks[1].shape or np.any(masks[0] & masks[1]):
        got = (
            "voxels in both"
            if masks[0].shape == masks[1].shape
            else f"grids {masks[0].shape}, {masks[1].shape}"
        )
        raise DataError(
            message("disjoint left and right masks of one grid", got, "download the masks again")
        )
    both = masks[0] | masks[1]

    def flat(maps: list[np.ndarray], where: Path) -> np.ndarray:
        if any(m.shape != both.shape for m in maps):
            got = f"{[m.shape for m in maps]}"
            raise DataError(
                message(f"labels on the grid {both.shape} in {where}", got, "use func1pt8mm")
            )
        return np.concatenate([m[k] for m, k in zip(maps, masks)])

    tables = root / f"nsddata/freesurfer/subj{subject:02d}/label"
    rois, missing, _ = _rois([folder, tables], "{side}.{kind}.nii.gz", kinds, flat, guard)

    def read(session: int) -> np.ndarray:
        path = betas / f"betas_session{session:02d}.hdf5"
        path = path if path.is_file() else path.with_name(f"betas_session{session:02d}.nii.gz")
        values, right = files.volume_betas(guard(path), both), masks[1][both]
        return np.concatenate([values[~right], values[right]])

    noise = betas / "ncsnr.nii.gz"
    ncsnr = files.load_image(guard(noise), "ncsnr") if noise.is_file() else None
    if ncsnr is not None and ncsnr.shape != both.shape:
        raise DataError(
            message(
                f"ncsnr on the grid {both.shape}", f"{ncsnr.shape}", "use the map in func1pt8mm"
            )
        )
    hemisphere = np.repeat(np.arange(2, dtype=np.int8), [int(m.sum()) for m in masks])
    return Space(
        atlas=Atlas(hemisphere, rois),
        read=read,
        ncsnr=None if ncsnr is None else np.concatenate([ncsnr[m] for m in masks]),
        missing=missing,
        native_only=[],
    )
