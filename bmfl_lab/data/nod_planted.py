"""A generated copy of NOD in its true layout, with a *simulated* truth that is known.

With this copy, everything that reads NOD runs without fetching anything. Each photograph is drawn
from a few latent values whose means depend on its super-class. The vertices of V1 of a subject with
signal respond linearly to the latent values; all other vertices hold noise only, and so does every
vertex of the null subject. The noise of neighbouring trials and of all vertices is correlated, and
each run has its own offset and gain per vertex, as in measured responses. All numbers are our
choice.
"""

from __future__ import annotations

import shutil
import tempfile
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np
from PIL import Image

from bmfl_lab.data import nod
from bmfl_lab.data.fslr import N_VERTICES, Cortex
from bmfl_lab.data.study import BackboneSpec, Study, register_reader
from bmfl_lab.files import lock, write_json
from bmfl_lab.runtime import home, rng

if TYPE_CHECKING:
    import nibabel as nib

VERSION = 2
"""Version of the generator. Raise it with any change, so that an older copy is not read."""
SIDE = 56
SUPER_CLASSES = ("bird", "canine", "conveyance", "food")
AREAS = {"V1": 24, "V2": 12, "MT": 12, "": 24}
"""Vertices per area and hemisphere; "" is outside of all areas."""
NETWORKS = {"Visual": ("V1", "V2"), "Motion": ("MT",), "Default": ("",)}
"""Planted networks of the whole cortex, by the areas that they hold; "Visual" has the signal."""
N_LATENT = 6
N_COCO = 120
SHARE = 0.5
"""Explainable share of the variance of a trial in V1, for latent values of unit variance."""
NETWORK_FILE = "networks.dlabel.nii"


def planted_cortex() -> Cortex:
    """Return the vertices of the generated responses: a part of each mesh, with gaps."""
    n = sum(AREAS.values())
    return Cortex(np.arange(n) * 3 + 5, np.arange(n) * 2 + 7)


def planted_areas() -> dict[str, np.ndarray]:
    """Return the mask of each area, bool (n_vertices,)."""
    names = np.repeat(list(AREAS), list(AREAS.values()))
    return {name: np.tile(names == name, 2) for name in AREAS if name}


def planted_networks() -> dict[str, np.ndarray]:
    """Return the mask of each network, bool (n_vertices,)."""
    names = np.tile(np.repeat(list(AREAS), list(AREAS.values())), 2)
    return {network: np.isin(names, areas) for network, areas in NETWORKS.items()}


def cortex_axis(cortex: Cortex) -> nib.cifti2.BrainModelAxis:
    """Return nibabel's axis of the vertices of both hemispheres."""
    import nibabel as nib

    left, right = (
        nib.cifti2.BrainModelAxis.from_surface(v, N_VERTICES, name=f"CIFTI_STRUCTURE_CORTEX_{side}")
        for v, side in ((cortex.left, "LEFT"), (cortex.right, "RIGHT"))
    )
    return left + right


def write_dscalar(
    path: str | Path, values: np.ndarray, axis: nib.cifti2.BrainModelAxis | None = None
) -> None:
    """Write maps as a ``.dscalar.nii`` file.

    Parameters
    ----------
    path : str or Path
        The file; missing folders are made.
    values : ndarray of float, shape (n_maps, n_vertices)
        The maps.
    axis : nibabel.cifti2.BrainModelAxis, optional
        The vertices; by default those of `planted_cortex`.
    """
    import nibabel as nib

    names = nib.cifti2.ScalarAxis([f"map {k + 1}" for k in range(len(values))])
    _save(path, np.asarray(values, np.float32), names, axis)


def write_dlabel(
    path: str | Path,
    masks: dict[str, np.ndarray],
    axis: nib.cifti2.BrainModelAxis | None = None,
) -> None:
    """Write areas as a ``.dlabel.nii`` file with one label per area and hemisphere.

    Parameters
    ----------
    path : str or Path
        The file; missing folders are made.
    masks : dict of str to ndarray of bool, shape (n_vertices,)
        The areas.
    axis : nibabel.cifti2.BrainModelAxis, optional
        The vertices; by default those of `planted_cortex`.
    """
    import nibabel as nib

    axis = cortex_axis(planted_cortex()) if axis is None else axis
    left = np.asarray(axis.name) == "CIFTI_STRUCTURE_CORTEX_LEFT"
    codes, table = np.zeros(len(axis), np.float32), {0: ("???", (1, 1, 1, 0))}
    for name, mask in masks.items():
        for side, here in (("L", left), ("R", ~left)):
            table[len(table)] = (f"{side}_{name}_exvivo", (0.5, 0.5, 0.5, 1))
            codes[mask & here] = len(table) - 1
    _save(path, codes[None], nib.cifti2.LabelAxis(["areas"], [table]), axis)


