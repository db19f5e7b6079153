"""Stimulus sets: images with ids, labels and content digests, from memory or from files."""

from __future__ import annotations

import functools
import hashlib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path

import numpy as np

from bmfl_lab.data.images import decode_image
from bmfl_lab.errors import DataError, message, normal, require
from bmfl_lab.files import sha256_bytes, sha256_file, system_errors

Image = np.ndarray  # uint8, shape (H, W, 3), RGB


@dataclass(frozen=True)
class StimulusSet:
    """Hold an ordered set of images, each of which is decoded when it is read.

    Parameters
    ----------
    name : str
        Name of the set in records ("test", "clipart").
    ids : ndarray of str, shape (n_stimuli,)
        Unique identifiers, kept in Unicode form NFC. Images are paired with responses and between
        sets by id, never by position.
    read : callable
        ``read(index) -> image``, uint8 RGB of shape (H, W, 3).
    digest_of : callable
        ``digest_of(index) -> str``, a hash of the content of the image that `read` returns.
    labels : ndarray of int64, shape (n_stimuli,)
        Class index, -1 for an unlabelled image.
    class_names : tuple of str, default ()
        Name of each class index, kept in Unicode form NFC.
    paths : tuple of str, optional
        File of each image, shown to users and in messages.
    left_out : mapping of str to int, default {}
        Number of files in the folder of the set that are not images, by kind: a suffix, "folder",
        "hidden", or the name of a system file.
    skip_broken : bool, default False
        Train without the images that cannot be decoded, see `bmfl_lab.training.batches`.

    Raises
    ------
    DataError
        If lengths differ, ids repeat, or a label lies outside the classes.
    """

    name: str
    ids: np.ndarray
    read: Callable[[int], Image]
    digest_of: Callable[[int], str]
    labels: np.ndarray
    class_names: tuple[str, ...] = ()
    paths: tuple[str, ...] | None = None
    left_out: Mapping[str, int] = field(default_factory=dict)
    skip_broken: bool = False

    def __post_init__(self) -> None:
        n = len(self.ids)
        # the forms in which a system stored them are gone from here on; see `normal`
        if any(normal(i) != str(i) for i in self.ids):
            object.__setattr__(self, "ids", np.asarray(list(map(normal, self.ids)), dtype=object))
        object.__setattr__(self, "class_names", tuple(map(normal, self.class_names)))
        require(
            np.shape(self.labels) == (n,),
            DataError,
            f"{n} labels, one per image of {self.name!r}",
            f"shape {np.shape(self.labels)}",
            "give one label per image, -1 for an unlabelled one",
        )
        if len(set(map(str, self.ids))) != n:
            values, counts = np.unique(np.asarray(self.ids, dtype=str), return_counts=True)
            raise DataError(
                message(
                    f"unique stimulus ids in {self.name!r}",
                    f"{str(values[counts > 1][0])!r} more than once",
                    "make the ids unique",
                )
            )
        labels = np.asarray(self.labels)
        low, high = (labels.min(), labels.max()) if n else (0, -1)
        too_high = len(self.class_names) and high >= len(self.class_names)
        require(
            labels.dtype.kind in "iu" and low >= -1 and not too_high,
            DataError,
            f"integer labels from -1 to {len(self.class_names) - 1} in {self.name!r}",
            f"{labels.dtype} values {low}..{high}",
            "replace each label by its class index",
        )

    def __len__(self) -> int:
        return len(self.ids)

    def __repr__(self) -> str:
        return (
            f"StimulusSet({self.name!r}, n_stimuli={len(self)}, n_classes={len(self.class_names)})"
        )

    def image(self, index: int) -> Image:
        """Return one image.

        Parameters
        ----------
        index : int
            Position in the set.

        Returns
        -------
        ndarray of uint8, shape (H, W, 3)
            RGB.

        Raises
        ------
        DataError
            If the image cannot be read, or is not uint8 RGB.
        """
        found = self.read(int(index))
        require(
            found.dtype == np.uint8 and found.ndim == 3 and found.shape[2] == 3,
            DataError,
            "a uint8 image of shape (H, W, 3)",
            f"{found.dtype} {found.shape} for {self.ids[index]!r}",
            "convert it to 8-bit RGB",
        )
        return found

    def digests(self) -> list[str]:
        """Return the content digest of every image, in the order of the set."""
        return [self.digest_of(i) for i in range(len(self))]

    def fingerprint(self) -> str:
        """Return 16 hexadecimal digits that change with any id, label or pixel."""
        h = hashlib.sha256()
        for i, (identifier, label) in enumerate(zip(self.ids, self.labels)):
            h.update(f"{identifier}\0{int(label)}\0{self.digest_of(i)}\n".encode())
        return h.hexdigest()[:16]

    def subset(self, index: Sequence[int] | np.ndarray, name: str | None = None) -> StimulusSet:
        """Return some of the images as a set.

        Parameters
        ----------
        index : ndarray of int, shape (n,), or of bool, shape (n_stimuli,)
            Positions, whose order is kept, or a mask.
        name : str, optional
            Name of the new set; by default that of this one.

        Returns
        -------
        StimulusSet
        """
        index = np.asarray(index)
        index = np.flatnonzero(index) if index.dtype == bool else index.astype(np.int64)
        read, digest_of = self.read, self.digest_of
        return replace(
            self,
            name=name or self.name,
            ids=np.asarray(self.ids)[index],
            read=lambda i: read(int(index[i])),
            digest_of=lambda i: digest_of(int(index[i])),
            labels=np.asarray(self.labels)[index],
            paths=None if self.paths is None else tuple(self.paths[i] for i in index),
        )

    def mapped(
        self, function: Callable[[Image, str], Image], key: str, name: str | None = None
    ) -> StimulusSet:
        """Return a set whose images are changed by a function when they are read.

        Parameters
        ----------
        function : callable
            ``function(image, stimulus_id) -> image``, both images uint8 of shape (H, W, 3). It must
            be deterministic.
        key : str
            Name of the change with all its settings, which becomes part of the digests.
        name : str, optional
            Name of the new set; by default "NAME/KEY".

        Returns
        -------
        StimulusSet
        """
        read, digest_of, ids = self.read, self.digest_of, self.ids
        return replace(
            self,
            name=name or f"{self.name}/{key}",
            read=lambda i: function(read(i), str(ids[i])),
            digest_of=lambda i: sha256_bytes(f"{digest_of(i)}|{key}".encode()),
        )

    def index_of(self, ids: Iterable[str]) -> np.ndarray:
        """Return the positions of stimuli.

        Parameters
        ----------
        ids : iterable of str
            Identifiers.

        Returns
        -------
        ndarray of int64, shape (n_ids,)

        Raises
        ------
        DataError
            If an id is not in the set.
        """
        where = {str(s): i for i, s in enumerate(self.ids)}
        wanted = list(map(normal, ids))
        missing = [s for s in wanted if s not in where]
        require(
            not missing,
            DataError,
            f"ids of {self.name!r}",
            f"{missing[:1]}, which it lacks (one of {len(missing)} such ids)",
            f"give ids of the set, such as {list(where)[:2]}",
        )
        return np.asarray([where[s] for s in wanted], dtype=np.int64)


