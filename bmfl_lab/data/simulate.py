"""*Simulated* measurements of brains: responses, repeats, further subjects, and M/EEG.

Nothing here was measured in a brain. The simulated subject of the demo study lies on fsaverage5:
V1 to V3 and hV4 respond to oriented contrast energy inside the receptive field that the template of
Benson et al. gives each vertex, and higher areas respond to a table of semantic dimensions of the
image's class and to a few global image statistics. Every number below without a reference is our
choice.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np
from PIL import Image

from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.surfaces import BENSON_AREAS, GLASSER_AREAS, read_templates
from bmfl_lab.data.things_eeg import EEG
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.runtime import rng

DEGREES = 8.4
"""Degrees of visual angle that an image spans, as in the Natural Scenes Dataset."""
SIDE = 64
"""Pixels of the square on which contrast energy is computed."""
N_ORIENTATIONS = 4
WAVELENGTHS = (4.0, 8.0)
EXPONENTS = {"V1": 0.5, "V2": 0.45, "V3": 0.4, "hV4": 0.35}
"""Compressive exponents, which fall along the hierarchy as in Kay et al. (2013), Compressive
spatial summation in human visual cortex, J Neurophysiol 110:481-494. The values are our choice."""
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
"""Mean noise ceiling per area: explainable share of the variance of the mean of three repeats.
The values are our choice, of the order that the Natural Scenes Dataset shows in these areas."""

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
"""Keys of the arrays that `compute_responses` needs."""
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
"""Mean tuning of each higher area; single vertices scatter around it."""


def consecutive_splits(sizes: Sequence[int]) -> dict[str, np.ndarray]:
    """Return the row indices of "train", "val" and "test" when they follow one another.

    Parameters
    ----------
    sizes : sequence of int, length 3
        Number of stimuli per split.

    Returns
    -------
    dict of str to ndarray of int64, shape (size,)
    """
    edges = np.cumsum((0, *sizes))
    return {k: np.arange(a, b) for k, a, b in zip(("train", "val", "test"), edges[:-1], edges[1:])}


def check_sizes(sizes: Mapping[str, int], least: int) -> None:
    """Refuse a set of fewer than `least` images.

    Parameters
    ----------
    sizes : mapping of str to int
        Name of the option to the number of images.
    least : int
        Smallest number allowed.

    Raises
    ------
    ConfigError
        If an option is too small; the error names the first one.
    """
    for name, size in sizes.items():
        require(
            size >= least, ConfigError, f"{name} of at least {least}", size, "ask for more images"
        )


def gabor(side: int, sigma: float, wavelength: float, orientation: int, phase: float) -> np.ndarray:
    """Return a Gabor filter without a mean.

    Parameters
    ----------
    side : int
        Height and width in pixels.
    sigma : float
        Standard deviation of the Gaussian window in pixels.
    wavelength : float
        Period of the wave in pixels.
    orientation : int
        Orientation in steps of 180 / `N_ORIENTATIONS` degrees.
    phase : float
        Phase of the wave in radians.

    Returns
    -------
    ndarray of float64, shape (side, side)
    """
    centred = np.arange(side, dtype=np.float32) - (side - 1) / 2
    x, y = np.meshgrid(centred, -centred)
    angle = np.pi * orientation / N_ORIENTATIONS
    across = -x * np.sin(angle) + y * np.cos(angle)
    window = np.exp(-(x**2 + y**2) / (2 * sigma**2))
    wave = window * np.cos(2 * np.pi * across / wavelength + phase)
    return wave - window * wave.sum() / window.sum()


def orientation_tuning(generator: np.random.Generator, n: int, sharpness: float) -> np.ndarray:
    """Draw circular orientation tuning with a random preferred orientation per vertex.

    Parameters
    ----------
    generator : numpy.random.Generator
        Source of the preferred orientations.
    n : int
        Number of vertices.
    sharpness : float
        Concentration of the von Mises curve (no unit).

    Returns
    -------
    ndarray of float64, shape (n, N_ORIENTATIONS)
        Tuning curves whose maximum over all angles is 1.
    """
    angles = np.pi * np.arange(N_ORIENTATIONS) / N_ORIENTATIONS
    preferred = generator.uniform(0, np.pi, (n, 1))
    return np.exp(sharpness * (np.cos(2 * (angles - preferred)) - 1))


def add_repeats(
    noiseless: np.ndarray,
    ceiling: np.ndarray,
    sessions: np.ndarray,
    n_repeats: int,
    generator: np.random.Generator,
) -> tuple[np.ndarray, np.ndarray]:
    """Simulate repeated noisy measurements of responses.

    Parameters
    ----------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
        Responses with unit variance per vertex.
    ceiling : ndarray of float, shape (n_vertices,)
        Noise ceiling: explainable share of the variance of the mean over repeats, above 0 and below
        1.
    sessions : ndarray of int64, shape (n_stimuli,)
        Session of each stimulus. Each session has its own offset and gain per vertex, which
        z-scoring removes.
    n_repeats : int
        Number of presentations of each stimulus.
    generator : numpy.random.Generator
        Source of the noise.

    Returns
    -------
    responses : ndarray of float32, shape (n_stimuli, n_vertices)
        Mean over the repeats.
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


