"""Sources of training batches: memory, the feature store, or images.

All three give the same rows in the same order for the same seed. Memory and store agree to the bit;
images agree with them up to the rounding of the stored type, unless they are augmented.

Shape suffixes: n stimuli, B batch, P patches, D width, V vertices, S side of an image in pixels.
"""

from __future__ import annotations

import functools
import hashlib
import itertools
import math
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from typing import Protocol, get_args

import numpy as np
import torch
from torch import Tensor
from torch.utils.data import DataLoader, Dataset

from bmfl_lab.backbones.protocol import Preprocess
from bmfl_lab.backbones.tokens import load_input
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, FileError, require, require_known, translated
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.build import Augment
from bmfl_lab.runtime import end_with_parent, rng, use_bfloat16

Plan = Iterable[tuple[int, np.ndarray]]
"""Epoch and rows (B,) of batches, in the order in which they will be taken."""
Loaded = tuple[np.ndarray, np.ndarray | None]
"""Which images of a task are readable, bool (n,), and their pixels, None if none is."""

_CHUNK = 64 << 20
_IMAGES_PER_TASK = 32
"""Images that a worker decodes at a time (our choice): at 224 pixels 5 MB."""
_IMAGES_PER_WORKER = 512
"""Images that are worth the start of a worker (our choice)."""
_MAX_WORKERS = 16


class Batches(Protocol):
    """Give any rows of a training or validation set as tensors on the device."""

    n: int

    def expect(self, plan: Plan) -> None:
        """Learn which rows will be taken next, so that they can be loaded ahead.

        An empty plan ends what was begun for an earlier one.
        """
        ...

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return the rows at `index` (B,) on the device, and the index itself as ``"index"``."""
        ...

    def state(self) -> dict[str, str]:
        """Return what must be the same for a training to be resumed with these data."""
        ...


class Order:
    """Decide which rows each training step reads, from seed and epoch alone.

    Parameters
    ----------
    n : int
        Number of stimuli.
    batch_size : int
        Largest number of stimuli per step.
    seed : int
        Seed of the order.
    n_processes : int, default 1
        Each step must have a stimulus for every process.

    Raises
    ------
    ConfigError
        If a batch has fewer stimuli than there are processes.
    """

    def __init__(self, n: int, batch_size: int, seed: int, n_processes: int = 1):
        self.n = n
        self.per_epoch = math.ceil(n / batch_size)
        require(
            n // self.per_epoch >= n_processes,
            ConfigError,
            f"at least {n_processes} stimuli per batch",
            n // self.per_epoch,
            f"set batch_size={math.ceil(n / (n // n_processes))} or more"
            if n >= n_processes
            else f"start {n} processes or fewer",
        )
        # two epochs: the images of the next one are loaded while this one ends
        self._permute = functools.lru_cache(maxsize=2)(
            lambda epoch: rng(seed, "order", epoch).permutation(n)
        )

    def indices(self, epoch: int, within: int) -> np.ndarray:
        """Return the rows of batch `within` of an epoch, int64 (B,)."""
        order, count = self._permute(epoch), self.per_epoch
        return order[within * self.n // count : (within + 1) * self.n // count]


class StoreBatches:
    """Take rows of memory-mapped tokens and responses; no array is copied as a whole.

    Parameters
    ----------
    data : mapping of str to Tensor or ndarray, n stimuli on dimension 0
        Maps of the feature store, mapped responses, and labels; none is called "index".
    device : torch.device
        Device on which the batches are returned.

    Raises
    ------
    ConfigError
        If there are no data, lengths differ, or a name is "index".
    """

    def __init__(self, data: Mapping[str, Tensor | np.ndarray], device: torch.device | str):
        self.data, self.n = _checked(data)
        self.device = torch.device(device)

    def expect(self, plan: Plan) -> None:
        """Do nothing: any row is at hand."""

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return the rows at `index` (B,) on the device, and the index itself as ``"index"``."""
        return _rows(self.data, index, self.device)

    def state(self) -> dict[str, str]:
        """Return a digest of all values, shapes and types."""
        return {"data": fingerprint(self.data)}


