"""Write and read a folder of subject 1's true size: seconds, bytes and peak memory.

Run as ``python tests/benchmarks/bench_algonauts.py [FOLDER]``; about 3.5 GB of disk, deleted at the
end.
"""

import os
import resource
import shutil
import sys
import tempfile
import time
from pathlib import Path

import numpy as np

from bmfl_lab.data import algonauts
from bmfl_lab.data.atlas import ALGONAUTS_ROIS, Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet

N, (LEFT, RIGHT) = algonauts.IMAGE_COUNTS["subj01"], algonauts.VERTEX_COUNTS["subj01"]


def make(path: Path) -> Subject:
    rng = np.random.default_rng(0)
    responses = np.lib.format.open_memmap(
        path, mode="w+", dtype=np.float32, shape=(N, LEFT + RIGHT)
    )
    for start in range(0, N, 512):
        responses[start : start + 512] = rng.standard_normal(
            (min(512, N - start), LEFT + RIGHT), dtype=np.float32
        )
    rois = {}
    for names in ALGONAUTS_ROIS.values():
        codes = rng.integers(0, len(names) + 1, LEFT + RIGHT)
        rois.update({name: codes == i + 1 for i, name in enumerate(names)})
    index = np.concatenate([np.sort(rng.permutation(163_842)[:k]) for k in (LEFT, RIGHT)])
    tile = rng.integers(0, 256, (64, 32, 32, 3)).astype(np.uint8)
    return Subject(
        name="subj01",
        stimuli=StimulusSet(
            name="made",
            ids=np.asarray(
                [f"nsd-{i:05d}" for i in np.sort(rng.permutation(73_000)[:N])], dtype=object
            ),
            read=lambda i: tile[i % 64],
            digest_of=str,
            labels=np.full(N, -1),
        ),
        responses=responses,
        atlas=Atlas(
            np.repeat([0, 1], [LEFT, RIGHT]).astype(np.int8),
            rois,
            surface_index=index,
            mesh="fsaverage",
        ),
        splits={"train": np.arange(N)},
    )


def peak() -> float:
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 2**20


def main() -> None:
    base = Path(tempfile.mkdtemp(dir=sys.argv[1] if len(sys.argv) > 1 else None))
    try:
        start = time.perf_counter()
        algonauts.write_subject(base / "subj01", make(base / "made.npy"))
        (base / "made.npy").unlink()
        print(f"made and written: {time.perf_counter() - start:.1f} s")
        for cache in (base / "joined.npy", None):
            pid = os.fork()  # each reading has a peak of its own
            if pid:
                os.waitpid(pid, 0)
                continue
            start, before = time.perf_counter(), peak()
            subject = algonauts.read_subject(base / "subj01", cache=cache)
            row = float(np.abs(subject.responses[::500]).mean())
            print(
                f"read, {'cache on disk' if cache else 'in memory'}: {time.perf_counter() - start:.1f} s, "
                f"peak {peak():.2f} GiB (before {before:.2f}), shape {subject.responses.shape}, mean |z| {row:.4f}",
                flush=True,
            )
            os._exit(0)
    finally:
        shutil.rmtree(base)


if __name__ == "__main__":
    main()