def build_atlas() -> Atlas:
    """Return the atlas of the simulated subject: areas and receptive fields on fsaverage5.

    Returns
    -------
    Atlas
        Its maps are the polar angle in degrees clockwise from the upper vertical meridian (negative
        in the left half of the visual field), the eccentricity in degrees, and the standard
        deviation of the receptive field in degrees. They are NaN in areas without a template.

    Raises
    ------
    FetchError
        If the templates cannot be fetched.
    DataError
        If the templates are damaged.

    Notes
    -----
    Vertices of retinotopic areas are left out if the centre of their receptive field lies outside
    the image.

    References
    ----------
    See `bmfl_lab.data.surfaces` for the templates.
    """
    sides, index, names, maps = [], [], [], []
    for side, (hemisphere, found) in enumerate(read_templates().items()):
        label = np.full(len(found["area"]), "", dtype=object)
        for name, ids in GLASSER_AREAS.items():
            label[np.isin(found["glasser"], ids)] = name
        for name, area in BENSON_AREAS.items():
            inside = (found["eccentricity"] <= DEGREES / 2) & (found["sigma"] > 0)
            # hV4 of the template overlaps its neighbours, above all PIT: the parcellation decides
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
    """Return Gaussian receptive fields over the image.

    Parameters
    ----------
    atlas : Atlas
        With the maps of `build_atlas`.
    vertices : ndarray of int, shape (n_fields,)
        Vertices that have a receptive field.

    Returns
    -------
    ndarray of float32, shape (n_fields, SIDE * SIDE)
        Each row sums to at most 1; the part of a receptive field outside the image is missing.
    """
    angle = np.radians(atlas.maps["polar_angle"][vertices])[:, None]
    eccentricity = atlas.maps["eccentricity"][vertices][:, None]
    degree = DEGREES / SIDE
    # a smaller receptive field could fall between the centres of the pixels
    sigma = np.maximum(atlas.maps["rf_size"][vertices], degree)[:, None]
    x, y = eccentricity * np.sin(angle), eccentricity * np.cos(angle)
    centres = (np.arange(SIDE) + 0.5 - SIDE / 2) * degree
    px, py = np.meshgrid(centres, -centres)
    distance2 = (px.ravel() - x) ** 2 + (py.ravel() - y) ** 2
    return (np.exp(-distance2 / (2 * sigma**2)) * degree**2 / (2 * np.pi * sigma**2)).astype(
        np.float32
    )


def luminance(images: Sequence[np.ndarray]) -> np.ndarray:
    """Return luminance on the grid of the simulation.

    Parameters
    ----------
    images : sequence of ndarray of uint8, each of shape (H, W, 3)
        RGB images.

    Returns
    -------
    ndarray of float32, shape (n, SIDE, SIDE)
        0 to 1.
    """
    grey = [
        Image.fromarray(image).convert("L").resize((SIDE, SIDE), Image.Resampling.BICUBIC)
        for image in images
    ]
    return np.stack([np.asarray(g, dtype=np.float32) for g in grey]) / 255