def _save(
    path: str | Path,
    values: np.ndarray,
    maps: nib.cifti2.ScalarAxis | nib.cifti2.LabelAxis,
    axis: nib.cifti2.BrainModelAxis | None,
) -> None:
    import nibabel as nib

    axis = cortex_axis(planted_cortex()) if axis is None else axis
    Path(path).parent.mkdir(parents=True, exist_ok=True)
    image = nib.Cifti2Image(values, nib.cifti2.Cifti2Header.from_axes((maps, axis)))
    with nib.imageglobals.LoggingOutputSuppressor():  # about pixel sizes, which CIFTI has not
        nib.save(image, path)


def _photograph(latent: np.ndarray, generator: np.random.Generator) -> np.ndarray:
    """Return an image that shows its latent values (6,) as colours, two gradients and a blob."""
    x, y = np.meshgrid(np.linspace(-1, 1, SIDE), np.linspace(-1, 1, SIDE))
    shade = 30 * latent[3] * x + 30 * latent[4] * y + 40 * latent[5] * np.exp(-4 * (x**2 + y**2))
    noise = generator.normal(0, 6, (SIDE, SIDE, 3))
    return np.clip(128 + 28 * latent[:3] + shade[..., None] + noise, 0, 255).astype(np.uint8)


def _measure(signal: np.ndarray, share: float, generator: np.random.Generator) -> np.ndarray:
    """Add correlated noise, offsets and gains to a signal (n_trials, n_vertices) of a run."""
    n, v = signal.shape
    noise = generator.standard_normal((n, v))
    noise[1:] = 0.95 * noise[1:] + np.sqrt(1 - 0.95**2) * noise[:-1]  # slow drift
    noise = np.sqrt(0.9) * noise + np.sqrt(0.1) * generator.standard_normal((n, 1))
    found = np.sqrt(share) * signal + np.sqrt(1 - share) * noise
    return generator.uniform(0.5, 2, v) * found + generator.normal(0, 3, v)


def write_copy(
    root: str | Path,
    subjects: Sequence[int],
    *,
    null: Sequence[int] = (),
    images_only: Sequence[int] = (),
    coco: Sequence[int] = (),
    sessions: int = 1,
    runs: int = 10,
    trials: int = 100,
    seed: int = 0,
) -> None:
    """Write a generated copy of NOD in its true layout.

    Parameters
    ----------
    root : str or Path
        Folder to write to.
    subjects : sequence of int
        Subjects with betas.
    null : sequence of int, default ()
        Those of them without signal.
    images_only : sequence of int, default ()
        Subjects with events and photographs and no betas.
    coco : sequence of int, default ()
        Subjects of `subjects` with ten runs of the same 120 COCO images.
    sessions, runs, trials : int, default 1, 10, 100
        Number of sessions per subject, of runs per session, and of photographs per run.
    seed : int, default 0
        Seed of all draws.
    """
    root, masks, used = Path(root), planted_areas(), set()
    means = rng(seed, "nod_planted", "means").normal(0, 1, (len(SUPER_CLASSES), N_LATENT))
    for number in (*subjects, *images_only):
        name, draw = f"sub-{number:02d}", rng(seed, "nod_planted", number)
        weights = np.zeros((N_LATENT, len(planted_cortex())))
        if number in subjects and number not in null:
            weights[:, masks["V1"]] = draw.normal(0, N_LATENT**-0.5, (N_LATENT, masks["V1"].sum()))
        for session in range(1, sessions + 1):
            for run in range(1, runs + 1):
                ids, latents = _write_photographs(root, means, trials, used, draw)
                write_events(root, name, session, run, ids)
                if number in subjects:
                    betas = _measure(latents @ weights, SHARE, draw)
                    _write_run(root, name, session, run, ids, betas)
        base = root / "derivatives/ciftify" / name
        if number in coco:
            _write_coco(base / "results", weights, draw)
        if number in subjects:
            place = base / f"standard_fsLR_surface/{name}.BA_exvivo.32k_fs_LR.dlabel.nii"
            write_dlabel(place, masks)
    write_json(root / nod.NOTE, {"simulated": True, "source": "bmfl_lab.data.nod_planted"})


def _write_photographs(
    root: Path, means: np.ndarray, n: int, used: set[str], draw: np.random.Generator
) -> tuple[list[str], np.ndarray]:
    """Write the photographs of a run; return their ids and their latent values (n, 6)."""
    members = {
        name: [w for w, s in nod.super_classes().items() if s == name][:3] for name in SUPER_CLASSES
    }
    kinds = draw.permutation(np.arange(n) % len(SUPER_CLASSES))
    latents = 0.7 * means[kinds] + 0.7 * draw.normal(0, 1, (n, N_LATENT))
    ids = []
    for kind, latent in zip(kinds, latents):
        wnid = str(draw.choice(members[SUPER_CLASSES[kind]]))
        while (stimulus := f"{wnid}_{draw.integers(1, 99_999)}") in used:
            pass
        used.add(stimulus)
        ids.append(stimulus)
        path = nod.image_path(root, stimulus)
        path.parent.mkdir(parents=True, exist_ok=True)
        Image.fromarray(_photograph(latent, draw)).save(path, "JPEG", quality=95)
    return ids, latents