class MemoryBatches(StoreBatches):
    """Take rows of tensors in memory, or of arrays of any size that are mapped from files.

    On a GPU the data are moved there at once if they fill less than half of its free memory;
    otherwise the rows of each batch are.

    Parameters
    ----------
    data, device
        See `StoreBatches`.
    """

    def __init__(self, data: Mapping[str, Tensor | np.ndarray], device: torch.device | str):
        super().__init__(data, device)
        if self.device.type == "cuda":
            size = sum(v.nbytes for v in self.data.values())
            if size < torch.cuda.mem_get_info(self.device)[0] // 2:
                self.data = {
                    k: torch.as_tensor(
                        np.array(v) if isinstance(v, np.ndarray) else v, device=self.device
                    )
                    for k, v in self.data.items()
                }


class ImageBatches:
    """Decode the images of each batch, and send them through backbone and encoder.

    Worker processes decode and crop the images of the coming batches. The pixels go to the device
    as uint8 and are normalised there. Memory does not grow with the number of images.

    Parameters
    ----------
    stimuli : StimulusSet
        Labelled images.
    path : BMFL
        Computes tokens and responses, on its device.
    augment : "none" or "crop_flip", default "none"
        "none": the centre of each image, as in evaluation. "crop_flip": a random part, mirrored in
        half of the cases, see `Preprocess.random_crop`.
    seed : int, default 0
        Seed of the augmentation. The random numbers of an image depend on seed, epoch and stimulus
        id alone, not on the number of workers or processes.
    workers : int, optional
        Number of worker processes; 0 decodes in this process. By default one per core, at most 16,
        and at most one per 512 images.
    precision : "auto", "float32" or "bfloat16", default "auto"
        Number type of backbone and encoder, as in `LoopConfig`: bfloat16 autocast only where it
        is faster.

    Raises
    ------
    ConfigError
        If the augmentation is unknown.

    Notes
    -----
    Workers are forked, so that images can be read by any function. Each touches the ids and paths
    of the images that it reads and comes to hold its own copy of these texts.
    """

    def __init__(
        self,
        stimuli: StimulusSet,
        path: BMFL,
        *,
        augment: Augment = "none",
        seed: int = 0,
        workers: int | None = None,
        precision: str = "auto",
    ):
        require_known(augment, get_args(Augment), ConfigError, f"augment among {get_args(Augment)}")
        self.stimuli, self.path, self.n = stimuli, path, len(stimuli)
        self.augment, self.seed, self.precision = augment, seed, precision
        self.workers = default_workers(self.n) if workers is None else workers
        self.device = path.backbone.device
        self.labels = labels_of(stimuli)
        self._pixels = _Pixels(stimuli, path.backbone.preprocess, augment, seed)
        self._planned: Iterator[tuple[int, np.ndarray]] = iter(())
        self._next: tuple[int, np.ndarray] | None = None
        self._loaded: Iterator[Loaded | DataError] = iter(())
        self._held: tuple[int, np.ndarray, np.ndarray, Tensor] | None = None
        self._skipped: set[int] = set()

    def expect(self, plan: Plan) -> None:
        """Let the workers decode the images of coming batches."""
        self._planned, ahead = itertools.tee(plan)
        self._next, self._held = next(self._planned, None), None
        self._loaded = iter(())  # ends the workers of an earlier plan
        if self._next is None:
            return
        self._loaded = iter(
            DataLoader(
                self._pixels,
                batch_sampler=_tasks(ahead),
                num_workers=self.workers,
                collate_fn=functools.partial(_stack, skips=self.stimuli.skip_broken),
                multiprocessing_context="fork" if self.workers else None,
                worker_init_fn=lambda worker: end_with_parent(),
                # without one the loader draws from the global generator
                generator=torch.Generator(),
            )
        )

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return tokens, responses and labels of the images at `index` (B,), and the index.

        If the set allows it, images that cannot be decoded are left out, also of the index.

        Raises
        ------
        DataError
            If an image cannot be read; the message names it.
        """
        kind = self.device.type
        index, pixels = self._take_pixels(np.asarray(index))
        images_BCHW = self.path.backbone.preprocess.normalise(pixels)
        bfloat16 = use_bfloat16(self.precision, kind)
        with torch.no_grad(), torch.autocast(kind, torch.bfloat16, enabled=bfloat16):
            batch = self.path.tokens(images_BCHW)
            response = self.path.respond(batch, [str(i) for i in self.stimuli.ids[index]])
        batch.pop("encoder", None)
        if response is not None:
            batch["response"] = response.float()
        # a clone leaves inference mode, so that the fusion can be trained on it
        batch = {name: value.clone().to(self.device) for name, value in batch.items()}
        batch["label"] = torch.from_numpy(self.labels[index]).to(self.device)
        batch["index"] = torch.from_numpy(index).to(self.device)
        return batch

    def state(self) -> dict[str, str]:
        """Return a digest of images and labels, and the augmentation."""
        return {"data": f"images {self.stimuli.fingerprint()}", "augment": self.augment}

    def _take_pixels(self, index: np.ndarray) -> tuple[np.ndarray, Tensor]:
        """Return the readable part of `index`, and its pixels, uint8 (B, S, S, 3), on the device.

        They begin the next batch that was planned, or are a later part of it if the batch is
        computed in parts. Any other images are decoded here.
        """
        if self._next is not None and np.array_equal(index, self._next[1][: len(index)]):
            epoch, rows = self._next
            self._held = None
            self._held = epoch, rows, *self._fine(self._load_next() for _ in _cut(rows))
            self._next = next(self._planned, None)
        if self._held is None or not np.isin(index, self._held[1]).all():
            epoch = 0 if self._held is None else self._held[0]
            found = [self._pixels[epoch, i] for i in index]
            rows, skips = index, self.stimuli.skip_broken
            readable, pixels = self._fine([_stack(found, skips)])
        else:
            _, rows, readable, pixels = self._held
        if not np.array_equal(index, rows):
            place = {int(row): k for k, row in enumerate(rows[readable])}
            readable = np.isin(index, rows[readable])
            pixels = pixels[[place[int(i)] for i in index[readable]]]
        if not readable.all():
            self._skip(index[~readable], len(index))
        return index[readable], pixels

    def _load_next(self) -> Loaded | DataError:
        """Return what the next task of the workers has loaded.

        Raises
        ------
        DataError
            If a worker was killed.
        """
        with translated(
            RuntimeError,  # torch names the process and the signal
            expected=f"the processes that decode {self.stimuli.name!r} to stay alive",
            remedy="close other programs if memory ran out, and start again: a training goes on",
        ):
            return next(self._loaded)

    def _skip(self, rows: np.ndarray, n: int) -> None:
        """Name each image that is skipped for the first time.

        Raises
        ------
        DataError
            If these are all n images of a batch.
        """
        name, paths = self.stimuli.name, self.stimuli.paths
        for row in set(map(int, rows)) - self._skipped:
            where = f" ({paths[row]})" if paths is not None else ""
            print(f"{name}: {self.stimuli.ids[row]!r}{where} is broken and skipped", flush=True)
        self._skipped |= set(map(int, rows))
        require(
            len(rows) < n,
            DataError,
            f"a readable image among {n} of {name!r}",
            "broken ones only",
            "repair the files",
        )

    def _fine(self, tasks: Iterable[Loaded | DataError]) -> tuple[np.ndarray, Tensor]:
        """Return which images of a batch are readable, and the pixels of these on the device."""
        readable, pixels = [], []
        for loaded in tasks:
            if isinstance(loaded, DataError):
                self.expect(())  # a traceback would keep the workers
                raise loaded
            readable.append(loaded[0])
            if loaded[1] is not None:
                part = torch.from_numpy(loaded[1])
                part = part.pin_memory() if self.device.type == "cuda" else part
                pixels.append(part.to(self.device, non_blocking=True))
        return np.concatenate(readable), torch.cat(pixels) if pixels else torch.empty(0)


class _Pixels(Dataset):
    """Decode the image of an (epoch, row), and crop it to what the backbone receives."""

    def __init__(self, stimuli: StimulusSet, preprocess: Preprocess, augment: Augment, seed: int):
        self.stimuli, self.preprocess = stimuli, preprocess
        self.augment, self.seed = augment, seed

    def __getitem__(self, place: tuple[int, int]) -> np.ndarray | DataError:
        """Return uint8 (S, S, 3); an error is returned, so that it crosses processes unchanged."""
        epoch, row = place
        prepare = self.preprocess.crop
        if self.augment == "crop_flip":
            generator = rng(self.seed, "augment", epoch, self.stimuli.ids[row])
            prepare = functools.partial(self.preprocess.random_crop, generator=generator)
        try:
            return np.array(load_input(self.stimuli, int(row), prepare))
        except DataError as error:
            return error


def _cut(rows: np.ndarray) -> list[np.ndarray]:
    """Cut the rows of a batch into tasks of one worker each."""
    return np.array_split(rows, math.ceil(len(rows) / _IMAGES_PER_TASK))


def _tasks(plan: Plan) -> Iterator[list[tuple[int, int]]]:
    for epoch, rows in plan:
        for part in _cut(rows):
            yield [(epoch, int(row)) for row in part]


def _stack(items: Sequence[np.ndarray | DataError], skips: bool) -> Loaded | DataError:
    """Return which images are readable, and these as one array; or the first error that stops.

    The array crosses processes through a pipe. Tensors would go through /dev/shm, of which a
    container often has 64 MB.
    """
    images = [i for i in items if not isinstance(i, DataError)]
    errors = [i for i in items if isinstance(i, DataError)]
    for error in errors:
        # what the system refuses, for example too many open files, is no broken image
        if not skips or isinstance(error, FileError):
            return error
    readable = np.array([not isinstance(i, DataError) for i in items])
    return readable, np.stack(images) if images else None


def default_workers(n: int) -> int:
    """Return the number of processes that decode n images, see `ImageBatches`."""
    return min(_MAX_WORKERS, len(os.sched_getaffinity(0)), n // _IMAGES_PER_WORKER)


def sweep(
    batches: Batches, size: int, rank: int = 0, processes: int = 1
) -> Iterator[dict[str, Tensor]]:
    """Yield all rows of a source in order, in batches of at most `size`.

    One of several processes gets every so many of these batches, so that all batches are the same
    with any number of processes.
    """

    def spans() -> Iterator[np.ndarray]:
        for start in range(rank * size, batches.n, processes * size):
            yield np.arange(start, min(start + size, batches.n))

    batches.expect((0, span) for span in spans())
    try:
        for span in spans():
            yield batches.take(span)
    finally:
        batches.expect(())


def labels_of(stimuli: StimulusSet) -> np.ndarray:
    """Return the labels of a stimulus set, int64 (n,)."""
    return np.asarray(stimuli.labels, dtype=np.int64)


def _checked(
    data: Mapping[str, Tensor | np.ndarray],
) -> tuple[dict[str, Tensor | np.ndarray], int]:
    lengths = {k: len(v) for k, v in data.items()}
    require(
        len(set(lengths.values())) == 1 and 0 not in lengths.values() and "index" not in lengths,
        ConfigError,
        "named tensors with the same number (> 0) of stimuli on dimension 0, none called 'index'",
        lengths,
        "give the tensor 'index' another name"
        if "index" in lengths
        else "give every tensor one row per stimulus",
    )
    plain = {k: v if isinstance(v, Tensor) else np.asanyarray(v) for k, v in data.items()}
    return plain, next(iter(lengths.values()))


def _rows(
    data: Mapping[str, Tensor | np.ndarray], index: np.ndarray, device: torch.device
) -> dict[str, Tensor]:
    wanted = torch.from_numpy(np.asarray(index))
    batch = {}
    for name, values in data.items():
        if isinstance(values, Tensor):
            rows = values.index_select(0, wanted.to(values.device))
        else:
            rows = torch.from_numpy(values[index])
        if device.type == "cuda" and rows.device.type == "cpu":
            rows = rows.pin_memory()
        batch[name] = rows.to(device, non_blocking=True)
    batch["index"] = wanted.to(device)
    return batch


def fingerprint(data: Mapping[str, Tensor | np.ndarray]) -> str:
    """Return 16 hexadecimal digits that change with any name, value, shape or type."""
    digest = hashlib.sha256()
    for name in sorted(data):
        values = data[name]
        number = str(values.dtype).removeprefix("torch.")
        digest.update(f"{name} {tuple(values.shape)} {number}\n".encode())
        step = max(1, _CHUNK // max(1, values.nbytes // len(values)))
        for start in range(0, len(values), step):
            rows = values[start : start + step]
            if isinstance(rows, Tensor):
                rows = rows.detach().cpu().contiguous().flatten().view(torch.uint8).numpy()
            digest.update(np.ascontiguousarray(rows).tobytes())
    return digest.hexdigest()[:16]
