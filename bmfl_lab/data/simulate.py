"""A simulated subject on fsaverage5: retinotopic areas see contrast, higher areas are tuned to meaning.

Nothing here was measured in a brain. V1 to V3 and hV4 respond to oriented contrast energy inside
the receptive field that the Benson template gives each vertex; higher areas respond to a table of
semantic dimensions of the image's class and to a few global image statistics. Every number below
without a reference is our choice.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from PIL import Image

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.cortex import BENSON_AREAS, GLASSER_AREAS, read_templates

DEGREES = 8.4
"""Degrees of visual angle that an image spans; as in the Natural Scenes Dataset (Allen et al. 2022)."""
SIDE = 64
"""Pixels of the square on which contrast energy is computed."""
N_ORIENTATIONS = 4
WAVELENGTHS = (4.0, 8.0)
EXPONENTS = {"V1": 0.5, "V2": 0.45, "V3": 0.4, "hV4": 0.35}
"""Compressive exponents, stronger along the hierarchy as in Kay et al. (2013), J Neurophysiol 110:481-494."""
CEILINGS = {
    "V1": 0.5,
    "V2": 0.5,
    "V3": 0.45,
    "hV4": 0.45,
    "LO": 0.4,
    "FFC": 0.4,
    "PHA": 0.35,
    "VVC": 0.35,
    "PIT": 0.35,
}
"""Mean explainable share of the variance of three averaged presentations: of the order that the Natural Scenes Dataset
shows in these areas, not taken from a table."""

SEMANTIC_DIMENSIONS = (
    "animate",
    "face",
    "fur",
    "flies",
    "water",
    "vehicle",
    "wheels",
    "size",
    "domestic",
    "scene",
)
SEMANTIC_TABLE: dict[str, tuple[float, ...]] = {
    "airplane": (0.0, 0.0, 0.0, 1.0, 0.0, 1.0, 0.3, 1.0, 0.0, 0.8),
    "automobile": (0.0, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0, 0.6, 0.6, 0.6),
    "bird": (1.0, 0.4, 0.1, 1.0, 0.3, 0.0, 0.0, 0.1, 0.2, 0.4),
    "cat": (1.0, 1.0, 1.0, 0.0, 0.0, 0.0, 0.0, 0.2, 1.0, 0.1),
    "deer": (1.0, 0.6, 0.8, 0.0, 0.0, 0.0, 0.0, 0.5, 0.0, 0.7),
    "dog": (1.0, 1.0, 0.9, 0.0, 0.0, 0.0, 0.0, 0.3, 1.0, 0.2),
    "frog": (1.0, 0.5, 0.0, 0.0, 0.8, 0.0, 0.0, 0.0, 0.0, 0.2),
    "horse": (1.0, 0.6, 0.7, 0.0, 0.0, 0.0, 0.0, 0.7, 0.5, 0.6),
    "ship": (0.0, 0.0, 0.0, 0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 1.0),
    "truck": (0.0, 0.1, 0.0, 0.0, 0.0, 1.0, 1.0, 0.8, 0.3, 0.6),
}
TRUTH = (
    "orientation_tuning",
    "semantic_tuning",
    *(f"{what}_{part}" for what in ("attribute", "response") for part in ("mean", "spread")),
)
"""What determines the subject's answer to any image; see `answer`."""
IMAGE_DIMENSIONS = (
    "brightness",
    "contrast",
    "warmth",
    "saturation",
    "horizontal energy",
    "vertical energy",
)

AREA_PROFILE: dict[str, dict[str, float]] = {
    "LO": {
        "animate": 0.5,
        "wheels": 0.5,
        "contrast": 1.0,
        "vertical energy": 0.8,
        "horizontal energy": 0.8,
    },
    "PIT": {"animate": 0.6, "fur": 0.4, "wheels": 0.4, "contrast": 0.7, "saturation": 0.5},
    "VVC": {"animate": 0.8, "vehicle": 0.6, "size": 0.5, "saturation": 0.6, "warmth": 0.4},
    "FFC": {"face": 1.2, "animate": 0.9, "fur": 0.5, "domestic": 0.4},
    "PHA": {"scene": 1.2, "size": 0.8, "vehicle": 0.6, "water": 0.4, "brightness": 0.4},
}
"""What each higher area prefers on average; single vertices scatter around it."""


