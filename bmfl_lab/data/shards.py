"""Studies as tar shards in the WebDataset layout, with an index that finds each image by position.

``python -m bmfl_lab.data shards STUDY OUT`` writes them, for file systems that are slow with many
small files. A shard is a plain tar of pairs ``KEY.jpg`` and ``KEY.cls`` (the class index as text),
and beside it lies its index: id, label, place and SHA-256 of each image. `load` reads images by
index, so that orders, subsets and resumed trainings are those of image files.

References
----------
Aizman, Maltby & Breuel (2019), High performance I/O for large scale deep learning,
arXiv:2001.01858 (WebDataset).
"""

from __future__ import annotations

import argparse
import dataclasses
import hashlib
import io
import os
import tarfile
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np

from bmfl_lab.data.images import decode_bytes
from bmfl_lab.data.prepare import smaller_jpeg
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import BackboneSpec, Study, load_study, register_reader
from bmfl_lab.errors import DataError, FileError, require, translated
from bmfl_lab.files import (
    atomic_path,
    link_guard,
    lock,
    read_sealed_json,
    sha256_bytes,
    sha256_file,
    system_errors,
    write_sealed_json,
)
from bmfl_lab.runtime import progress

MANIFEST = "shards.json"
_FORMAT = 1
_HEADER = 512
_COPY = "copy it again, or delete it and make the shards again into the same folder"
_SUFFIXES = {"jpeg": "jpg", "tiff": "tif"}


def write_shards(
    study: Study,
    out: str | Path,
    *,
    size: int = 0,
    quality: int = 95,
    per_shard: int = 1000,
    workers: int = 4,
) -> dict[str, int]:
    """Write the image sets of a study as tar shards; call again to go on after an interruption.

    Parameters
    ----------
    study : Study
        Study with images.
    out : str or Path
        Folder of the shards.
    size : int, default 0
        Shorter side in pixels of JPEG copies; 0 keeps each file as it is. Images without a file
        become PNG, which keeps their pixels.
    quality : int, default 95
        Quality of the JPEG copies.
    per_shard : int, default 1000
        Images per shard.
    workers : int, default 4
        Threads that decode and write copies.

    Returns
    -------
    dict of str to int
        ``written`` and ``kept`` (complete already) shards, and ``broken`` images that were left out
        of them; these are left out only where the study allows it (``skip_broken=True``).

    Raises
    ------
    DataError
        If an image is broken, or the folder holds shards of another study or other settings.
    """
    out = Path(out)
    settings = {"size": size, "quality": quality if size else 0, "per_shard": per_shard}
    require(
        study.sets and size >= 0 and per_shard >= 1,
        DataError,
        "a study with images, a size of 0 or more, and at least one image per shard",
        f"{len(study.sets)} image sets, {settings}",
        "give a study of images, size=0 for files as they are, and per_shard=1 or more",
    )
    manifest = _manifest(study, settings)
    counts = {"written": 0, "kept": 0, "broken": 0}
    with lock(out / ".lock", wait=False, what="the folder of shards"), system_errors(out):
        if (out / MANIFEST).exists():
            require(
                read_sealed_json(out / MANIFEST) == manifest,
                DataError,
                f"shards of this study with these settings in {out}",
                "shards of another study or with other settings",
                "choose an empty folder, or call with what they were made from",
            )
        write_sealed_json(out / MANIFEST, manifest)
        for left in out.glob(".*.tmp"):  # of a maker that was killed
            left.unlink()
        jobs = [
            (stimuli, _tar(out, name, k), range(len(stimuli))[k * per_shard :][:per_shard])
            for name, stimuli in study.sets.items()
            for k in range(manifest["sets"][name]["n_shards"])
        ]
        with ThreadPoolExecutor(max(1, workers)) as pool:
            for stimuli, tar, rows in progress(jobs, "shards", total=len(jobs)):
                try:
                    index = _index(tar)
                    counts["kept"] += 1
                except DataError:
                    index = _write(stimuli, tar, rows, size, quality, pool)
                    counts["written"] += 1
                counts["broken"] += index["broken"]
    return counts


