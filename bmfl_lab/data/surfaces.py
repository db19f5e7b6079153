"""fsaverage surfaces: sizes of the meshes, and published maps of the visual cortex on fsaverage5.

FreeSurfer's average surfaces are icosahedra that are subdivided 5 times (fsaverage5), 6 times
(fsaverage6) or 7 times (fsaverage). Each subdivision keeps the existing vertices and appends one at
the middle of each edge, so that the vertices of fsaverage5 are the first 10,242 of fsaverage.

The maps are read from the source archive of neuropythy (AGPL-3.0) at run time; nothing of it is
part of this package.

References
----------
Fischl et al. (1999), High-resolution intersubject averaging and a coordinate system for the
cortical surface, Human Brain Mapping 8:272-284.
Benson, Butt, Brainard & Aguirre (2014), Correction of distortion in flattened representations of
the cortical surface allows prediction of V1-V3 functional organization from anatomy, PLoS Comput
Biol 10:e1003538.
Glasser et al. (2016), A multi-modal parcellation of human cerebral cortex, Nature 536:171-178.
"""

from __future__ import annotations

import numpy as np

from bmfl_lab.data.containers import load_image
from bmfl_lab.data.fetch import fetch_archive, read_members

MESHES = {"fsaverage5": 10_242, "fsaverage6": 40_962, "fsaverage": 163_842}
"""Number of vertices per hemisphere of each mesh."""
PIP = (
    "neuropythy",
    "0.13.0",
    "pip",
    "fafca8ab1c26891e27e4733d63cdc9f57f1bedd0249a47581b0181823de22aaf",
)
_FOLDER = "neuropythy-0.13.0/src/neuropythy/lib/data/fsaverage/surf"
_MAPS = {
    "angle": "benson14_angle.v4_0",
    "eccentricity": "benson14_eccen.v4_0",
    "sigma": "benson14_sigma.v4_0",
    "area": "benson14_varea.v4_0",
    "glasser": "glasser16_atlas.v1_0",
}

BENSON_AREAS = {"V1": 1, "V2": 2, "V3": 3, "hV4": 4}
"""Labels of the retinotopic areas in the template of Benson et al."""
GLASSER_AREAS = {
    "LO": (20, 21, 159),
    "FFC": (18,),
    "PHA": (126, 155, 127),
    "VVC": (163,),
    "PIT": (22,),
}
"""Labels of LO1, LO2, LO3; FFC; PHA1, PHA2, PHA3; VVC; PIT in the parcellation of Glasser et al."""


def read_templates() -> dict[str, dict[str, np.ndarray]]:
    """Return the template maps of both hemispheres on fsaverage5.

    Returns
    -------
    dict of str to dict of str to ndarray of float64, each of shape (10242,)
        ``["left" | "right"]["angle" | "eccentricity" | "sigma" | "area" | "glasser"]``. "angle" is
        the polar angle in degrees from the upper vertical meridian, 0 to 180, in the half of the
        visual field opposite to the hemisphere. "eccentricity" and "sigma", the standard deviation
        of the receptive field, are in degrees. "area" and "glasser" hold the labels of
        `BENSON_AREAS` and `GLASSER_AREAS`.

    Raises
    ------
    FetchError
        If the package cannot be fetched, or is not the pinned one.
    """
    archive = fetch_archive(*PIP, megabytes=20)
    names = {(h, k): f"{_FOLDER}/{h}.{stem}.mgz" for h in ("lh", "rh") for k, stem in _MAPS.items()}
    members = read_members(archive, names.values(), max_bytes=8 << 20)
    found: dict[str, dict[str, np.ndarray]] = {"left": {}, "right": {}}
    for (side, key), member in names.items():
        values = np.squeeze(load_image(member, "a map of receptive fields", members[member]))
        hemisphere = "left" if side == "lh" else "right"
        found[hemisphere][key] = values[: MESHES["fsaverage5"]].astype(np.float64)
    return found