def build_atlas() -> Atlas:
    """Return the simulated subject's vertices: areas on fsaverage5, with receptive fields where the template has them.

    Returns
    -------
    Atlas
        Maps: polar angle in degrees clockwise from the upper vertical meridian (negative in the
        left half of the field), eccentricity and receptive-field standard deviation in degrees; NaN
        in areas without a template.

    Raises
    ------
    FetchError, DataError
        If the templates cannot be read.

    Notes
    -----
    Vertices of retinotopic areas whose receptive field's centre lies outside the image are left
    out, as they would see nothing.
    """
    sides, index, names, maps = [], [], [], []
    for side, (hemisphere, found) in enumerate(read_templates().items()):
        label = np.full(len(found["area"]), "", dtype=object)
        for name, ids in GLASSER_AREAS.items():
            label[np.isin(found["glasser"], ids)] = name
        for name, area in BENSON_AREAS.items():
            inside = (found["eccentricity"] <= DEGREES / 2) & (found["sigma"] > 0)
            # The template's hV4 reaches over its neighbours, PIT above all: there the parcellation
            # decides.
            mine = (found["area"] == area) & ((name != "hV4") | (label == ""))
            label[mine] = np.where(inside[mine], name, "")
        kept = np.flatnonzero(label != "")
        retinotopic = np.isin(label[kept], list(BENSON_AREAS))
        sign = 1.0 if hemisphere == "left" else -1.0
        values = np.stack(
            [sign * np.abs(found["angle"][kept]), found["eccentricity"][kept], found["sigma"][kept]]
        )
        maps.append(np.where(retinotopic, values, np.nan))
        sides += [side] * len(kept)
        index.append(kept)
        names.append(label[kept])
    area, (angle, eccentricity, sigma) = np.concatenate(names), np.concatenate(maps, axis=1)
    return Atlas(
        hemisphere=np.asarray(sides, dtype=np.int8),
        rois={name: area == name for name in (*BENSON_AREAS, *GLASSER_AREAS)},
        surface_index=np.concatenate(index).astype(np.int64),
        mesh="fsaverage5",
        maps={"polar_angle": angle, "eccentricity": eccentricity, "rf_size": sigma},
    )


def field_weights(atlas: Atlas, vertices: np.ndarray) -> np.ndarray:
    """Return Gaussian receptive fields over the image, float32 (n_vertices, SIDE * SIDE), each summing to at most 1.

    A field that reaches beyond the image loses that part, where the screen is grey.
    """
    angle = np.radians(atlas.maps["polar_angle"][vertices])[:, None]
    eccentricity = atlas.maps["eccentricity"][vertices][:, None]
    degree = DEGREES / SIDE
    # A field smaller than a pixel would fall between the pixels' centres.
    sigma = np.maximum(atlas.maps["rf_size"][vertices], degree)[:, None]
    x, y = eccentricity * np.sin(angle), eccentricity * np.cos(angle)
    centres = (np.arange(SIDE) + 0.5 - SIDE / 2) * degree
    px, py = np.meshgrid(centres, -centres)
    distance2 = (px.ravel() - x) ** 2 + (py.ravel() - y) ** 2
    return (np.exp(-distance2 / (2 * sigma**2)) * degree**2 / (2 * np.pi * sigma**2)).astype(
        np.float32
    )


def luminance(images: Sequence[np.ndarray] | np.ndarray) -> np.ndarray:
    """Return luminance on the simulation's grid, float32 (n, SIDE, SIDE), 0 to 1."""
    grey = [
        Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for image in images
    ]
    return np.stack([np.asarray(g, dtype=np.float32) for g in grey]) / 255