def _manifest(study: Study, settings: dict[str, int]) -> dict[str, Any]:
    """Return what a study's shards are made from, which tells them from those of another one."""
    return {
        "format": _FORMAT,
        "settings": settings,
        "name": study.name,
        "description": study.description,
        "ood": list(study.ood),
        "shifts": [list(shift) for shift in study.shifts],
        "backbone": dataclasses.asdict(study.backbone),
        "licences": dict(study.licences),
        "sets": {
            name: {
                "n_images": len(stimuli),
                "n_shards": -(-len(stimuli) // settings["per_shard"]),
                "class_names": list(stimuli.class_names),
                "images": _named(stimuli),
            }
            for name, stimuli in study.sets.items()
        },
    }


def _named(stimuli: StimulusSet) -> str:
    """Return a hash of ids and labels, for which no image is read."""
    digest = hashlib.sha256()
    for identifier, label in zip(stimuli.ids, stimuli.labels):
        digest.update(f"{identifier}\0{int(label)}\n".encode())
    return digest.hexdigest()


def _tar(out: Path, name: str, shard: int) -> Path:
    return out / f"{name.replace('/', '_')}-{shard:06d}.tar"


def _write(
    stimuli: StimulusSet,
    tar: Path,
    rows: range,
    size: int,
    quality: int,
    pool: ThreadPoolExecutor,
) -> dict[str, Any]:
    """Write a shard and then its index, without which the shard counts as absent."""
    images, broken = [], 0
    with atomic_path(tar) as temporary:
        with tarfile.open(temporary, "w", format=tarfile.USTAR_FORMAT) as archive:
            encoded = pool.map(lambda row: _encoded(stimuli, row, size, quality), rows)
            for row, found in zip(rows, encoded):
                if found is None:
                    broken += 1
                    continue
                content, suffix = found
                label, place = int(stimuli.labels[row]), archive.offset + _HEADER
                digest = sha256_bytes(content)
                images.append([str(stimuli.ids[row]), label, place, len(content), digest])
                for ending, part in ((suffix, content), ("cls", str(label).encode())):
                    # readers group neighbours whose names are the same up to the first dot
                    member = tarfile.TarInfo(f"{row:09d}.{ending}")
                    member.size = len(part)
                    archive.addfile(member, io.BytesIO(part))
        n_bytes, digest = temporary.stat().st_size, sha256_file(temporary)
    about = {"tar": tar.name, "bytes": n_bytes, "sha256": digest}
    write_sealed_json(tar.with_suffix(".json"), about | {"broken": broken, "images": images})
    return _index(tar)


def _encoded(stimuli: StimulusSet, row: int, size: int, quality: int) -> tuple[bytes, str] | None:
    """Return the content of an image file and its ending; None for a broken one that is skipped."""
    from PIL import Image

    path = None if stimuli.paths is None else Path(stimuli.paths[row])
    if not size and path is not None:
        suffix = path.suffix[1:].lower()
        return path.read_bytes(), _SUFFIXES.get(suffix, suffix)
    try:
        pixels = stimuli.image(row)
    except DataError as error:
        if isinstance(error, FileError) or not stimuli.skip_broken:
            raise
        return None
    if size:
        return smaller_jpeg(pixels, size, quality), "jpg"
    stream = io.BytesIO()
    Image.fromarray(pixels).save(stream, format="PNG")
    return stream.getvalue(), "png"


def _index(tar: Path) -> dict[str, Any]:
    """Read the index of a shard.

    Raises
    ------
    DataError
        If there is none, it belongs to another shard, or the shard is missing or cut off.
    """
    path = tar.with_suffix(".json")
    found = read_sealed_json(path)
    names = found.get("tar") if isinstance(found, dict) else None
    require(
        names == tar.name,
        DataError,
        f"the index of {tar.name} in {path}",
        f"that of {names}",
        "copy the right index, or delete this one and make the shards again into the same folder",
    )
    n_bytes = tar.stat().st_size if tar.is_file() else 0
    got = f"{n_bytes} bytes: the shard is missing or cut off"
    require(n_bytes == found["bytes"], DataError, f"{found['bytes']} bytes in {tar}", got, _COPY)
    return found


def detect(path: Path) -> bool:
    """Tell whether a folder holds shards that `write_shards` wrote."""
    return (path / MANIFEST).is_file()


def load(root: str | Path, *, verify: bool = False, follow_links: bool = False) -> Study:
    """Read a study of tar shards.

    Parameters
    ----------
    root : str or Path
        Folder that ``python -m bmfl_lab.data shards`` wrote.
    verify : bool, default False
        Compare each shard with its checksum now, and let `load_study` compare all images of all
        sets by content. The checksum of an image is always compared when the image is read.
    follow_links : bool, default False
        Allow links out of the folder.

    Returns
    -------
    Study
        The sets of the study that the shards were made from, with the same ids in the same order.

    Raises
    ------
    DataError
        If a shard is missing, cut off or damaged, or an index belongs to another shard.
    """
    root = Path(root).expanduser()
    guard = link_guard(root, follow_links)
    found = read_sealed_json(guard(root / MANIFEST))
    with translated(
        *(KeyError, TypeError, ValueError, AttributeError, IndexError),
        expected=f"the table of shards in {root / MANIFEST}",
        remedy=_COPY,
    ):
        sets = {
            name: _read_set(name, about, [guard(p) for p in _tars(root, name, about)], verify)
            for name, about in found["sets"].items()
        }
        return Study(
            name=found["name"],
            description=found["description"],
            sets=sets,
            ood=tuple(found["ood"]),
            shifts=tuple((name, severity) for name, severity in found["shifts"]),
            backbone=BackboneSpec(**found["backbone"]),
            licences=found["licences"],
            extra={"shards": found["settings"]},
        )


def _tars(root: Path, name: str, about: dict[str, Any]) -> Iterator[Path]:
    return (_tar(root, name, k) for k in range(about["n_shards"]))


def _read_set(name: str, about: dict[str, Any], tars: Sequence[Path], verify: bool) -> StimulusSet:
    """Return a set whose images are read out of shards; per image a few numbers are in memory."""
    n = about["n_images"]
    ids, shard = np.empty(n, object), np.empty(n, np.int32)
    labels, place, size = (np.empty(n, np.int64) for _ in range(3))
    digests, done, broken = np.empty((n, 32), np.uint8), 0, 0
    for k, tar in enumerate(progress(tars, f"shards of {name}")):
        index = _index(tar)
        if verify:
            same = sha256_file(tar) == index["sha256"]
            require(same, DataError, f"{tar} as it was written", "another checksum", _COPY)
        broken += index["broken"]
        for identifier, label, start, length, digest in index["images"]:
            ids[done], shard[done] = identifier, k
            labels[done], place[done], size[done] = label, start, length
            digests[done] = np.frombuffer(bytes.fromhex(digest), np.uint8)
            done += 1
    n_found = done + broken
    require(n_found == n, DataError, f"{n} images in the shards of {name!r}", n_found, _COPY)

    def digest_of(i: int) -> str:
        return digests[i].tobytes().hex()

    def read(i: int) -> np.ndarray:
        tar = tars[shard[i]]
        with system_errors(tar), open(tar, "rb") as stream:
            content = os.pread(stream.fileno(), int(size[i]), int(place[i]))
        require(
            sha256_bytes(content) == digest_of(i),
            DataError,
            f"image {ids[i]!r} as it was written in {tar}",
            "another checksum: the shard is damaged or another one",
            _COPY,
        )
        return decode_bytes(content, name=f"{ids[i]} in {tar}")

    return StimulusSet(
        name=name,
        ids=ids[:done],
        read=read,
        digest_of=digest_of,
        labels=labels[:done],
        class_names=tuple(about["class_names"]),
        left_out={"broken": broken} if broken else {},
    )


def main(arguments: Sequence[str]) -> int:
    """Run ``python -m bmfl_lab.data shards``; return 0."""
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.data shards",
        description="write the images of a study as tar shards; run it again to go on",
    )
    parser.add_argument("study", help="study file, folder, or name of a study")
    parser.add_argument("out", help="folder of the shards; itself a study for every notebook")
    parser.add_argument("--size", type=int, default=0, help="shorter side, pixels (0: as it is)")
    parser.add_argument("--quality", type=int, default=95, help="JPEG quality (95)")
    parser.add_argument("--per-shard", type=int, default=1000, help="images per shard (1000)")
    parser.add_argument("--workers", type=int, default=4, help="threads (4)")
    options = vars(parser.parse_args(arguments))
    counts = write_shards(load_study(options.pop("study")), options.pop("out"), **options)
    print(", ".join(f"{k} {v}" for k, v in counts.items()))
    return 0


register_reader("shards", load, detect, layout=f"tar shards with {MANIFEST}")
