"""A subject with all ROI classes of the Algonauts 2023 challenge, of any size."""

import numpy as np

from bmfl_lab.data.atlas import ALGONAUTS_ROIS, Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import from_arrays

N, LEFT, RIGHT = 24, 150, 170
NUMBERS = np.random.default_rng(3).permutation(73_000)[:N]


def make_subject(n=N, left=LEFT, right=RIGHT, numbers=NUMBERS):
    rng = np.random.default_rng(0)
    hemisphere = np.repeat([0, 1], [left, right]).astype(np.int8)
    rois = {}
    for kind, names in ALGONAUTS_ROIS.items():
        codes = rng.integers(0, len(names) + 1, left + right)
        codes[codes == 4] = 0 if kind == "floc-bodies" else 4
        rois.update({name: codes == i + 1 for i, name in enumerate(names)})
    index = np.concatenate([np.sort(rng.permutation(163_842)[:k]) for k in (left, right)])
    images = rng.integers(0, 256, (n, 8, 8, 3)).astype(np.uint8)
    return Subject(
        name="own",
        stimuli=from_arrays("own", images, [f"nsd-{i:05d}" for i in numbers], np.full(n, -1)),
        responses=rng.standard_normal((n, left + right)).astype(np.float32),
        atlas=Atlas(hemisphere, rois, surface_index=index, mesh="fsaverage"),
        splits={"train": np.arange(n)},
        noise_ceiling=rng.uniform(0.1, 0.9, left + right).astype(np.float32),
    )
