"""The planted study: generated images and a simulated subject of which everything is known.

The class of an image is the orientation of the gratings in two known cells, hidden among gratings
elsewhere. Each vertex of the simulated subject sees the image through a known receptive field and
orientation tuning. Only the ROI `signal_roi` sees the planted cells, so that it alone carries the
class; with ``carries=False`` no ROI does. A head trained on the few labelled images must find the
two cells among sixteen by itself, while a brain encoder learns them from many unlabelled images
with responses.
"""

from __future__ import annotations

import numpy as np

from bmfl_lab.data import planted_images as images
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.runtime import rng

N_REPEATS = 3
N_SESSIONS = 5
CUTOFF = 2.0
"""Receptive fields are Gaussian and end at this many standard deviations, so that they see nothing beyond."""

RF_SIZE = {"V1": 0.3, "V2": 0.4, "V3": 0.5, "hV4": 0.6, "LO": 0.7, "FFC": 0.8, "PHA": 0.9}
"""Standard deviation of the receptive fields in degrees, growing along the hierarchy; our choice."""

# 12 connected vertices an ROI on nilearn's fsaverage5 mesh, grown from a point at the place of each
# area.
_VERTICES: dict[str, dict[str, tuple[int, ...]]] = {
    "left": {
        "V1": (348, 827, 828, 1777, 2747, 3919, 3920, 3921, 6096, 6097, 6098, 7984),
        "V2": (140, 1274, 3190, 3192, 3193, 3194, 3195, 3196, 7808, 7809, 7810, 9658),
        "V3": (785, 1703, 1704, 3797, 3798, 3799, 3800, 3801, 7813, 7814, 7815, 7816),
        "hV4": (349, 1998, 3924, 3926, 4383, 6099, 6100, 8575, 8576, 8577, 8578, 8579),
        "LO": (551, 1373, 1374, 5090, 7079, 7080, 7081, 7082, 9437, 9438, 9439, 10003),
        "FFC": (621, 1387, 2498, 5599, 5600, 5601, 5602, 5603, 5604, 5605, 10048, 10049),
        "PHA": (360, 1437, 1438, 1439, 3358, 3359, 7193, 7194, 7195, 7196, 7197, 8038),
    },
    "right": {
        "V1": (819, 1762, 1763, 3896, 3897, 3898, 6083, 6084, 7950, 7951, 7952, 7953),
        "V2": (550, 1214, 1215, 5084, 5086, 5215, 6794, 6795, 6796, 6797, 6874, 9435),
        "V3": (568, 1281, 2341, 2342, 3200, 5212, 5213, 6914, 6915, 9584, 9585, 9586),
        "hV4": (446, 2000, 2489, 2490, 4386, 4388, 5578, 5579, 5580, 10023, 10024, 10025),
        "LO": (443, 1404, 1992, 1993, 5649, 7134, 8557, 8558, 8560, 8561, 8562, 8563),
        "FFC": (352, 1414, 1786, 1787, 3334, 3937, 7152, 8003, 8005, 8006, 8007, 8008),
        "PHA": (2463, 2472, 5511, 5534, 5535, 5536, 9944, 9945, 9970, 9971, 9972, 9973),
    },
}


def _place_fields(
    generator: np.random.Generator, roi: str, side: int, cells: tuple | None, n: int
) -> np.ndarray:
    """Return (n, 3): x, y and sigma in degrees; inside `cells` if given, else clear of the planted cells."""
    sign = 1 if side == 0 else -1  # the left hemisphere sees the right half of the field
    found: list[tuple[float, float, float]] = []
    half = images.DEGREES / 2
    while len(found) < n:
        if cells is not None:
            row, column = cells[1 if sign > 0 else 0]
            x = (column + 0.5) * images.CELL / images.PIXELS_PER_DEGREE - half
            y = half - (row + 0.5) * images.CELL / images.PIXELS_PER_DEGREE
            jitter = generator.uniform(-0.15, 0.15, 2)
            found.append((x + jitter[0], y + jitter[1], float(generator.uniform(0.4, 0.5))))
            continue
        sigma = RF_SIZE[roi] * generator.uniform(0.85, 1.15)
        x, y = sign * generator.uniform(0.0, half), generator.uniform(-half, half)
        if images.clear_of_planted(x, y, CUTOFF * sigma):
            found.append((x, y, sigma))
    return np.asarray(found)


