"""Shifts made here: deterministic changes of an image, five severities each.

``SHIFTS.names()`` lists them: ``masked``, ``low_light``, ``stylised``, ``sketch`` and the 15
corruptions of ImageNet-C under their usual names. What is drawn for an image depends on (stimulus
id, shift, seed) only, never on the order of images or on other shifts; the severities of an image
share their draws, so that they differ by severity alone.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np

# Importing these fills the registry, in the order in which users read the names.
# isort: off
from bmfl_lab.data.shifts import made, style  # noqa: F401
from bmfl_lab.data.shifts import corruptions_noise, corruptions_blur  # noqa: F401
from bmfl_lab.data.shifts import corruptions_weather, corruptions_digital  # noqa: F401

# isort: on
from bmfl_lab.data.shifts.table import SEVERITIES, SHIFTS
from bmfl_lab.data.stimuli import StimulusSet, from_files
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.files import atomic_path, sha256_bytes
from bmfl_lab.runtime import progress, rng

# Part of every image digest: raise it when the pixels of any shift change, so that caches of
# features do not mix.
RECIPE = 4

IMAGENET_C = (
    "gaussian_noise shot_noise impulse_noise defocus_blur glass_blur motion_blur zoom_blur snow frost fog "
    "brightness contrast elastic_transform pixelate jpeg_compression"
).split()

__all__ = ["IMAGENET_C", "SEVERITIES", "SHIFTS", "apply_shift", "materialise", "shifted"]


def _check_severity(severity: int) -> int:
    if isinstance(severity, bool) or severity not in SEVERITIES:
        raise ConfigError(
            message("a severity from 1 to 5", repr(severity), "choose an integer from 1 to 5")
        )
    return int(severity)


def apply_shift(
    image: np.ndarray,
    name: str,
    severity: int,
    seed: int = 0,
    *,
    stimulus_id: str = "",
    **options: Any,
) -> np.ndarray:
    """Apply one shift to one image.

    Parameters
    ----------
    image : ndarray of uint8, shape (H, W, 3)
        RGB image.
    name : str
        One of ``SHIFTS.names()``.
    severity : int
        1 (mild) to 5 (strong).
    seed : int, default 0
        Seed of the random draws.
    stimulus_id : str, optional
        Identifier of the image; images with other ids get independent draws of the same seed.
    **options
        Options of the shift (see its docstring).

    Returns
    -------
    ndarray of uint8, shape (H, W, 3)
        A new image of the same size.

    Raises
    ------
    ConfigError
        If the shift, the severity or an option is unknown.
    DataError
        If the image is not uint8 RGB.
    """
    function, severity = SHIFTS[name], _check_severity(severity)
    image = np.asarray(image)
    if (
        image.dtype != np.uint8
        or image.ndim != 3
        or image.shape[2] != 3
        or min(image.shape[:2]) < 8
    ):
        raise DataError(
            message(
                "a uint8 image of shape (H, W, 3), at least 8 pixels a side",
                f"{image.dtype} {image.shape}",
                "convert it to 8-bit RGB",
            )
        )
    random = rng(seed, "shift", name, stimulus_id)
    try:
        changed = function(image, severity, random, **options)
    except TypeError as error:
        if "unexpected keyword argument" not in str(error):
            raise
        raise ConfigError(
            message(f"an option of shift {name!r}", str(error), "see the docstring of the shift")
        ) from None
    return np.ascontiguousarray(changed)


def shifted(
    stimuli: StimulusSet, name: str, severity: int, seed: int = 0, **options: Any
) -> StimulusSet:
    """Return a stimulus set whose images are shifted when they are read.

    Parameters
    ----------
    stimuli : StimulusSet
        The clean images; ids and labels stay.
    name, severity, seed, **options
        As in `apply_shift`; the draws of an image depend on its id.

    Raises
    ------
    ConfigError
        If the shift or the severity is unknown, or an option cannot be written into the image
        digests.
    """
    SHIFTS[name]
    severity = _check_severity(severity)
    told = {k: v for k, v in options.items() if not callable(v)}
    if len(told) < len(options) and "encoder_name" not in options:
        raise ConfigError(
            message(
                "encoder_name beside a callable option",
                f"{sorted(options)}",
                "name the encoder, e.g. 'vgg19-relu4_1'",
            )
        )
    extra = "".join(f",{k}={told[k]!r}" for k in sorted(told))
    return stimuli.mapped(
        lambda image, identifier: apply_shift(
            image, name, severity, seed, stimulus_id=identifier, **options
        ),
        key=f"{name}-{severity}-seed{int(seed)}-recipe{RECIPE}{extra}",
        name=f"{stimuli.name}/{name}-{severity}",
    )


def materialise(stimuli: StimulusSet, folder: str | Path) -> StimulusSet:
    """Write the images of a set as PNG files once, and return the set that reads them.

    Files that are there already are kept: an interrupted call goes on where it stopped. A file is
    named by the digest of its image, so that two sets can share a folder.

    Parameters
    ----------
    stimuli : StimulusSet
        For instance the result of `shifted`.
    folder : str or Path
        Where the files go.
    """
    from PIL import Image

    paths = []
    for i in progress(range(len(stimuli)), f"{stimuli.name}: images written"):
        path = Path(folder) / f"{sha256_bytes(stimuli.digest_of(i).encode())[:24]}.png"
        if not path.is_file():
            with atomic_path(path) as temporary:
                Image.fromarray(stimuli.image(i)).save(temporary, format="PNG")
        paths.append(path)
    return from_files(stimuli.name, paths, stimuli.ids, stimuli.labels, stimuli.class_names)
