"""Masked, low light and sketch."""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.shifts.table import SHIFTS, grey, smooth, to_uint8, unit
from bmfl_lab.errors import ConfigError, message

MASK_RATIOS = (0.10, 0.25, 0.50, 0.75, 0.90)
DARKNESS = (0.40, 0.25, 0.15, 0.10, 0.05)

_RGB_TO_XYZ = np.asarray(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# Colour matrices (XYZ to camera) of four cameras, as listed by Brooks et al. (2019).
_XYZ_TO_CAMERA = np.asarray(
    [
        [[1.0234, -0.2969, -0.2266], [-0.5625, 1.6328, -0.0469], [-0.0703, 0.2188, 0.6406]],
        [[0.4913, -0.0541, -0.0202], [-0.6130, 1.3513, 0.2906], [-0.1564, 0.2151, 0.7183]],
        [[0.8380, -0.2630, -0.0639], [-0.2887, 1.0725, 0.2496], [-0.0627, 0.1427, 0.5438]],
        [[0.6596, -0.2079, -0.0562], [-0.4782, 1.3016, 0.1933], [-0.0970, 0.1581, 0.5181]],
    ]
)


@SHIFTS.register("masked")
def masked(
    image: np.ndarray,
    severity: int,
    random: np.random.Generator,
    *,
    patch: float = 1 / 14,
    ratio: float | None = None,
    fill: str = "mean",
) -> np.ndarray:
    """Cover square patches of the image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image.
    severity : int
        Sets the share of patches covered: 0.10, 0.25, 0.50, 0.75, 0.90.
    random : Generator
        Draws which patches, and the noise.
    patch : float, default 1/14
        Side of a patch as a fraction of the shorter side: 16 px at 224 px, 2 px at 32 px.
    ratio : float, optional
        Share of patches covered, instead of the severity's.
    fill : {"mean", "black", "noise"}, default "mean"
        Mean colour of the image, black, or uniform noise.

    Raises
    ------
    ConfigError
        If `fill` is unknown, or `patch` or `ratio` lies outside (0, 1].

    Notes
    -----
    NeuralOOD evaluates on masked images but does not say how they were made; patch, ratios and fill
    are our choice.
    """
    ratio = MASK_RATIOS[severity - 1] if ratio is None else ratio
    if not (0 < ratio <= 1 and 0 < patch <= 1):
        raise ConfigError(
            message("patch and ratio in (0, 1]", f"{patch}, {ratio}", "give fractions")
        )
    height, width = image.shape[:2]
    side = max(1, round(min(height, width) * patch))
    rows, columns = -(-height // side), -(-width // side)
    covered = np.zeros(rows * columns, dtype=bool)
    covered[random.permutation(rows * columns)[: round(ratio * rows * columns)]] = True
    cover_HW = np.kron(covered.reshape(rows, columns), np.ones((side, side), dtype=bool))[
        :height, :width
    ]
    fills = {
        "mean": lambda: np.rint(image.mean(axis=(0, 1))).astype(np.uint8),
        "black": lambda: np.zeros(3, dtype=np.uint8),
        "noise": lambda: random.integers(0, 256, size=image.shape, dtype=np.uint8),
    }
    if fill not in fills:
        raise ConfigError(message(f"a fill among {tuple(fills)}", repr(fill), "choose one of them"))
    return np.where(cover_HW[..., None], fills[fill](), image)


def _truncated_normal(
    random: np.random.Generator, mean: float, sd: float, low: float, high: float
) -> float:
    from scipy.stats import truncnorm

    return float(
        truncnorm.ppf(random.random(), (low - mean) / sd, (high - mean) / sd, loc=mean, scale=sd)
    )


def darken_raw(raw: np.ndarray, k: float, random: np.random.Generator) -> np.ndarray:
    """Lower the exposure of a linear sensor image and add the sensor's noise.

    Parameters
    ----------
    raw : ndarray, shape (H, W, 3)
        Linear camera values in [0, 1].
    k : float
        Exposure factor.
    random : Generator
        Draws the noise level, the noise and the bit depth.

    Returns
    -------
    ndarray, shape (H, W, 3)
        ``k raw`` plus normal noise of variance ``k raw shot + read`` plus quantisation noise.

    References
    ----------
    Cui et al. 2021, "Multitask AET with orthogonal tangent regularity for dark object detection";
    noise model of Brooks et al. 2019, "Unprocessing images for learned raw denoising".
    """
    dark = raw * k
    log_shot = random.uniform(np.log(1e-4), np.log(0.012))
    read = np.exp(2.18 * log_shot + 1.20 + random.normal(0, 0.26))
    noisy = dark + random.normal(size=dark.shape) * np.sqrt(dark * np.exp(log_shot) + read)
    step = 1 / (255 * random.choice([12, 14, 16]))
    return noisy + random.uniform(-step, step, size=dark.shape)


def _physical(x: np.ndarray, k: float, random: np.random.Generator) -> np.ndarray:
    linear = 0.5 - np.sin(np.arcsin(1 - 2 * x) / 3)
    gamma = random.uniform(2.0, 3.5)
    linear = np.maximum(linear, 1e-8) ** gamma
    camera = _XYZ_TO_CAMERA[random.integers(len(_XYZ_TO_CAMERA))] @ _RGB_TO_XYZ
    camera = camera / camera.sum(axis=1, keepdims=True)
    white = np.asarray([random.uniform(1.9, 2.4), 1.0, random.uniform(1.5, 1.9)])
    gain = random.normal(0.8, 0.1)
    raw = np.clip(linear @ camera.T, 0, 1) * (gain / white)
    dark = darken_raw(np.clip(raw, 0, 1), k, random)
    rgb = np.clip(dark * white, 0, 1) @ np.linalg.inv(camera).T
    return np.clip(rgb, 0, 1) ** (1 / gamma)


@SHIFTS.register("low_light")
def low_light(
    image: np.ndarray, severity: int, random: np.random.Generator, *, form: str = "physical"
) -> np.ndarray:
    """Make the image look as if taken in the dark.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image.
    severity : int
        Sets the mean exposure factor: 0.40, 0.25, 0.15, 0.10, 0.05.
    random : Generator
        Draws camera, gains, exposure and noise.
    form : {"physical", "maet", "gamma"}, default "physical"
        ``physical``: the image is taken back to sensor values (inverse tone curve, gamma, colour
        matrix, white balance), darkened with sensor noise, and developed again; the exposure factor
        is normal about the severity's mean m (sd 0.2 m, cut at m/2 and 2m). ``maet``: the same with
        the published exposure distribution (normal, mean 0.1, sd 0.08, cut to [0.01, 0.4]), the
        same for every severity. ``gamma``: ``m x^1.5`` and normal noise of sd 0.02.

    Raises
    ------
    ConfigError
        If `form` is unknown.

    Notes
    -----
    NeuralOOD does not say how its low-light images were made; the severity ladder and the ``gamma``
    form are our choice. The tone curve is inverted but not applied again, as in the published
    pipeline.

    References
    ----------
    Cui et al. 2021, "Multitask AET with orthogonal tangent regularity for dark object detection".
    """
    x, m = unit(image).astype(np.float64), DARKNESS[severity - 1]
    if form == "physical":
        return to_uint8(_physical(x, _truncated_normal(random, m, 0.2 * m, m / 2, 2 * m), random))
    if form == "maet":
        return to_uint8(_physical(x, _truncated_normal(random, 0.1, 0.08, 0.01, 0.4), random))
    if form == "gamma":
        return to_uint8(m * x**1.5 + random.normal(0, 0.02, size=x.shape))
    raise ConfigError(
        message("form 'physical', 'maet' or 'gamma'", repr(form), "choose one of them")
    )


@SHIFTS.register("sketch")
def sketch(image: np.ndarray, severity: int, random: np.random.Generator) -> np.ndarray:
    """Turn the image into a pencil drawing on white paper.

    Lines are where the grey image is darker than its surround (difference of Gaussians on a log
    scale, so that shaded regions draw as well as bright ones). The severity fades the photograph
    out: share of drawing 0.4, 0.6, 0.8, 0.95,
    1.0, and the pencil's shading fades with it, so that 5 is line art.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        The image.
    severity : int
        1 to 5.
    random : Generator
        Draws the grain of the paper.

    Notes
    -----
    Our own recipe: it resembles sketches but is no replacement for drawings made by people
    (ImageNet-Sketch).
    """
    share = (0.4, 0.6, 0.8, 0.95, 1.0)[severity - 1]
    shading = (0.5, 0.4, 0.25, 0.12, 0.0)[severity - 1]
    x = unit(image)
    width = 0.7 * min(image.shape[:2]) / 224 + 0.45
    luma = np.log(grey(x) + 0.1)
    ridge = smooth(luma, width) - smooth(luma, 2.2 * width)
    contrast = np.sqrt(smooth(ridge**2, 10 * width) + 1e-4) + 0.5 * ridge.std() + 1e-3
    lines = np.clip(1 + 0.75 * np.minimum(ridge / contrast + 0.15, 0), 0, 1)
    tone = 1 - shading * (1 - grey(x))
    grain = smooth(random.normal(size=luma.shape).astype(np.float32), 0.5 * width)
    paper = np.clip(lines * tone * 0.98 + 0.02 * grain, 0, 1)
    return to_uint8((1 - share) * x + share * paper[..., None])
