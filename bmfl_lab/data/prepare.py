"""Write smaller JPEG copies of an image tree, for streaming.

``python -m bmfl_lab.data.prepare SOURCE TARGET`` does it from the command line.
"""

from __future__ import annotations

import argparse
import io
from collections import Counter
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import numpy as np

from bmfl_lab.data.class_folders import list_images
from bmfl_lab.data.images import decode_image
from bmfl_lab.errors import BmflError, DataError, message, require
from bmfl_lab.files import (
    atomic_path,
    link_guard,
    read_json,
    system_errors,
    write_bytes,
    write_json,
)
from bmfl_lab.runtime import progress


def _shrink(source: Path, target: Path, size: int, quality: int) -> str | None:
    try:
        content = smaller_jpeg(decode_image(source), size, quality)
    except BmflError as error:
        return f"{source}: {error}"
    write_bytes(target, content)
    return None


def smaller_jpeg(pixels: np.ndarray, size: int, quality: int) -> bytes:
    """Return an image as JPEG, its shorter side at most `size` pixels.

    Parameters
    ----------
    pixels : ndarray of uint8, shape (H, W, 3)
        RGB.
    size, quality
        See `prepare_images`.
    """
    from PIL import Image

    image, stream = Image.fromarray(pixels), io.BytesIO()
    scale = size / min(image.size)
    if scale < 1:
        wanted = tuple(max(size, round(side * scale)) for side in image.size)
        image = image.resize(wanted, Image.Resampling.BICUBIC)
    image.save(stream, format="JPEG", quality=quality)
    return stream.getvalue()


def prepare_images(
    source: str | Path,
    target: str | Path,
    *,
    size: int = 256,
    quality: int = 95,
    workers: int = 4,
    follow_links: bool = False,
) -> dict[str, int]:
    """Write smaller JPEG copies of an image tree; call again to go on after an interruption.

    Folder and file names stay (the suffix becomes ``.JPEG``), so every reader works on the copies.

    Parameters
    ----------
    source, target : str or Path
        Tree to read and tree to write.
    size : int, default 256
        Shorter side in pixels, bicubic; smaller images keep their size.
    quality : int, default 95
        JPEG quality.
    workers : int, default 4
        Threads.
    follow_links : bool, default False
        Allow files that are links to somewhere outside the source.

    Returns
    -------
    dict
        ``written``, ``kept`` (there already), ``failed``; failures are listed in ``failed.txt`` of
        the target.

    Raises
    ------
    DataError
        If the source is missing, is the target, or holds a link that leads out of it, or the target
        was made with other settings.

    Notes
    -----
    JPEG of quality 95 changes pixels by a few levels: report results on copies as such.
    """
    source, target = Path(source).resolve(), Path(target).resolve()
    require(source.is_dir(), DataError, "a folder of images", f"none at {source}", "check the path")
    require(
        source != target and source not in target.parents,
        DataError,
        "a target outside the source folder",
        f"{source} -> {target}",
        "choose another target",
    )
    settings = {"size": size, "quality": quality, "resample": "bicubic", "source": source.name}
    stamp = target / "prepared.json"
    if stamp.is_file() and read_json(stamp) != settings:
        raise DataError(
            message(
                f"copies made with {settings}",
                f"{read_json(stamp)}",
                "choose an empty target folder",
            )
        )
    write_json(stamp, settings)
    jobs = [
        (path, (target / path.relative_to(source)).with_suffix(".JPEG"))
        for path in list_images(source, link_guard(source, follow_links), Counter(), deep=True)
    ]
    todo = [(a, b) for a, b in jobs if not b.is_file()]
    with ThreadPoolExecutor(max(1, workers)) as pool:
        outcomes = pool.map(lambda job: _shrink(*job, size, quality), todo)
        failed = [o for o in progress(outcomes, "images resized", total=len(todo)) if o]
    if failed:
        with atomic_path(target / "failed.txt") as temporary:
            temporary.write_text("\n".join(failed) + "\n", encoding="utf-8")
    return {
        "written": len(todo) - len(failed),
        "kept": len(jobs) - len(todo),
        "failed": len(failed),
    }


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 1 if an image failed."""
    parser = argparse.ArgumentParser(prog="python -m bmfl_lab.data.prepare", description=__doc__)
    parser.add_argument("source")
    parser.add_argument("target")
    parser.add_argument("--size", type=int, default=256, help="shorter side, pixels")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality")
    parser.add_argument("--workers", type=int, default=4, help="threads")
    parser.add_argument("--follow-links", action="store_true", help="allow links out of SOURCE")
    options = vars(parser.parse_args(arguments))
    try:
        with system_errors(options["target"]):
            counts = prepare_images(options.pop("source"), options.pop("target"), **options)
    except BmflError as error:
        parser.error(str(error))
    print(", ".join(f"{k} {v}" for k, v in counts.items()))
    return 1 if counts["failed"] else 0


if __name__ == "__main__":
    raise SystemExit(main())
