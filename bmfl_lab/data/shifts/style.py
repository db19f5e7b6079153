"""Stylised images: the shapes of a photograph with the colours and textures of something else."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

from bmfl_lab.data.shifts.table import SHIFTS, smooth, to_uint8, unit
from bmfl_lab.errors import ConfigError, DataError, message

STRENGTHS = (0.30, 0.45, 0.60, 0.80, 1.00)


def texture(height: int, width: int, random: np.random.Generator) -> np.ndarray:
    """Draw a texture: warped stripes, blobs and grain in a random palette.

    Parameters
    ----------
    height, width : int
        Size in pixels.
    random : Generator
        Draws orientations, wavelengths, warp, weights and palette.

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
    # Palettes that cover dark to bright: without it a style can be one flat tone.
    stops *= (
        np.linspace(0.15, 1.0, 5)[:, None] / (stops.mean(axis=1, keepdims=True) + 0.15)
    ).astype(np.float32)
    places = np.linspace(0, 1, 5)
    return np.stack(
        [np.interp(rank, places, np.clip(stops[:, c], 0, 1)) for c in range(3)], axis=-1
    ).astype(np.float32)


def colour_transfer(x: np.ndarray, style: np.ndarray) -> np.ndarray:
    """Give `x` the mean colour and the colour covariance of `style`.

    Parameters
    ----------
    x, style : ndarray, shapes (H, W, 3) and (h, w, 3)
        Images.

    Returns
    -------
    ndarray, shape (H, W, 3)

    References
    ----------
    The linear map between two covariances is that of optimal transport between Gaussians: Pitie &
    Kokaram 2007.
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
    x, style : ndarray, shape (H, W, 3)
        Images.
    strength : float
        Share of the style's amplitude, 0 to 1.

    References
    ----------
    Xu et al. 2021, "A Fourier-based framework for domain generalization" (amplitude mix).
    """
    a, b = np.fft.rfft2(x, axes=(0, 1)), np.fft.rfft2(style, axes=(0, 1))
    mixed = ((1 - strength) * np.abs(a) + strength * np.abs(b)) * np.exp(1j * np.angle(a))
    return np.fft.irfft2(mixed, s=x.shape[:2], axes=(0, 1)).astype(x.dtype)


def mix_statistics(x: np.ndarray, style: np.ndarray, strength: float) -> np.ndarray:
    """Replace the statistics of each spatial scale of `x` by those of `style`.

    The image is split into octave bands. Fine bands keep where the image has its edges, take the
    style's contrast, and get the style's own pattern wherever the image is smooth; the coarse rest
    takes the style's colour covariance.

    Parameters
    ----------
    x, style : ndarray, shape (H, W, 3)
        Images.
    strength : float
        0 leaves the image as it is; 1 is the full change.
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
    content, style : ndarray, shapes (C, H, W) and (C, h, w)
        Feature maps of one encoder.
    eps : float, default 1e-5
        Added to the variances.

    Returns
    -------
    ndarray, shape (C, H, W)

    References
    ----------
    Huang & Belongie 2017, "Arbitrary style transfer in real-time with adaptive instance
    normalization".
    """
    if content.shape[0] != style.shape[0]:
        raise DataError(
            message(
                "feature maps with the same channels",
                f"{content.shape} and {style.shape}",
                "use one encoder",
            )
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
        The image.
    severity : int
        Sets the strength: 0.30, 0.45, 0.60, 0.80, 1.00.
    random : Generator
        Draws the style where none is given.
    form : {"statistics", "amplitude", "adain"}, default "statistics"
        See `mix_statistics`, `mix_amplitude`, `adain`.
    style : ndarray of uint8, shape (H, W, 3), optional
        A style image of the same size; default a texture drawn for this image (see `texture`).
    encoder, decoder : callable, for form "adain"
        ``encoder(x (H, W, 3) in [0, 1]) -> features (C, h, w)`` and back.
    encoder_name : str, for form "adain"
        Name of the pair; becomes part of image digests.

    Raises
    ------
    ConfigError
        If `form` is unknown, or "adain" without encoder and decoder.
    DataError
        If the style has another size.

    Notes
    -----
    Stylized-ImageNet uses AdaIN with 79,395 paintings, which nobody may ship. The two other forms
    and the drawn styles are our choice and need no outside image; do not read their numbers as
    Stylized-ImageNet.
    """
    strength, x = STRENGTHS[severity - 1], unit(image)
    if style is not None and np.shape(style) != image.shape:
        raise DataError(
            message(
                f"a style of shape {image.shape}", str(np.shape(style)), "resize the style image"
            )
        )
    other = texture(*image.shape[:2], random) if style is None else unit(np.asarray(style))
    if form == "statistics":
        return to_uint8(mix_statistics(x, other, strength))
    if form == "amplitude":
        return to_uint8(mix_amplitude(x, other, strength))
    if form != "adain":
        raise ConfigError(
            message("form 'statistics', 'amplitude' or 'adain'", repr(form), "choose one of them")
        )
    if encoder is None or decoder is None:
        raise ConfigError(
            message("encoder and decoder for form 'adain'", "none", "pass both as callables")
        )
    content = np.asarray(encoder(x))
    mixed = (1 - strength) * content + strength * adain(content, np.asarray(encoder(other)))
    return to_uint8(np.asarray(decoder(mixed)))