def _atlas(
    generator: np.random.Generator, signal_roi: str, carries: bool
) -> tuple[Atlas, np.ndarray]:
    """Return the atlas and the receptive fields (n_vertices, 3)."""
    names, hemisphere, index, fields = [], [], [], []
    for side, table in enumerate(_VERTICES.values()):
        for roi, vertices in table.items():
            cells = None
            if roi == signal_roi:
                cells = images.PLANTED_CELLS if carries else images.DECOY_CELLS
            fields.append(_place_fields(generator, roi, side, cells, len(vertices)))
            names += [roi] * len(vertices)
            hemisphere += [side] * len(vertices)
            index += vertices
    rf = np.concatenate(fields)
    rois = {roi: np.asarray(names) == roi for roi in RF_SIZE}
    maps = {
        "polar_angle": np.degrees(np.arctan2(rf[:, 0], rf[:, 1])),
        "eccentricity": np.hypot(rf[:, 0], rf[:, 1]),
        "rf_size": rf[:, 2].copy(),
    }
    return Atlas(
        np.asarray(hemisphere, np.int8), rois, np.asarray(index, np.int64), "fsaverage5", maps=maps
    ), rf


def _field_weights(rf: np.ndarray) -> np.ndarray:
    """Return each receptive field as weights that sum to 1, float32 (n_vertices, SIDE * SIDE)."""
    centres = (np.arange(images.SIDE) + 0.5 - images.SIDE / 2) / images.PIXELS_PER_DEGREE
    x, y = np.meshgrid(centres, -centres)
    distance2 = (x.ravel() - rf[:, :1]) ** 2 + (y.ravel() - rf[:, 1:2]) ** 2
    weights = np.exp(-distance2 / (2 * rf[:, 2:] ** 2)) * (distance2 <= (CUTOFF * rf[:, 2:]) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _tuning(generator: np.random.Generator, n: int) -> np.ndarray:
    """Return circular orientation tuning with random preference, float32 (n_vertices, n_orientations)."""
    count = len(images.CLASS_NAMES)
    preferred = generator.uniform(0, np.pi, (n, 1))
    angles = np.pi * np.arange(count) / count
    curve = np.exp(2.0 * (np.cos(2 * (angles - preferred)) - 1))
    return (curve / curve.sum(1, keepdims=True)).astype(np.float32)


def _pool(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the energy in each receptive field, float32 (n, n_orientations, n_fields)."""
    out = np.empty((len(pixels), len(images.CLASS_NAMES), len(weights)), dtype=np.float32)
    for start in range(0, len(pixels), 256):
        energy = images.orientation_energy(pixels[start : start + 256])
        out[start : start + 256] = energy.reshape(*energy.shape[:2], -1) @ weights.T
    return out


def _respond(pooled: np.ndarray, tuning: np.ndarray) -> np.ndarray:
    """Return noiseless responses before standardisation, float32 (n, n_vertices)."""
    return np.sqrt(np.einsum("nov,vo->nv", pooled, tuning))


def add_repeats(
    noiseless: np.ndarray,
    ceiling: np.ndarray,
    sessions: np.ndarray,
    n_repeats: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate repeated noisy measurements of standardised responses.

    Parameters
    ----------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
        Responses with unit variance per vertex.
    ceiling : ndarray of float, shape (n_vertices,)
        Wanted explainable share of the variance of the mean over repeats, above 0 and below 1.
    sessions : ndarray of int64, shape (n_stimuli,)
        Session of each stimulus; each session has its own offset and gain per vertex, which
        z-scoring removes.
    n_repeats : int
        Presentations of each stimulus.
    generator : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    responses : ndarray of float32, shape (n_stimuli, n_vertices)
        Mean over repeats.
    repeats : ndarray of float32, shape (n_stimuli, n_repeats, n_vertices)
        Single presentations, z-scored per vertex within session.
    """
    n, v = noiseless.shape
    noise_sd = np.sqrt(n_repeats * (1 - ceiling) / ceiling).astype(np.float32)
    repeats = noiseless[:, None, :] + noise_sd * generator.standard_normal(
        (n, n_repeats, v), dtype=np.float32
    )
    for session in np.unique(sessions):
        rows = sessions == session
        gain = generator.uniform(0.8, 1.2, v).astype(np.float32)
        part = gain * repeats[rows] + generator.standard_normal(v, dtype=np.float32)
        spread = part.std(axis=(0, 1))
        repeats[rows] = (part - part.mean(axis=(0, 1))) / np.where(spread > 0, spread, 1)
    return repeats.mean(axis=1), repeats


def _subject(
    seed: int,
    stimuli: StimulusSet,
    latent: np.ndarray,
    pixels: np.ndarray,
    sizes: tuple[int, int, int],
    signal_roi: str,
    carries: bool,
) -> Subject:
    generator = rng(seed, "planted", "subject")
    atlas, rf = _atlas(generator, signal_roi, carries)
    weights, tuning = _field_weights(rf), _tuning(generator, atlas.n_vertices)
    source = images.PLANTED_CELLS if carries else images.DECOY_CELLS
    region = images.region_mask(source).reshape(1, -1).astype(np.float32)
    pooled = _pool(pixels, np.concatenate([weights, region / region.sum()]))
    raw, attributes = _respond(pooled[..., :-1], tuning), np.sqrt(pooled[..., -1])
    mean, spread = raw.mean(0), raw.std(0)

    def respond(new: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        return (_respond(_pool(np.asarray(new), weights), tuning) - mean) / spread

    noiseless = (raw - mean) / spread
    ceiling = generator.uniform(0.45, 0.85, atlas.n_vertices).astype(np.float32)
    sessions = generator.permutation(len(pixels)).astype(np.int64) % N_SESSIONS
    responses, repeats = add_repeats(
        noiseless, ceiling, sessions, N_REPEATS, rng(seed, "planted", "noise")
    )
    edges = np.cumsum((0, *sizes))
    return Subject(
        name="simulated-planted",
        stimuli=stimuli,
        responses=responses,
        atlas=atlas,
        splits={
            k: np.arange(a, b) for k, a, b in zip(("train", "val", "test"), edges[:-1], edges[1:])
        },
        noise_ceiling=ceiling,
        repeats=repeats,
        sessions=sessions,
        simulated=True,
        attributes=attributes,
        attribute_names=tuple(f"energy of {name} gratings" for name in images.CLASS_NAMES),
        truth={
            "receptive_fields": rf,
            "degrees": images.DEGREES,
            "tuning": tuning,
            "noiseless": noiseless,
            "respond": respond,
            "orientation_energy": lambda new: _pool(np.asarray(new), weights),
            "labels": latent,
            "planted_region": images.region_mask(),
            "source_region": images.region_mask(source),
            "noise_ceiling": ceiling,
            "signal_roi": signal_roi if carries else None,
        },
    )


def _labelled(seed: int, name: str, n: int, statistics: str) -> StimulusSet:
    generator = rng(seed, "planted", name)
    labels = generator.permutation(n) % len(images.CLASS_NAMES)
    ids = [f"{name}-{i:05d}" for i in range(n)]
    return from_arrays(
        name, images.draw(generator, labels, statistics), ids, labels, images.CLASS_NAMES
    )


def load(
    seed: int = 0,
    n_encoder: int = 1200,
    n_encoder_val: int = 120,
    n_encoder_test: int = 120,
    n_train: int = 96,
    n_val: int = 96,
    n_test: int = 400,
    n_ood: int = 400,
    signal_roi: str = "FFC",
    carries: bool = True,
) -> Study:
    """Generate the planted study.

    Parameters
    ----------
    seed : int, default 0
        Everything is a pure function of it and of the other options; sizes of one set do not change
        another set.
    n_encoder, n_encoder_val, n_encoder_test : int
        Images with responses, for the brain encoder; unlabelled.
    n_train, n_val, n_test, n_ood : int
        Labelled images of the classifier's sets "train", "val", "test" and "recoloured".
    signal_roi : str, default "FFC"
        The one ROI whose receptive fields see the planted cells.
    carries : bool, default True
        If false, `signal_roi` sees distractors as every other ROI does, and no ROI carries the
        class.

    Returns
    -------
    Study
        Its subject's ``truth`` holds receptive fields (x, y and sigma in degrees), tuning,
        noiseless responses, the planted pixels, the noise ceiling, ``respond(images) -> noiseless
        responses`` and ``orientation_energy(images) -> (n, n_orientations, n_vertices)``, what each
        receptive field sees. Maps of the atlas: polar angle in degrees clockwise from the upper
        vertical meridian (negative in the left half of the field), eccentricity and standard
        deviation of the receptive field in degrees.

    Raises
    ------
    ConfigError
        If `signal_roi` is not an ROI of the study, or a size is below 4.
    """
    if signal_roi not in RF_SIZE:
        raise ConfigError(
            message(
                f"signal_roi among {tuple(RF_SIZE)}", repr(signal_roi), nearest(signal_roi, RF_SIZE)
            )
        )
    sizes = {
        "n_encoder": n_encoder,
        "n_encoder_val": n_encoder_val,
        "n_encoder_test": n_encoder_test,
        "n_train": n_train,
        "n_val": n_val,
        "n_test": n_test,
        "n_ood": n_ood,
    }
    for name, size in sizes.items():
        if size < len(images.CLASS_NAMES):
            raise ConfigError(
                message(
                    f"{name} of at least {len(images.CLASS_NAMES)}",
                    str(size),
                    "ask for more images",
                )
            )
    parts, latent, ids = [], [], []
    for split, n in (("train", n_encoder), ("val", n_encoder_val), ("test", n_encoder_test)):
        generator = rng(seed, "planted", "encoder", split)
        latent.append(generator.integers(0, len(images.CLASS_NAMES), n))
        parts.append(images.draw(generator, latent[-1]))
        ids += [f"encoder-{split}-{i:05d}" for i in range(n)]
    pixels = np.concatenate(parts)
    stimuli = from_arrays("encoder", pixels, ids, np.full(len(pixels), -1), images.CLASS_NAMES)
    subject = _subject(
        seed,
        stimuli,
        np.concatenate(latent),
        pixels,
        (n_encoder, n_encoder_val, n_encoder_test),
        signal_roi,
        carries,
    )
    sets = {
        name: _labelled(seed, name, n, "standard")
        for name, n in (("train", n_train), ("val", n_val), ("test", n_test))
    }
    sets["recoloured"] = _labelled(seed, "recoloured", n_ood, "recoloured")
    carrier = f"{signal_roi} alone carries the class" if carries else "no region carries the class"
    return Study(
        name="planted",
        description=f"generated images and a simulated subject in which {carrier}",
        sets=sets,
        subjects={subject.name: subject},
        ood=("recoloured",),
        shifts=(("masked", 3), ("low_light", 3), ("stylised", 3), ("sketch", 3)),
        backbone=BackboneSpec("vit_tiny14", "random:0", images.SIDE),
        licences={"images and responses": "generated by this package, MIT"},
        extra={
            "planted_region": images.region_mask(),
            "signal_roi": signal_roi if carries else None,
            "carries": carries,
        },
    )