def write_events(
    root: str | Path, subject: str, session: int, run: int, ids: Sequence[str]
) -> None:
    """Write the table of events of a run, whose ``trial_type`` does not tell the class.

    Parameters
    ----------
    root : str or Path
        The copy.
    subject : str
        "sub-10".
    session, run : int
        Numbers from 1.
    ids : sequence of str
        Photographs in the order in which they were shown.
    """
    stem = f"ses-imagenet{session:02d}"
    lines = ["onset\tduration\ttrial_type\tresponse_time\tstim_file"]
    for k, i in enumerate(ids):
        lines.append(f"{16.01 + 4 * k:.2f}\t1.0\t{k}.0\t1.8\timagenet/{i.split('_')[0]}/{i}.JPEG")
    name = f"{subject}_{stem}_task-imagenet_run-{run:02d}_events.tsv"
    path = Path(root) / subject / stem / "func" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text("\n".join(lines) + "\n", encoding="utf-8")


def _write_run(
    root: Path, subject: str, session: int, run: int, ids: Sequence[str], betas: np.ndarray
) -> None:
    """Write betas and labels; as in NOD, the labels of the first run name a folder too."""
    stem = f"ses-imagenet{session:02d}_task-imagenet_run-{run}"
    folder = root / "derivatives/ciftify" / subject / "results" / stem
    write_dscalar(folder / f"{stem}_beta.dscalar.nii", betas)
    lines = [f"{i.split('_')[0]}/{i}.JPEG" if run == 1 else f"{i}.JPEG" for i in ids]
    (folder / f"{stem}_label.txt").write_text("\n".join(lines), encoding="utf-8")


def _write_coco(results: Path, weights: np.ndarray, draw: np.random.Generator) -> None:
    """Write ten runs of the same images, the second one in another order."""
    latents = draw.normal(0, 1, (N_COCO, N_LATENT))
    names = [f"{k:012d}.jpg" for k in draw.choice(581_929, N_COCO, replace=False)]
    for run in range(1, nod.N_COCO_RUNS + 1):
        stem = f"ses-coco_task-coco_run-{run}"
        order = draw.permutation(N_COCO) if run == 2 else np.arange(N_COCO)
        betas = _measure(latents @ weights, SHARE, draw)
        write_dscalar(results / stem / f"{stem}_beta.dscalar.nii", betas[order])
        lines = "\n".join(names[k] for k in order)
        (results / stem / f"{stem}_label.txt").write_text(lines, encoding="utf-8")


def load(
    seed: int = 0, trials: int = 40, pool: bool = False, runs: int = 10, n_people: int = 2
) -> Study:
    """Generate a copy of NOD once and read it as a study.

    Parameters
    ----------
    seed : int, default 0
        Seed of all draws.
    trials : int, default 40
        Photographs per run (100 in NOD).
    pool : bool, default False
        Add a subject "pooled", see `bmfl_lab.data.nod.load`.
    runs : int, default 10
        Runs per subject.
    n_people : int, default 2
        Subjects whose photographs make up the image sets.

    Returns
    -------
    Study
        Simulated subjects: "sub-10" and "sub-11" with signal in V1 alone, "sub-12" without any. The
        vertices are scattered over the mesh, so that they are not drawn. ``extra["networks"]`` is a
        file of planted networks, of which "Visual" contains V1.
    """
    settings = f"v{VERSION}-{seed}-{trials}-{runs}-{n_people}"
    place = home() / "studies" / f"nod-planted-{settings}"
    with lock(place.with_name(f".{place.name}.lock"), what=str(place)):
        if not place.is_dir():
            place.parent.mkdir(parents=True, exist_ok=True)
            temporary = Path(tempfile.mkdtemp(prefix=f".{place.name}-", dir=place.parent))
            try:
                others = range(13, 13 + n_people)
                options = {"runs": runs, "trials": trials, "seed": seed}
                write_copy(temporary, [10, 11, 12], null=[12], images_only=others, **options)
                write_dlabel(temporary / NETWORK_FILE, planted_networks())
                temporary.rename(place)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
    options = {"pool": pool, "test": 0.25, "seed": seed, "verify": False}
    study = nod.load(place, [10, 11, 12], atlas="exvivo", **options)
    return replace(
        study,
        name="nod_planted",
        description="generated photographs and simulated subjects in the layout of NOD; "
        "V1 of sub-10 and sub-11 responds to them, and nothing of sub-12 does",
        subjects={
            name: replace(s, atlas=replace(s.atlas, mesh=None))
            for name, s in study.subjects.items()
        },
        backbone=BackboneSpec("vit_tiny14", "random:0", SIDE),
        licences={"images and responses": "generated by this package, MIT"},
        extra={**study.extra, "signal_roi": "V1", "networks": str(place / NETWORK_FILE)},
    )


register_reader("nod_planted", load)
