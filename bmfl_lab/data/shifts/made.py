"""The four shifts made for this project: masked, low light, sketch and stylised.

NeuralOOD evaluates on masked, low-light and stylised images and on drawings, but does not publish
how the masked and low-light images were made. The recipes here are our choice, except where a
reference is given.

References
----------
Zhao et al. (2024), NeuralOOD, arXiv:2408.14950.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bmfl_lab.data.shifts.table import SHIFTS, grey, smooth, to_uint8, unit
from bmfl_lab.errors import ConfigError, DataError, message, require

MASK_RATIOS = (0.10, 0.25, 0.50, 0.75, 0.90)
DARKNESS = (0.40, 0.25, 0.15, 0.10, 0.05)
STRENGTHS = (0.30, 0.45, 0.60, 0.80, 1.00)

_RGB_TO_XYZ = np.asarray(
    [
        [0.4124564, 0.3575761, 0.1804375],
        [0.2126729, 0.7151522, 0.0721750],
        [0.0193339, 0.1191920, 0.9503041],
    ]
)
# colour matrices (XYZ to camera) of four cameras, as listed by Brooks et al. (2019)
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
        RGB image.
    severity : int
        1 to 5; sets the share of covered patches to 0.10, 0.25, 0.50, 0.75 or 0.90.
    random : numpy.random.Generator
        Generator that draws the covered patches and the noise.
    patch : float, default 1/14
        Side of a patch as a fraction of the shorter side: 16 px at 224 px, 2 px at 32 px.
    ratio : float, optional
        Share of covered patches, instead of the one that `severity` sets.
    fill : {"mean", "black", "noise"}, default "mean"
        Content of the covered patches: the mean colour of the image, black, or uniform noise.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ConfigError
        If `fill` is unknown, or `patch` or `ratio` lies outside (0, 1].

    Notes
    -----
    NeuralOOD does not say how its masked images were made; patch size, shares and fill are our
    choice.
    """
    ratio = MASK_RATIOS[severity - 1] if ratio is None else ratio
    require(
        0 < ratio <= 1 and 0 < patch <= 1,
        ConfigError,
        "patch and ratio in (0, 1]",
        f"{patch}, {ratio}",
        "give both as fractions",
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
    require(
        fill in fills, ConfigError, f"a fill among {tuple(fills)}", repr(fill), "choose one of them"
    )
    return np.where(cover_HW[..., None], fills[fill](), image)


def _truncated_normal(
    random: np.random.Generator, mean: float, sd: float, low: float, high: float
) -> float:
    """Draw one value of a normal distribution that is cut to [low, high]."""
    from scipy.stats import truncnorm

    return float(
        truncnorm.ppf(random.random(), (low - mean) / sd, (high - mean) / sd, loc=mean, scale=sd)
    )


def darken_raw(raw: np.ndarray, k: float, random: np.random.Generator) -> np.ndarray:
    """Lower the exposure of a linear sensor image and add the sensor's noise.

    Parameters
    ----------
    raw : ndarray of float64, shape (H, W, 3)
        Linear camera values in [0, 1].
    k : float
        Exposure factor.
    random : numpy.random.Generator
        Generator that draws the noise level, the noise and the bit depth.

    Returns
    -------
    ndarray of float64, shape (H, W, 3)
        ``k raw`` plus normal noise of variance ``k raw shot + read`` plus quantisation noise.

    References
    ----------
    Cui et al. (2021), Multitask AET with orthogonal tangent regularity for dark object detection,
    ICCV, with the ranges of the released code (MAET). The noise model is that of Brooks et al.
    (2019), Unprocessing images for learned raw denoising, CVPR.
    """
    dark = raw * k
    log_shot = random.uniform(np.log(1e-4), np.log(0.012))
    read = np.exp(2.18 * log_shot + 1.20 + random.normal(0, 0.26))
    noisy = dark + random.normal(size=dark.shape) * np.sqrt(dark * np.exp(log_shot) + read)
    step = 1 / (255 * random.choice([12, 14, 16]))
    return noisy + random.uniform(-step, step, size=dark.shape)


def _physical(x: np.ndarray, k: float, random: np.random.Generator) -> np.ndarray:
    """Undo the camera's processing of an image (H, W, 3), darken its raw values, and develop it."""
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
        RGB image.
    severity : int
        1 to 5; sets the mean exposure factor m to 0.40, 0.25, 0.15, 0.10 or 0.05.
    random : numpy.random.Generator
        Generator that draws camera, gains, exposure and noise.
    form : {"physical", "maet", "gamma"}, default "physical"
        ``physical`` converts the image back to sensor values (inverse tone curve, gamma, colour
        matrix and white balance), darkens them with sensor noise, and develops them again; the
        exposure factor is normal with mean m and standard deviation 0.2 m, cut to [m/2, 2m].
        ``maet`` does the same with the published exposure distribution (normal with mean 0.1 and
        standard deviation 0.08, cut to [0.01, 0.4]) at every severity. ``gamma`` computes
        ``m x^1.5`` and adds normal noise with standard deviation 0.02.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ConfigError
        If `form` is unknown.

    Notes
    -----
    NeuralOOD does not say how its low-light images were made. The exposure factor per severity and
    the ``gamma`` form are our choice. The tone curve is inverted but not applied again, as in the
    published pipeline.

    References
    ----------
    Cui et al. (2021), Multitask AET with orthogonal tangent regularity for dark object detection,
    ICCV: the steps and ranges of ``physical`` and ``maet``.
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

    Lines are drawn where the grey image is darker than its surround, measured by a difference of
    Gaussians on a logarithmic scale, so that shaded regions yield lines as well as bright ones.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 to 5; sets the share of the drawing to 0.4, 0.6, 0.8, 0.95 or 1.0 (the rest is the
        photograph) and lowers the pencil's shading, so that 5 is line art.
    random : numpy.random.Generator
        Generator that draws the grain of the paper.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Notes
    -----
    The recipe is our choice. It resembles sketches but does not replace drawings made by people
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


def texture(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Draw a texture: warped stripes, blobs and grain in a random palette.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    random : numpy.random.Generator
        Generator that draws orientations, warp, weights and palette.

    Returns
    -------
    ndarray of float32, shape (height, width, 3)
        Values in [0, 1].
    """
    side = min(height, width)
    yy, xx = np.mgrid[:height, :width].astype(np.float32) / side
    field = np.zeros((height, width), dtype=np.float32)
    for wavelength in np.maximum((0.30, 0.13, 0.07), 5 / side):
        warp = smooth(
            random.normal(size=(height, width)).astype(np.float32), 0.5 * wavelength * side
        )
        warp *= random.uniform(0.5, 2.0) / (warp.std() + 1e-6)
        angle, stripes = random.uniform(0, np.pi), random.uniform(0.3, 1.0)
        wave = np.sin(
            2 * np.pi / wavelength * (np.cos(angle) * xx + np.sin(angle) * yy) + 1.5 * warp
        )
        field += stripes * wave + (1 - stripes) * warp
    field += 0.15 * random.normal(size=field.shape).astype(np.float32)
    rank = np.clip((field - field.mean()) / (4 * field.std() + 1e-6) + 0.5, 0, 1)
    stops = random.random((5, 3)).astype(np.float32)
    # every palette runs from dark to bright, because otherwise a style can be one flat tone
    stops *= (
        np.linspace(0.15, 1.0, 5)[:, None] / (stops.mean(axis=1, keepdims=True) + 0.15)
    ).astype(np.float32)
    places = np.linspace(0, 1, 5)
    return np.stack(
        [np.interp(rank, places, np.clip(stops[:, c], 0, 1)) for c in range(3)], axis=-1
    ).astype(np.float32)


def colour_transfer(x: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Give an image the mean colour and the colour covariance of another.

    Parameters
    ----------
    x : ndarray of float, shape (H, W, 3)
        The image.
    style : ndarray of float, shape (h, w, 3)
        The image whose colours are taken.

    Returns
    -------
    ndarray, shape (H, W, 3), of the type of `x`

    References
    ----------
    Pitie & Kokaram (2007), The linear Monge-Kantorovitch linear colour mapping for example-based
    colour transfer: the linear map between two covariances is that of optimal transport between
    Gaussians.
    """
    flat, other = x.reshape(-1, 3).astype(np.float64), style.reshape(-1, 3).astype(np.float64)
    a = np.cov(flat.T) + 1e-5 * np.eye(3)
    b = np.cov(other.T) + 1e-5 * np.eye(3)

    def root(m: np.ndarray, power: float) -> np.ndarray:
        values, vectors = np.linalg.eigh(m)
        return (vectors * np.maximum(values, 1e-12) ** power) @ vectors.T

    half = root(a, 0.5)
    back = root(a, -0.5)
    gain = back @ root(half @ b @ half, 0.5) @ back
    return (
        ((flat - flat.mean(axis=0)) @ gain.T + other.mean(axis=0)).reshape(x.shape).astype(x.dtype)
    )


def mix_amplitude(x: np.ndarray, style: np.ndarray, strength: float) -> np.ndarray:
    """Mix the Fourier amplitudes of two images of one size and keep the phases of the first.

    Parameters
    ----------
    x, style : ndarray of float, shape (H, W, 3)
        The image, and the image whose amplitudes are mixed in.
    strength : float
        Share of the style's amplitudes, 0 to 1.

    Returns
    -------
    ndarray, shape (H, W, 3), of the type of `x`

    References
    ----------
    Xu et al. (2021), A Fourier-based framework for domain generalization, CVPR (amplitude mix).
    """
    a, b = np.fft.rfft2(x, axes=(0, 1)), np.fft.rfft2(style, axes=(0, 1))
    mixed = ((1 - strength) * np.abs(a) + strength * np.abs(b)) * np.exp(1j * np.angle(a))
    return np.fft.irfft2(mixed, s=x.shape[:2], axes=(0, 1)).astype(x.dtype)


def mix_statistics(x: np.ndarray, style: np.ndarray, strength: float) -> np.ndarray:
    """Replace the statistics of each spatial scale of `x` by those of `style`.

    The image is split into octave bands. The fine bands keep the edges of the image, take the
    contrast of the style, and receive the style's own pattern where the image is smooth. The coarse
    remainder takes the style's colour covariance.

    Parameters
    ----------
    x, style : ndarray of float32, shape (H, W, 3)
        The image, and the image whose statistics are taken.
    strength : float
        0 leaves the image as it is; 1 is the full change.

    Returns
    -------
    ndarray of float32, shape (H, W, 3)

    Notes
    -----
    The recipe is our choice.
    """
    side = min(x.shape[:2])
    low_x, low_s, out = x, style, np.zeros_like(x)
    for sigma in (side / 112, side / 56, side / 28, side / 14):
        next_x, next_s = smooth(low_x, sigma), smooth(low_s, sigma)
        band_x, band_s = low_x - next_x, low_s - next_s
        size = np.sqrt(smooth((band_x**2).mean(axis=2, keepdims=True), 2 * sigma).clip(0)) + 1e-3
        edge = size / (size + size.mean())
        level = band_s.std() + 1e-4
        new = band_x / (band_x.std() + 1e-2) * max(level, 0.03) + 2 * (1 - edge) * band_s
        out += (1 - strength) * band_x + strength * new
        low_x, low_s = next_x, next_s
    return out + (1 - strength) * low_x + strength * colour_transfer(low_x, style)


def adain(content: np.ndarray, style: np.ndarray, eps: float = 1e-5) -> np.ndarray:
    """Give feature maps the channel means and standard deviations of other feature maps.

    Parameters
    ----------
    content : ndarray of float, shape (C, H, W)
        Feature maps that are changed.
    style : ndarray of float, shape (C, h, w)
        Feature maps of the same encoder whose moments are taken.
    eps : float, default 1e-5
        Added to the variances.

    Returns
    -------
    ndarray, shape (C, H, W)

    Raises
    ------
    DataError
        If the numbers of channels differ.

    References
    ----------
    Huang & Belongie (2017), Arbitrary style transfer in real-time with adaptive instance
    normalization, ICCV.
    """
    require(
        content.shape[0] == style.shape[0],
        DataError,
        "feature maps with the same channels",
        f"{content.shape} and {style.shape}",
        "compute both with the same encoder",
    )

    def moments(f: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        return f.mean(axis=(1, 2), keepdims=True), np.sqrt(f.var(axis=(1, 2), keepdims=True) + eps)

    (mean_c, sd_c), (mean_s, sd_s) = moments(content), moments(style)
    return (content - mean_c) / sd_c * sd_s + mean_s


@SHIFTS.register("stylised")
def stylised(
    image: np.ndarray,
    severity: int,
    random: np.random.Generator,
    *,
    form: str = "statistics",
    style: np.ndarray | None = None,
    encoder: Callable | None = None,
    decoder: Callable | None = None,
    encoder_name: str = "",
) -> np.ndarray:
    """Give the image the texture and colours of a style.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    severity : int
        1 to 5; sets the strength to 0.30, 0.45, 0.60, 0.80 or 1.00.
    random : numpy.random.Generator
        Generator that draws the style if none is given.
    form : {"statistics", "amplitude", "adain"}, default "statistics"
        See `mix_statistics`, `mix_amplitude`, `adain`.
    style : ndarray of uint8, shape (H, W, 3), optional
        A style image of the same size; by default a texture drawn for this image (see `texture`).
    encoder, decoder : callable, optional
        Needed for form "adain": ``encoder(x (H, W, 3) in [0, 1]) -> features (C, h, w)``, and
        ``decoder(features) -> x``.
    encoder_name : str, optional
        Name of the encoder and decoder, which becomes part of the image digests.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)

    Raises
    ------
    ConfigError
        If `form` is unknown, or "adain" without encoder and decoder.
    DataError
        If the style has another size.

    Notes
    -----
    Stylized-ImageNet was made with AdaIN and 79,395 paintings, which may not be redistributed. The
    forms "statistics" and "amplitude", the drawn styles and the strengths are our choice and need
    no outside image. Their results are not comparable with those on Stylized-ImageNet.

    References
    ----------
    Geirhos et al. (2019), ImageNet-trained CNNs are biased towards texture, ICLR, arXiv:1811.12231.
    """
    strength, x = STRENGTHS[severity - 1], unit(image)
    require(
        style is None or np.shape(style) == image.shape,
        DataError,
        f"a style of shape {image.shape}",
        np.shape(style),
        "resize the style image",
    )
    other = texture(*image.shape[:2], random) if style is None else unit(np.asarray(style))
    if form == "statistics":
        return to_uint8(mix_statistics(x, other, strength))
    if form == "amplitude":
        return to_uint8(mix_amplitude(x, other, strength))
    require(
        form == "adain",
        ConfigError,
        "form 'statistics', 'amplitude' or 'adain'",
        repr(form),
        "choose one of them",
    )
    require(
        encoder is not None and decoder is not None,
        ConfigError,
        "encoder and decoder for form 'adain'",
        "none",
        "pass both as callables",
    )
    content = np.asarray(encoder(x))
    mixed = (1 - strength) * content + strength * adain(content, np.asarray(encoder(other)))
    return to_uint8(np.asarray(decoder(mixed)))