def contrast_energy(grey: np.ndarray) -> np.ndarray:
    """Return oriented band-pass energy.

    Parameters
    ----------
    grey : ndarray of float32, shape (n, SIDE, SIDE)
        Luminance.

    Returns
    -------
    ndarray of float32, shape (n, n_orientations * n_wavelengths, SIDE, SIDE)
        Squared responses of a quadrature pair of Gabor filters, summed; wavelengths outermost.

    References
    ----------
    Adelson & Bergen (1985), JOSA A 2:284-299.
    """
    from scipy import fft

    reach = 8
    padded = np.pad(grey, ((0, 0), (reach, reach), (reach, reach)), mode="reflect")
    size = SIDE + 4 * reach
    spectrum = fft.rfft2(padded, (size, size))
    out = np.empty((len(grey), len(WAVELENGTHS) * N_ORIENTATIONS, SIDE, SIDE), dtype=np.float32)
    window = slice(2 * reach, 2 * reach + SIDE)
    for channel in range(out.shape[1]):
        wavelength, k = WAVELENGTHS[channel // N_ORIENTATIONS], channel % N_ORIENTATIONS
        energy = 0.0
        for phase in (0.0, np.pi / 2):
            kernel = fft.rfft2(_gabor(reach, wavelength, k, phase), (size, size))
            energy = energy + fft.irfft2(spectrum * kernel, (size, size))[:, window, window] ** 2
        out[:, channel] = energy
    return out


def _gabor(reach: int, wavelength: float, orientation: int, phase: float) -> np.ndarray:
    centred = np.arange(-reach, reach + 1, dtype=np.float32)
    x, y = np.meshgrid(centred, -centred)
    angle = np.pi * orientation / N_ORIENTATIONS
    across = -x * np.sin(angle) + y * np.cos(angle)
    window = np.exp(-(x**2 + y**2) / (2 * (0.45 * wavelength) ** 2))
    wave = window * np.cos(2 * np.pi * across / wavelength + phase)
    wave -= window * wave.sum() / window.sum()
    return (wave / np.linalg.norm(wave)).astype(np.float32)


def image_dimensions(images: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return the values of `IMAGE_DIMENSIONS`, float32 (n, 6).

    Parameters
    ----------
    images : ndarray of uint8, shape (n, H, W, 3)
        The images.
    energy : ndarray of float32, shape (n, n_channels)
        Oriented energy averaged over each image.
    """
    rgb = images.reshape(len(images), -1, 3).astype(np.float32) / 255
    by_orientation = np.sqrt(energy.reshape(len(energy), len(WAVELENGTHS), N_ORIENTATIONS).mean(1))
    columns = [
        rgb.mean((1, 2)),
        rgb.mean(2).std(1),
        (rgb[..., 0] - rgb[..., 2]).mean(1),
        (rgb.max(2) - rgb.min(2)).mean(1),
        by_orientation[:, 0],
        by_orientation[:, N_ORIENTATIONS // 2],
    ]
    return np.stack(columns, 1).astype(np.float32)


def respond(
    images: np.ndarray, semantics: np.ndarray, atlas: Atlas, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Return noiseless responses of the simulated subject.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_stimuli, H, W, 3)
        The images.
    semantics : ndarray of float, shape (n_stimuli, len(SEMANTIC_DIMENSIONS))
        Their semantic dimensions.
    atlas : Atlas
        From `build_atlas`.
    generator : numpy.random.Generator
        Source of the tuning.

    Returns
    -------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
        Standardised per vertex.
    attributes : ndarray of float32, shape (n_stimuli, n_dimensions)
        Semantic and image dimensions, standardised: what the higher areas are built from.
    truth : dict of str to ndarray
        What `answer` needs for other images: ``orientation_tuning`` (n_vertices, n_channels) and
        ``semantic_tuning`` (n_vertices, n_dimensions), NaN where a vertex has none, and mean and
        spread of attributes and responses over these images, by which both are standardised.
    """
    retinotopic = np.flatnonzero(np.isfinite(atlas.maps["polar_angle"]))
    channels = np.full(
        (atlas.n_vertices, len(WAVELENGTHS) * N_ORIENTATIONS), np.nan, dtype=np.float32
    )
    channels[retinotopic] = _channel_tuning(generator, len(retinotopic))
    truth = {"orientation_tuning": channels, "semantic_tuning": _semantic_tuning(generator, atlas)}
    noiseless, attributes = answer(images, semantics, atlas, truth)
    return noiseless, attributes, truth


def answer(
    images: np.ndarray, semantics: np.ndarray, atlas: Atlas, truth: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Return the noiseless responses of a subject whose tuning is known.

    Parameters
    ----------
    images, semantics, atlas
        As `respond`. A shifted image keeps the semantics of its class: the simulated higher areas
        recognise it, and only their share of image statistics changes.
    truth : dict of str to ndarray
        As `respond` returns it. Where it has no mean and spread, those of these images are taken
        and put into it.

    Returns
    -------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
    attributes : ndarray of float32, shape (n_stimuli, n_dimensions)
    """
    retinotopic = np.flatnonzero(np.isfinite(atlas.maps["polar_angle"]))
    weights, tuning = field_weights(atlas, retinotopic), truth["orientation_tuning"][retinotopic]
    exponent = np.zeros(atlas.n_vertices)
    for name, value in EXPONENTS.items():
        exponent[atlas.rois[name]] = value
    raw = np.empty((len(images), atlas.n_vertices), dtype=np.float32)
    whole = np.empty((len(images), tuning.shape[1]), dtype=np.float32)
    for start in range(0, len(images), 128):
        part = slice(start, start + 128)
        energy = contrast_energy(luminance(images[part]))
        whole[part] = energy.mean((2, 3))
        drive = 0.0
        for channel in range(energy.shape[1]):
            drive = (
                drive
                + (energy[:, channel].reshape(len(energy), -1) @ weights.T) * tuning[:, channel]
            )
        raw[part, retinotopic] = np.maximum(drive, 0) ** exponent[retinotopic]
    attributes = _standardise(
        np.concatenate([semantics, image_dimensions(images, whole)], 1), truth, "attribute"
    )
    higher = np.isfinite(truth["semantic_tuning"][:, 0])
    raw[:, higher] = attributes @ truth["semantic_tuning"][higher].T
    return _standardise(raw, truth, "response"), attributes


def _standardise(values: np.ndarray, truth: dict[str, np.ndarray], what: str) -> np.ndarray:
    """Standardise by the mean and spread in `truth`, which are put there the first time."""
    spread = values.std(0)
    mean = truth.setdefault(f"{what}_mean", values.mean(0))
    return (
        (values - mean) / truth.setdefault(f"{what}_spread", np.where(spread > 0, spread, 1))
    ).astype(np.float32)


def _channel_tuning(generator: np.random.Generator, n: int) -> np.ndarray:
    angles = np.pi * np.arange(N_ORIENTATIONS) / N_ORIENTATIONS
    preferred = generator.uniform(0, np.pi, (n, 1))
    orientation = np.exp(np.cos(2 * (angles - preferred)) - 1)
    coarse = generator.uniform(0, 1, (n, 1))
    bands = np.concatenate([1 - coarse, coarse], axis=1)
    curve = (bands[:, :, None] * orientation[:, None, :]).reshape(n, -1)
    return (curve / curve.sum(1, keepdims=True)).astype(np.float32)


def _semantic_tuning(generator: np.random.Generator, atlas: Atlas) -> np.ndarray:
    """Return tuning that scatters around each area's profile and changes smoothly over the surface."""
    from nilearn.datasets import load_fsaverage

    dimensions = (*SEMANTIC_DIMENSIONS, *IMAGE_DIMENSIONS)
    sphere = load_fsaverage("fsaverage5")["sphere"]
    places = np.empty((atlas.n_vertices, 3))
    for side, part in enumerate(("left", "right")):
        rows = np.asarray(atlas.hemisphere) == side
        places[rows] = sphere.parts[part].coordinates[atlas.surface_index[rows]]
    # A random Fourier expansion of a Gaussian process with a length scale of 12 mm on the sphere of
    # radius 100 mm.
    frequency = generator.standard_normal((3, 200)) / 12.0
    offset = generator.uniform(0, 2 * np.pi, 200)
    smooth = (
        np.sqrt(2 / 200)
        * np.cos(places @ frequency + offset)
        @ generator.standard_normal((200, len(dimensions)))
    )
    tuning = np.full((atlas.n_vertices, len(dimensions)), np.nan, dtype=np.float32)
    for name, profile in AREA_PROFILE.items():
        mask = np.asarray(atlas.rois[name])
        tuning[mask] = [profile.get(d, 0.0) for d in dimensions] + 0.4 * smooth[mask]
    return tuning


def ceilings(atlas: Atlas, generator: np.random.Generator) -> np.ndarray:
    """Return each vertex's noise ceiling for the mean of three presentations, float32 (n_vertices,)."""
    found = np.zeros(atlas.n_vertices, dtype=np.float32)
    for name, mean in CEILINGS.items():
        mask = np.asarray(atlas.rois[name])
        found[mask] = np.clip(mean + 0.12 * generator.standard_normal(int(mask.sum())), 0.05, 0.85)
    return found