def gabor_energy(grey: np.ndarray, filters: np.ndarray, border: str) -> np.ndarray:
    """Return the energy of images under pairs of filters.

    Parameters
    ----------
    grey : ndarray of float32, shape (n, side, side)
        Luminance.
    filters : ndarray of float32, shape (n_channels, 2, 2 * reach + 1, 2 * reach + 1)
        Quadrature pair of each channel.
    border : str
        How `numpy.pad` continues the images beyond their border.

    Returns
    -------
    ndarray of float32, shape (n, n_channels, side, side)
        Sum of the squared responses of both filters of a pair.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A
    2:284-299.
    """
    from scipy import fft

    side, reach = grey.shape[1], filters.shape[-1] // 2
    size = (side + 4 * reach, side + 4 * reach)
    padded = np.pad(grey, ((0, 0), (reach, reach), (reach, reach)), mode=border)
    spectrum = fft.rfft2(padded, size)
    window = slice(2 * reach, 2 * reach + side)
    out = np.zeros((len(grey), len(filters), side, side), dtype=np.float32)
    for channel, pair in enumerate(filters):
        for wave in pair:
            response = fft.irfft2(spectrum * fft.rfft2(wave, size), size)[:, window, window]
            out[:, channel] += response**2
    return out


def contrast_energy(grey: np.ndarray) -> np.ndarray:
    """Return the contrast energy per orientation and wavelength.

    Parameters
    ----------
    grey : ndarray of float32, shape (n, SIDE, SIDE)
        Luminance.

    Returns
    -------
    ndarray of float32, shape (n, n_orientations * n_wavelengths, SIDE, SIDE)
        Sum of the squared responses of a quadrature pair of Gabor filters. Channel
        ``w * n_orientations + k`` holds wavelength w and orientation k.

    References
    ----------
    Adelson & Bergen (1985), Spatiotemporal energy models for the perception of motion, JOSA A
    2:284-299.
    """
    filters = []
    for wavelength in WAVELENGTHS:
        for k in range(N_ORIENTATIONS):
            pair = [gabor(17, 0.45 * wavelength, wavelength, k, phase) for phase in (0, np.pi / 2)]
            filters.append([wave / np.linalg.norm(wave) for wave in pair])
    return gabor_energy(grey, np.asarray(filters, dtype=np.float32), border="reflect")


def _image_dimensions(images: np.ndarray, energy: np.ndarray) -> np.ndarray:
    """Return global statistics of images, one column per entry of `IMAGE_DIMENSIONS`.

    Parameters
    ----------
    images : ndarray of uint8, shape (n, H, W, 3)
        RGB images.
    energy : ndarray of float32, shape (n, n_channels)
        Contrast energy per channel, averaged over each image.

    Returns
    -------
    ndarray of float32, shape (n, 6)
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


def simulate_responses(
    images: np.ndarray, semantics: np.ndarray, atlas: Atlas, generator: np.random.Generator
) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Draw the tuning of a simulated subject and compute its noiseless responses.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_stimuli, H, W, 3)
        RGB images.
    semantics : ndarray of float, shape (n_stimuli, 10)
        Semantic dimensions of the images, in the order of `SEMANTIC_DIMENSIONS`.
    atlas : Atlas
        From `build_atlas`.
    generator : numpy.random.Generator
        Source of the tuning.

    Returns
    -------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
        Responses, standardised per vertex.
    attributes : ndarray of float32, shape (n_stimuli, 16)
        Semantic and image dimensions, standardised; the responses of the higher areas are linear in
        them.
    truth : dict of str to ndarray
        The arrays named in `TRUTH`, with which `compute_responses` responds to other images:
        ``orientation_tuning`` (n_vertices, n_channels) and ``semantic_tuning`` (n_vertices, 16),
        NaN for vertices without that tuning, and the mean and standard deviation of attributes and
        responses over these images.
    """
    retinotopic = np.flatnonzero(np.isfinite(atlas.maps["polar_angle"]))
    channels = np.full(
        (atlas.n_vertices, len(WAVELENGTHS) * N_ORIENTATIONS), np.nan, dtype=np.float32
    )
    channels[retinotopic] = _channel_tuning(generator, len(retinotopic))
    truth = {"orientation_tuning": channels, "semantic_tuning": _semantic_tuning(generator, atlas)}
    noiseless, attributes = compute_responses(images, semantics, atlas, truth)
    return noiseless, attributes, truth