def joined(name: str, sets: Iterable[StimulusSet]) -> StimulusSet:
    """Return the images of several sets as one set without labels.

    Parameters
    ----------
    name : str
        Name of the new set.
    sets : iterable of StimulusSet
        Sets whose ids differ.

    Raises
    ------
    DataError
        If two sets have an id in common.
    """
    places = [(part, i) for part in sets for i in range(len(part))]
    return StimulusSet(
        name=name,
        ids=np.asarray([str(part.ids[i]) for part, i in places], dtype=object),
        read=lambda k: places[k][0].read(places[k][1]),
        digest_of=lambda k: places[k][0].digest_of(places[k][1]),
        labels=np.full(len(places), -1),
    )


def digest_pixels(image: Image) -> str:
    """Return the hexadecimal SHA-256 of an image (H, W, 3), over its shape and pixels."""
    return sha256_bytes(str(image.shape).encode() + np.ascontiguousarray(image).tobytes())


def from_arrays(
    name: str,
    images: np.ndarray,
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str] = (),
) -> StimulusSet:
    """Make a stimulus set of images in memory.

    Parameters
    ----------
    name : str
        Name of the set.
    images : ndarray of uint8, shape (n_stimuli, H, W, 3)
        RGB images. They must not be changed afterwards, because each digest is computed once.
    ids : sequence of str, length n_stimuli
        Unique identifiers.
    labels : sequence of int, length n_stimuli
        Class indices, -1 for an unlabelled image.
    class_names : sequence of str, default ()
        Name of each class index.

    Returns
    -------
    StimulusSet

    Raises
    ------
    DataError
        If the images have another type or shape, or lengths differ.
    """
    images = np.asarray(images)
    require(
        images.dtype == np.uint8
        and images.ndim == 4
        and images.shape[3] == 3
        and len(images) == len(ids),
        DataError,
        f"uint8 images of shape ({len(ids)}, H, W, 3)",
        f"{images.dtype} {images.shape}",
        "convert them to 8-bit RGB, one image per id",
    )

    return StimulusSet(
        name=name,
        ids=np.asarray([str(i) for i in ids], dtype=object),
        read=lambda i: images[i],
        digest_of=functools.cache(lambda i: digest_pixels(images[i])),
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
    )


def from_files(
    name: str,
    paths: Sequence[str | Path],
    ids: Sequence[str],
    labels: Sequence[int] | np.ndarray,
    class_names: Sequence[str] = (),
    *,
    left_out: Mapping[str, int] | None = None,
) -> StimulusSet:
    """Make a stimulus set of image files, decoded by `bmfl_lab.data.images.decode_image`.

    Parameters
    ----------
    name : str
        Name of the set.
    paths : sequence of str or Path, length n_stimuli
        The files. The digest of an image is the SHA-256 of its file, which is computed again only
        if the size or the modification time of the file has changed.
    ids : sequence of str, length n_stimuli
        Unique identifiers.
    labels : sequence of int, length n_stimuli
        Class indices, -1 for an unlabelled image.
    class_names : sequence of str, default ()
        Name of each class index.
    left_out : mapping of str to int, optional
        See `StimulusSet`.

    Returns
    -------
    StimulusSet

    Raises
    ------
    DataError
        If lengths differ or ids repeat; also when an image is read that cannot be decoded.
    """
    paths = [Path(p) for p in paths]
    known: dict[int, tuple[tuple[int, ...], str]] = {}

    def digest_of(i: int) -> str:
        with system_errors(paths[i]):
            status = paths[i].stat()
        stamp = (status.st_ino, status.st_mtime_ns, status.st_size)
        if i not in known or known[i][0] != stamp:
            known[i] = (stamp, sha256_file(paths[i]))
        return known[i][1]

    return StimulusSet(
        name=name,
        ids=np.asarray([str(i) for i in ids], dtype=object),
        read=lambda i: decode_image(paths[i]),
        digest_of=digest_of,
        labels=np.asarray(labels, dtype=np.int64),
        class_names=tuple(class_names),
        paths=tuple(str(p) for p in paths),
        left_out=dict(left_out or {}),
    )
