"""Shifts made here: deterministic changes of an image at five severities.

``SHIFTS.names()`` lists them: ``masked``, ``low_light``, ``stylised``, ``sketch`` and the 15
corruptions of ImageNet-C under their usual names. The random draws for an image depend on (stimulus
id, shift, seed) only, and not on the order of the images or on other shifts. All severities of an
image use the same draws, so that they differ by severity alone.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

# importing these two fills the registry, in the order in which users read the names
from bmfl_lab.data.shifts import made  # noqa: F401  # isort: skip
from bmfl_lab.data.shifts import corruptions  # isort: skip
from bmfl_lab.data.shifts.table import SEVERITIES, SHIFTS
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.files import sha256_file
from bmfl_lab.runtime import rng

# Part of every image digest. Raise it when the pixels of any shift change, so that features in the
# cache are computed again.
RECIPE = 4

IMAGENET_C = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur "
    "snow frost fog brightness contrast elastic_transform pixelate jpeg_compression"
).split()

DRAWN_FROST = "frost is drawn and not of the published strength"

ShiftOption = str | float | np.ndarray | Callable | None

__all__ = ["IMAGENET_C", "SEVERITIES", "SHIFTS", "apply_shift", "shift_note", "shifted"]


def _check_severity(severity: int) -> int:
    require(
        not isinstance(severity, bool) and severity in SEVERITIES,
        ConfigError,
        "a severity from 1 to 5",
        repr(severity),
        "choose an integer from 1 to 5",
    )
    return int(severity)


def apply_shift(
    image: np.ndarray,
    name: str,
    severity: int,
    seed: int = 0,
    *,
    stimulus_id: str = "",
    **options: ShiftOption,
) -> np.ndarray:
    """Apply one shift to one image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image, at least 8 pixels high and wide.
    name : str
        One of ``SHIFTS.names()``.
    severity : int
        1 (mild) to 5 (strong).
    seed : int, default 0
        Seed of the random draws.
    stimulus_id : str, default ""
        Identifier of the image. Images with different ids get independent draws from one seed.
    **options
        Options of the shift, see the docstring of its function.

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        A new image of the same size.

    Raises
    ------
    ConfigError
        If the shift, the severity or an option is unknown.
    DataError
        If the image is not uint8 RGB, or smaller than 8 pixels.
    """
    function, severity = SHIFTS[name], _check_severity(severity)
    image = np.asarray(image)
    require(
        image.dtype == np.uint8
        and image.ndim == 3
        and image.shape[2] == 3
        and min(image.shape[:2]) >= 8,
        DataError,
        "a uint8 image of shape (H, W, 3) with H and W of at least 8 pixels",
        f"{image.dtype} {image.shape}",
        "convert it to 8-bit RGB, or enlarge it",
    )
    random = rng(seed, "shift", name, stimulus_id)
    try:
        changed = function(image, severity, random, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(
            message(
                f"an option of shift {name!r}",
                str(error),
                f"leave it out, or read help(SHIFTS[{name!r}]) for the options",
            )
        ) from None
    return np.ascontiguousarray(changed)


def shift_note(name: str) -> str:
    """Return what a reader must know about numbers under a shift; empty for all but drawn frost."""
    drawn = name == "frost" and not corruptions.frost_pictures()
    return DRAWN_FROST if drawn else ""


def shifted(
    stimuli: StimulusSet, name: str, severity: int, seed: int = 0, **options: ShiftOption
) -> StimulusSet:
    """Return a stimulus set whose images are shifted when they are read.

    Parameters
    ----------
    stimuli : StimulusSet
        The clean images.
    name : str
        One of ``SHIFTS.names()``.
    severity : int
        1 (mild) to 5 (strong).
    seed : int, default 0
        Seed of the random draws, which also depend on the id of the image.
    **options
        Options of the shift.

    Returns
    -------
    StimulusSet
        The same ids and labels; the digests name the shift with all its settings.

    Raises
    ------
    ConfigError
        If the shift or the severity is unknown, or an option is a callable and no `encoder_name`
        names it in the image digests.
    """
    SHIFTS[name]
    severity = _check_severity(severity)
    named = {k: v for k, v in options.items() if not callable(v)}
    require(
        len(named) >= len(options) or "encoder_name" in options,
        ConfigError,
        "encoder_name beside a callable option",
        f"{sorted(options)}",
        "name the encoder, for example encoder_name='vgg19-relu4_1'",
    )
    settings = "".join(f",{k}={named[k]!r}" for k in sorted(named))
    if name == "frost":
        settings += "".join(f",{sha256_file(p)}" for p in corruptions.frost_pictures())
    return stimuli.mapped(
        lambda image, identifier: apply_shift(
            image, name, severity, seed, stimulus_id=identifier, **options
        ),
        key=f"{name}-{severity}-seed{int(seed)}-recipe{RECIPE}{settings}",
        name=f"{stimuli.name}/{name}-{severity}",
    )