def compute_responses(
    images: np.ndarray, semantics: np.ndarray, atlas: Atlas, truth: dict[str, np.ndarray]
) -> tuple[np.ndarray, np.ndarray]:
    """Compute the noiseless responses of a simulated subject whose tuning is known.

    Parameters
    ----------
    images : ndarray of uint8, shape (n_stimuli, H, W, 3)
        RGB images.
    semantics : ndarray of float, shape (n_stimuli, 10)
        Semantic dimensions of the images. A shifted image keeps those of its class: the simulated
        higher areas recognise it, and only the part driven by image statistics changes.
    atlas : Atlas
        From `build_atlas`.
    truth : dict of str to ndarray
        From `simulate_responses`. Means and standard deviations that are missing are computed from
        these images and stored in it.

    Returns
    -------
    noiseless : ndarray of float32, shape (n_stimuli, n_vertices)
        Responses, standardised per vertex.
    attributes : ndarray of float32, shape (n_stimuli, 16)
        Standardised semantic and image dimensions.
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
        np.concatenate([semantics, _image_dimensions(images, whole)], 1), truth, "attribute"
    )
    higher = np.isfinite(truth["semantic_tuning"][:, 0])
    raw[:, higher] = attributes @ truth["semantic_tuning"][higher].T
    return _standardise(raw, truth, "response"), attributes


def _standardise(values: np.ndarray, truth: dict[str, np.ndarray], what: str) -> np.ndarray:
    """Standardise columns by the mean and standard deviation in `truth`, storing missing ones."""
    spread = values.std(0)
    mean = truth.setdefault(f"{what}_mean", values.mean(0))
    return (
        (values - mean) / truth.setdefault(f"{what}_spread", np.where(spread > 0, spread, 1))
    ).astype(np.float32)


def _channel_tuning(generator: np.random.Generator, n: int) -> np.ndarray:
    """Return the weight of each energy channel per vertex, float32 (n, n_channels)."""
    orientation = orientation_tuning(generator, n, sharpness=1.0)
    coarse = generator.uniform(0, 1, (n, 1))
    bands = np.concatenate([1 - coarse, coarse], axis=1)
    curve = (bands[:, :, None] * orientation[:, None, :]).reshape(n, -1)
    return (curve / curve.sum(1, keepdims=True)).astype(np.float32)


def _semantic_tuning(generator: np.random.Generator, atlas: Atlas) -> np.ndarray:
    """Return the tuning of the higher areas, float32 (n_vertices, n_dimensions), NaN elsewhere.

    It scatters around the profile of each area and changes smoothly over the surface.
    """
    from nilearn.datasets import load_fsaverage

    dimensions = (*SEMANTIC_DIMENSIONS, *IMAGE_DIMENSIONS)
    sphere = load_fsaverage("fsaverage5")["sphere"]
    places = np.empty((atlas.n_vertices, 3))
    for side, part in enumerate(("left", "right")):
        rows = np.asarray(atlas.hemisphere) == side
        places[rows] = sphere.parts[part].coordinates[atlas.surface_index[rows]]
    # random Fourier features of a Gaussian process with a length scale of 12 mm on the sphere of
    # radius 100 mm
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
    """Draw a noise ceiling for each vertex of the simulated subject.

    A noise ceiling is the share of the variance of a vertex that does not come from noise, when its
    responses are averaged over three presentations. It is drawn from a normal distribution around
    the mean of the area (`CEILINGS`) with a standard deviation of 0.12.

    Parameters
    ----------
    atlas : Atlas
        The atlas of the simulated subject, see `build_atlas`.
    generator : numpy.random.Generator
        Source of the draws.

    Returns
    -------
    ndarray of float32, shape (n_vertices,)
        Noise ceilings, clipped to the range from 0.05 to 0.85.

    Notes
    -----
    The standard deviation and the range are our choice.
    """
    found = np.zeros(atlas.n_vertices, dtype=np.float32)
    for name, mean in CEILINGS.items():
        mask = np.asarray(atlas.rois[name])
        found[mask] = np.clip(mean + 0.12 * generator.standard_normal(int(mask.sum())), 0.05, 0.85)
    return found


_BLOCK = 256
"""Largest number of vertices that are rotated together, which keeps the rotation matrices small."""


def simulate_other(subject: Subject, *, share: float = 0.7, seed: int = 1) -> Subject:
    """Simulate another subject who viewed the same images.

    Parameters
    ----------
    subject : Subject
        A simulated subject whose noiseless responses are known.
    share : float, default 0.7
        Share of the variance of the new subject's noiseless responses that comes from the first
        subject's responses to the same image. The rest is equally reliable but unrelated.
    seed : int, default 1
        Seed of the rotation, of the unrelated part, and of the noise.

    Returns
    -------
    Subject
        Subject with the name "NAME-otherSEED" and the same stimuli, splits, atlas and noise
        ceilings. Its ``truth`` holds "noiseless", of shape (n_stimuli, n_vertices), and "share".

    Raises
    ------
    ConfigError
        If `share` lies outside [0, 1].
    DataError
        If the subject was measured, or its noiseless responses or noise ceilings are not known.

    Notes
    -----
    Within each ROI the responses of the first subject are multiplied by a random rotation, which
    keeps the geometry of the ROI's patterns and distributes it over other vertices. The unrelated
    part consists of the rotated responses to other stimuli. This model is our choice and does not
    claim to describe how brains differ.
    """
    require(
        0 <= share <= 1,
        ConfigError,
        "a share from 0 to 1",
        repr(share),
        "choose for example share=0.7",
    )
    truth = subject.truth
    require(
        subject.simulated and "noiseless" in truth and subject.noise_ceiling is not None,
        DataError,
        "a simulated subject with noiseless responses and noise ceilings",
        f"{subject.name!r}",
        "give a simulated subject, such as that of load_study('planted'), or compare the measured "
        "subjects of the study with each other",
    )
    draw = rng(seed, "simulated people")
    known = np.asarray(truth["noiseless"], dtype=np.float32)
    rotated = np.empty_like(known)
    for group in _mixing_groups(subject, draw):
        rotation = np.linalg.qr(draw.standard_normal((len(group), len(group))))[0].astype(
            np.float32
        )
        rotated[:, group] = known[:, group] @ rotation
    mixed = np.sqrt(share) * rotated + np.sqrt(1 - share) * rotated[draw.permutation(len(rotated))]
    spread = mixed.std(axis=0)
    noiseless = (mixed - mixed.mean(axis=0)) / np.where(spread > 1e-6, spread, 1)
    sessions = (
        np.zeros(len(known), np.int64) if subject.sessions is None else np.asarray(subject.sessions)
    )
    n_repeats = 1 if subject.repeats is None else subject.repeats.shape[1]
    ceiling = np.asarray(subject.noise_ceiling, dtype=np.float32)
    usable = np.where(np.isfinite(ceiling), np.clip(ceiling, 0.01, 0.99), 0.5).astype(np.float32)
    responses, repeats = add_repeats(noiseless, usable, sessions, n_repeats, draw)
    return Subject(
        name=f"{subject.name}-other{seed}",
        stimuli=subject.stimuli,
        responses=responses,
        atlas=subject.atlas,
        splits=subject.splits,
        noise_ceiling=usable,
        repeats=repeats if n_repeats > 1 else None,
        sessions=sessions,
        kind="simulated",
        truth={"noiseless": noiseless, "share": share},
    )


def _mixing_groups(subject: Subject, draw: np.random.Generator) -> list[np.ndarray]:
    """Return groups of at most `_BLOCK` vertices of the same ROI, in random order."""
    signature = np.zeros(subject.n_vertices, dtype=np.int64)
    for k, roi in enumerate(subject.atlas.present):
        signature[subject.atlas.select(roi)] = k + 1
    found = []
    for value in np.unique(signature):
        members = draw.permutation(np.flatnonzero(signature == value))
        found += np.array_split(members, -(-len(members) // _BLOCK))
    return found


def simulate_eeg(
    sources: Mapping[str, np.ndarray],
    latencies: Mapping[str, float],
    ids: Sequence[str],
    *,
    n_channels: int = 12,
    n_repeats: int = 4,
    window: tuple[float, float] = (-0.1, 0.5),
    step: float = 0.02,
    width: float = 0.04,
    noise: float = 1.0,
    focus: tuple[float, float] | None = None,
    seed: int = 0,
) -> EEG:
    """Simulate M/EEG in which each source is encoded at its own latency.

    Parameters
    ----------
    sources : mapping of str to ndarray, shape (n_stimuli, d)
        Signals that are encoded: layers of a network, or noiseless responses of ROIs.
    latencies : mapping of str to float
        Seconds after stimulus onset at which each source is strongest.
    ids : sequence of str, length n_stimuli
        Stimulus id of each row.
    n_channels : int, default 12
        Number of simulated sensors.
    n_repeats : int, default 4
        Number of presentations per stimulus.
    window : tuple of float, default (-0.1, 0.5)
        First and last time in seconds.
    step : float, default 0.02
        Sampling interval in seconds.
    width : float, default 0.04
        Standard deviation in seconds of the Gaussian time course of a source.
    noise : float, default 1.0
        Standard deviation of the white noise of one presentation; each source has unit variance at
        its peak.
    focus : tuple of float, optional
        Place on the map of the head, a disc of radius 1 with the nose at (0, 1), around which the
        signal is strongest: it falls off as a Gaussian with a standard deviation of 0.5. By default
        it is as strong at every sensor.
    seed : int, default 0
        Seed of the topographies and the noise.

    Returns
    -------
    EEG
        Data of shape (n_stimuli, n_repeats, n_channels, n_times). ``simulated`` is True and the
        channels are named "sim01", "sim02" and so on.

    Raises
    ------
    DataError
        If sources and latencies have different names, or the numbers of rows and ids differ.

    Notes
    -----
    Random linear topographies and Gaussian time courses are our choice and do not model a head.
    """
    require(
        set(sources) == set(latencies) and sources,
        DataError,
        f"a latency for each of {tuple(sources)}",
        f"{tuple(latencies)}",
        "name the same sources in both",
    )
    times = np.arange(window[0], window[1] + step / 2, step)
    # a spiral of the golden angle covers a disc evenly
    turn, radius = (
        np.arange(n_channels) * 2.39996,
        np.sqrt((np.arange(n_channels) + 0.5) / n_channels),
    )
    positions = np.stack([radius * np.cos(turn), radius * np.sin(turn)], axis=1)
    strength = np.ones(n_channels)
    if focus is not None:
        strength = np.exp(-((positions - focus) ** 2).sum(1) / (2 * 0.5**2))
    draw, signal = rng(seed, "simulated eeg"), 0.0
    for name, values in sources.items():
        x = np.asarray(values, dtype=np.float64).reshape(len(values), -1)
        require(
            len(x) == len(ids),
            DataError,
            f"{len(ids)} stimuli in {name!r}",
            len(x),
            "give one id per row",
        )
        spread = x.std(axis=0)
        x = (x - x.mean(axis=0)) / np.where(spread > 1e-12, spread, np.inf)
        pattern = x @ draw.standard_normal((x.shape[1], n_channels))
        pattern /= np.maximum(pattern.std(axis=0), 1e-12)
        signal = signal + (strength * pattern)[:, :, None] * np.exp(
            -((times - latencies[name]) ** 2) / (2 * width**2)
        )
    shape = (len(ids), n_repeats, n_channels, len(times))
    data = signal[:, None] + noise * draw.standard_normal(shape)
    channels = tuple(f"sim{i + 1:02d}" for i in range(n_channels))
    return EEG(
        data.astype(np.float32),
        channels,
        times,
        np.asarray([str(i) for i in ids], dtype=object),
        simulated=True,
        positions=positions,
    )


def simulate_hierarchy(
    layers: Mapping[str, np.ndarray],
    stimuli: StimulusSet,
    splits: Mapping[str, np.ndarray],
    *,
    n_vertices: int = 12,
    share: float = 0.5,
    seed: int = 0,
) -> tuple[Subject, dict[str, float]]:
    """Simulate a subject whose areas respond to the layers of a network, in order.

    Parameters
    ----------
    layers : mapping of str to ndarray, shape (n_stimuli, d)
        Layers in the order of processing.
    stimuli : StimulusSet
        Images, in the order of the rows.
    splits : mapping of str to ndarray of int64
        Rows of "train" and "test".
    n_vertices : int, default 12
        Vertices per area.
    share : float, default 0.5
        Share of the variance that is signal.
    seed : int, default 0
        Seed of the tuning and the noise.

    Returns
    -------
    subject : Subject
        Simulated subject with the areas "area 0", "area 1" and so on.
    distance : dict of str to float
        Distance of each area from the first one in mm: 10 per area (our choice).
    """
    draw, parts = rng(seed, "hierarchy"), []
    for x in layers.values():
        signal = (x - x.mean(0)) @ draw.standard_normal((x.shape[1], n_vertices))
        signal /= signal.std(0)
        noise = draw.standard_normal(signal.shape)
        parts.append(np.sqrt(share) * signal + np.sqrt(1 - share) * noise)
    rois = {
        f"area {k}": np.repeat(np.arange(len(parts)) == k, n_vertices) for k in range(len(parts))
    }
    atlas = Atlas(np.zeros(len(parts) * n_vertices, np.int8), rois, groups={})
    responses = np.hstack(parts).astype(np.float32)
    subject = Subject("hierarchy", stimuli, responses, atlas, dict(splits), kind="simulated")
    return subject, {name: 10.0 * k for k, name in enumerate(rois)}
