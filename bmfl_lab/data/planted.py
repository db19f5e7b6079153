"""The planted study: generated images and a simulated subject with a known truth.

Each image is a grid of 4 x 4 cells of 14 pixels, the patch size of the backbones. Each cell holds a
grating of random orientation. The two cells of `PLANTED_CELLS`, left and right of the vertical
midline, share the orientation that is the class of the image. Everything else is a nuisance that is
drawn independently of the class.

Each vertex of the simulated subject responds to the image through a known receptive field and
orientation tuning. The receptive fields of one ROI, `signal_roi`, cover the planted cells, so that
it alone carries the class; with ``carries=False`` no ROI does. A head that is trained on the few
labelled images must find two cells among sixteen by itself, while a brain encoder learns them from
many unlabelled images with responses.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import cache

import numpy as np

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.simulate import (
    add_repeats,
    check_sizes,
    consecutive_splits,
    gabor,
    gabor_energy,
    orientation_tuning,
)
from bmfl_lab.data.stimuli import StimulusSet, from_arrays
from bmfl_lab.data.study import BackboneSpec, Study
from bmfl_lab.errors import ConfigError, require_known
from bmfl_lab.runtime import rng

# --- images ---

SIDE = 56
CELL = 14
GRID = SIDE // CELL
DEGREES = 8.0
"""Degrees of visual angle that an image spans, so that one cell spans two degrees."""
PIXELS_PER_DEGREE = SIDE / DEGREES
WAVELENGTH = 7.0
CLASS_NAMES = ("horizontal", "rising", "vertical", "falling")
PLANTED_CELLS = ((1, 1), (1, 2))
"""(row, column) of the cells whose orientation is the class."""
DECOY_CELLS = ((2, 1), (2, 2))
"""Mirror image of the planted cells about the horizontal midline, which holds distractors only."""
_LUMINANCE = np.array([0.299, 0.587, 0.114], dtype=np.float32)
_FILTER_REACH = 4


@dataclass(frozen=True)
class _Nuisances:
    """Ranges of everything but the class, in grey levels from 0 to 255 unless noted.

    Parameters
    ----------
    brightness : tuple of float
        Lowest and highest mean level of an image.
    chroma : float
        Standard deviation of the colour offset of the image, and of that of each cell.
    contrast : tuple of float
        Lowest and highest amplitude of the grating of a cell.
    tint : float
        Standard deviation of the gain of a grating per colour channel (no unit).
    phase : float
        Largest phase offset of a grating in radians.
    noise : float
        Standard deviation of the pixel noise.
    """

    brightness: tuple[float, float]
    chroma: float
    contrast: tuple[float, float]
    tint: float
    phase: float
    noise: float


_STATISTICS: Mapping[str, _Nuisances] = {
    "standard": _Nuisances((110.0, 150.0), 14.0, (30.0, 70.0), 0.1, 0.9, 12.0),
    "recoloured": _Nuisances((85.0, 170.0), 40.0, (22.0, 50.0), 0.35, 0.9, 16.0),
}
"""Nuisances of the in-distribution sets and of the natural out-of-distribution set (our choice)."""


def region_mask(cells: tuple[tuple[int, int], ...] = PLANTED_CELLS) -> np.ndarray:
    """Return which pixels the cells cover.

    Parameters
    ----------
    cells : tuple of (int, int), default `PLANTED_CELLS`
        Row and column of each cell.

    Returns
    -------
    ndarray of bool, shape (SIDE, SIDE)
    """
    mask = np.zeros((SIDE, SIDE), dtype=bool)
    for row, column in cells:
        mask[row * CELL : (row + 1) * CELL, column * CELL : (column + 1) * CELL] = True
    return mask


@cache
def _gratings() -> np.ndarray:
    """Return the gratings of a cell, float32 (4 orientations, 2 phases, CELL, CELL)."""
    pairs = [
        [gabor(CELL, 3.5, WAVELENGTH, k, phase) for phase in (0.0, np.pi / 2)]
        for k in range(len(CLASS_NAMES))
    ]
    return np.asarray(pairs, dtype=np.float32)


def _draw(
    generator: np.random.Generator, labels: np.ndarray, statistics: str = "standard"
) -> np.ndarray:
    """Draw one image per label (n,), uint8 (n, SIDE, SIDE, 3)."""
    nuisance, n = _STATISTICS[statistics], len(labels)
    orientation = generator.integers(0, len(CLASS_NAMES), (n, GRID, GRID))
    for row, column in PLANTED_CELLS:
        orientation[:, row, column] = labels
    contrast = generator.uniform(*nuisance.contrast, (n, GRID, GRID)).astype(np.float32)
    phase = generator.uniform(-nuisance.phase, nuisance.phase, (n, GRID, GRID)).astype(np.float32)
    even, odd = _gratings()[orientation, 0], _gratings()[orientation, 1]
    cells = contrast[..., None, None] * (
        np.cos(phase)[..., None, None] * even + np.sin(phase)[..., None, None] * odd
    )
    gain = (1 + nuisance.tint * generator.standard_normal((n, GRID, GRID, 1, 1, 3))).astype(
        np.float32
    )
    base = generator.uniform(*nuisance.brightness, (n, 1, 1, 1, 1, 1))
    colour = nuisance.chroma * (
        generator.standard_normal((n, 1, 1, 1, 1, 3))
        + generator.standard_normal((n, GRID, GRID, 1, 1, 3))
    )
    field = (base + colour).astype(np.float32) + gain * cells[..., None]
    pixels = field.transpose(0, 1, 3, 2, 4, 5).reshape(n, SIDE, SIDE, 3)
    pixels += nuisance.noise * generator.standard_normal(pixels.shape, dtype=np.float32)
    return np.clip(np.rint(pixels), 0, 255).astype(np.uint8)


def orientation_energy(images: np.ndarray) -> np.ndarray:
    """Return the local contrast energy per orientation.

    It is the sum of the squared responses of a quadrature pair of Gabor filters to the luminance,
    which is the energy model of complex cells.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, SIDE, SIDE, 3)
        RGB images.

    Returns
    -------
    ndarray of float32, shape (n, n_orientations, SIDE, SIDE)

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A
    2:284-299.
    """
    grey = (images.astype(np.float32) @ _LUMINANCE) / 255
    side = 2 * _FILTER_REACH + 1
    filters = [
        [gabor(side, 2.2, WAVELENGTH, k, phase) for phase in (0.0, np.pi / 2)]
        for k in range(len(CLASS_NAMES))
    ]
    # without the repeated border the frame would be an edge, whose energy depends on the mean level
    return gabor_energy(grey, np.asarray(filters, dtype=np.float32), border="edge")


def _clear_of_planted(x: float, y: float, radius: float) -> bool:
    """Return whether the energy inside a disc is free of the planted cells.

    Position and radius are in degrees from the centre of the image, with y pointing up.
    """
    rows, columns = np.nonzero(region_mask())
    px = (columns + 0.5 - SIDE / 2) / PIXELS_PER_DEGREE
    py = (SIDE / 2 - rows - 0.5) / PIXELS_PER_DEGREE
    # the filters reach 4 pixels to each side, thus 4 * sqrt(2) along a diagonal
    margin = (_FILTER_REACH * np.sqrt(2) + 1) / PIXELS_PER_DEGREE
    return bool(np.min(np.hypot(px - x, py - y)) > radius + margin)


# --- subject ---

N_REPEATS = 3
N_SESSIONS = 5
_CUTOFF = 2.0
"""Gaussian receptive fields are cut off at this many standard deviations."""

RF_SIZE = {"V1": 0.3, "V2": 0.4, "V3": 0.5, "hV4": 0.6, "LO": 0.7, "FFC": 0.8, "PHA": 0.9}
"""Mean standard deviation of the receptive fields in degrees, growing along the hierarchy."""

# 12 connected vertices per ROI and hemisphere on nilearn's fsaverage5 mesh, near the place of each
# area
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
    generator: np.random.Generator,
    roi: str,
    side: int,
    cells: tuple[tuple[int, int], ...] | None,
    n: int,
) -> np.ndarray:
    """Draw n receptive fields of an ROI, (n, 3): x, y and standard deviation in degrees.

    They lie inside `cells` if these are given, else clear of the planted cells.
    """
    sign = 1 if side == 0 else -1  # the left hemisphere responds to the right half of the field
    found: list[tuple[float, float, float]] = []
    half = DEGREES / 2
    while len(found) < n:
        if cells is not None:
            row, column = cells[1 if sign > 0 else 0]
            x = (column + 0.5) * CELL / PIXELS_PER_DEGREE - half
            y = half - (row + 0.5) * CELL / PIXELS_PER_DEGREE
            jitter = generator.uniform(-0.15, 0.15, 2)
            found.append((x + jitter[0], y + jitter[1], float(generator.uniform(0.4, 0.5))))
            continue
        sigma = RF_SIZE[roi] * generator.uniform(0.85, 1.15)
        x, y = sign * generator.uniform(0.0, half), generator.uniform(-half, half)
        if _clear_of_planted(x, y, _CUTOFF * sigma):
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
                cells = PLANTED_CELLS if carries else DECOY_CELLS
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
    atlas = Atlas(
        np.asarray(hemisphere, np.int8), rois, np.asarray(index, np.int64), "fsaverage5", maps=maps
    )
    return atlas, rf


def _field_weights(rf: np.ndarray) -> np.ndarray:
    """Return the weights of each receptive field, float32 (n_fields, SIDE * SIDE), summing to 1."""
    centres = (np.arange(SIDE) + 0.5 - SIDE / 2) / PIXELS_PER_DEGREE
    x, y = np.meshgrid(centres, -centres)
    distance2 = (x.ravel() - rf[:, :1]) ** 2 + (y.ravel() - rf[:, 1:2]) ** 2
    weights = np.exp(-distance2 / (2 * rf[:, 2:] ** 2)) * (distance2 <= (_CUTOFF * rf[:, 2:]) ** 2)
    return (weights / weights.sum(1, keepdims=True)).astype(np.float32)


def _pool(pixels: np.ndarray, weights: np.ndarray) -> np.ndarray:
    """Return the energy in each receptive field, float32 (n_images, n_orientations, n_fields)."""
    out = np.empty((len(pixels), len(CLASS_NAMES), len(weights)), dtype=np.float32)
    for start in range(0, len(pixels), 256):
        energy = orientation_energy(pixels[start : start + 256])
        out[start : start + 256] = energy.reshape(*energy.shape[:2], -1) @ weights.T
    return out


def _respond(pooled: np.ndarray, tuning: np.ndarray) -> np.ndarray:
    """Return noiseless responses before standardisation, float32 (n_images, n_vertices)."""
    return np.sqrt(np.einsum("nov,vo->nv", pooled, tuning))


def _viewed(seed: int, sizes: tuple[int, int, int]) -> tuple[np.ndarray, np.ndarray, StimulusSet]:
    """Return pixels, true classes (n,), and the set of unlabelled images that a subject views."""
    parts, classes, ids = [], [], []
    for split, n in zip(("train", "val", "test"), sizes):
        generator = rng(seed, "planted", "encoder", split)
        classes.append(generator.integers(0, len(CLASS_NAMES), n))
        parts.append(_draw(generator, classes[-1]))
        ids += [f"encoder-{split}-{i:05d}" for i in range(n)]
    pixels = np.concatenate(parts)
    stimuli = from_arrays("encoder", pixels, ids, np.full(len(pixels), -1), CLASS_NAMES)
    return pixels, np.concatenate(classes), stimuli


def _subject(
    seed: int,
    sizes: tuple[int, int, int],
    signal_roi: str,
    carries: bool,
    classes_told: tuple[int, ...] = (),
) -> Subject:
    """Return the simulated subject, who viewed `sizes` unlabelled images per split.

    With `classes_told`, the signal ROI is tuned to these orientations alone.
    """
    pixels, classes, stimuli = _viewed(seed, sizes)
    generator = rng(seed, "planted", "subject")
    atlas, rf = _atlas(generator, signal_roi, carries)
    weights = _field_weights(rf)
    tuning = orientation_tuning(generator, atlas.n_vertices, sharpness=2.0)
    if classes_told:
        others = np.setdiff1d(np.arange(len(CLASS_NAMES)), classes_told)
        tuning[np.ix_(np.flatnonzero(atlas.rois[signal_roi]), others)] = 0
    tuning = (tuning / tuning.sum(1, keepdims=True)).astype(np.float32)
    source = PLANTED_CELLS if carries else DECOY_CELLS
    region = region_mask(source).reshape(1, -1).astype(np.float32)
    pooled = _pool(pixels, np.concatenate([weights, region / region.sum()]))
    raw, attributes = _respond(pooled[..., :-1], tuning), np.sqrt(pooled[..., -1])
    mean, spread = raw.mean(0), raw.std(0)

    def respond(new: np.ndarray, labels: np.ndarray | None = None) -> np.ndarray:
        return (_respond(_pool(np.asarray(new), weights), tuning) - mean) / spread

    noiseless = (raw - mean) / spread
    ceiling = generator.uniform(0.45, 0.85, atlas.n_vertices).astype(np.float32)
    sessions = generator.permutation(len(pixels)).astype(np.int64) % N_SESSIONS
    responses, repeats = add_repeats(
        noiseless, ceiling, sessions, N_REPEATS, rng(seed, "planted", "noise", *classes_told)
    )
    return Subject(
        name="-".join(["simulated-planted", *(CLASS_NAMES[k] for k in classes_told)]),
        stimuli=stimuli,
        responses=responses,
        atlas=atlas,
        splits=consecutive_splits(sizes),
        noise_ceiling=ceiling,
        repeats=repeats,
        sessions=sessions,
        kind="simulated",
        attributes=attributes,
        attribute_names=tuple(f"energy of {name} gratings" for name in CLASS_NAMES),
        truth={
            "receptive_fields": rf,
            "degrees": DEGREES,
            "tuning": tuning,
            "noiseless": noiseless,
            "respond": respond,
            "orientation_energy": lambda new: _pool(np.asarray(new), weights),
            "labels": classes,
            "planted_region": region_mask(),
            "noise_ceiling": ceiling,
            "signal_roi": signal_roi if carries else None,
        },
    )


def _labelled(seed: int, name: str, n: int, statistics: str) -> StimulusSet:
    """Return a set of n labelled images with balanced classes."""
    generator = rng(seed, "planted", name)
    labels = generator.permutation(n) % len(CLASS_NAMES)
    ids = [f"{name}-{i:05d}" for i in range(n)]
    return from_arrays(name, _draw(generator, labels, statistics), ids, labels, CLASS_NAMES)


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
    complementary: bool = False,
) -> Study:
    """Generate the planted study.

    Parameters
    ----------
    seed : int, default 0
        Seed of all draws. The size of one set does not change another set.
    n_encoder, n_encoder_val, n_encoder_test : int, default 1200, 120, 120
        Number of unlabelled images with responses, for training, validating and testing the brain
        encoder.
    n_train, n_val, n_test, n_ood : int, default 96, 96, 400, 400
        Number of labelled images in the classifier's sets "train", "val", "test" and "recoloured".
    signal_roi : str, default "FFC"
        The only ROI whose receptive fields cover the planted cells.
    carries : bool, default True
        If false, the receptive fields of `signal_roi` cover distractors as those of every other ROI
        do, and no ROI carries the class.
    complementary : bool, default False
        Simulate two subjects who saw the same images. `signal_roi` of the first is tuned to
        horizontal and vertical gratings alone, that of the second to the oblique ones. Neither
        tells the other's two classes from each other; both together tell all four.

    Returns
    -------
    Study
        Its images have 56 x 56 pixels. The subject has 168 vertices, 12 per ROI and hemisphere. Its
        ``truth`` holds ``receptive_fields`` (n_vertices, 3) with x, y and standard deviation in
        degrees, ``tuning`` (n_vertices, n_orientations), ``noiseless`` (n_stimuli, n_vertices),
        ``labels`` (n_stimuli,), ``noise_ceiling`` (n_vertices,), ``planted_region``
        (SIDE, SIDE), ``signal_roi``, and two functions of images (n, SIDE, SIDE, 3):
        ``respond(images) -> (n, n_vertices)`` returns noiseless responses, and
        ``orientation_energy(images) -> (n, n_orientations, n_vertices)`` returns the energy in each
        receptive field. The maps of the atlas are the polar angle in degrees clockwise from the
        upper vertical meridian (negative in the left half of the visual field), the eccentricity,
        and the standard deviation of the receptive field, both in degrees.

    Raises
    ------
    ConfigError
        If `signal_roi` is not an ROI of the study, or a size is below 4.

    Notes
    -----
    The whole simulation is our choice.
    """
    require_known(signal_roi, RF_SIZE, ConfigError, f"signal_roi among {tuple(RF_SIZE)}")
    sizes = {
        "n_encoder": n_encoder,
        "n_encoder_val": n_encoder_val,
        "n_encoder_test": n_encoder_test,
        "n_train": n_train,
        "n_val": n_val,
        "n_test": n_test,
        "n_ood": n_ood,
    }
    check_sizes(sizes, least=len(CLASS_NAMES))
    viewed = (n_encoder, n_encoder_val, n_encoder_test)
    told = ((0, 2), (1, 3)) if complementary else ((),)
    people = [_subject(seed, viewed, signal_roi, carries, classes) for classes in told]
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
        subjects={subject.name: subject for subject in people},
        ood=("recoloured",),
        shifts=(("masked", 3), ("low_light", 3), ("stylised", 3), ("sketch", 3)),
        backbone=BackboneSpec("vit_tiny14", "random:0", SIDE),
        licences={"images and responses": "generated by this package, MIT"},
        extra={
            "planted_region": region_mask(),
            "signal_roi": signal_roi if carries else None,
            "carries": carries,
        },
    )
