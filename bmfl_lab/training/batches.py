"""Sources of training batches: memory, the feature store, or images.

All three give the same rows in the same order for the same seed. Memory and store agree to the bit;
images agree with them up to the rounding of the stored type.

Shape suffixes: n stimuli, B batch, P patches, D width, V vertices.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Mapping
from typing import Protocol

import numpy as np
import torch
from torch import Tensor

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, require
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.runtime import rng

_CHUNK = 64 << 20


class Batches(Protocol):
    """Give any rows of a training or validation set as tensors on the device."""

    n: int

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
        self.n, self.seed = n, seed
        self.per_epoch = math.ceil(n / batch_size)
        require(
            n // self.per_epoch >= n_processes,
            ConfigError,
            f"at least {n_processes} stimuli per batch",
            n // self.per_epoch,
            "raise batch_size",
        )
        self._order: tuple[int, np.ndarray] | None = None

    def indices(self, epoch: int, within: int) -> np.ndarray:
        """Return the rows of batch `within` of an epoch, int64 (B,)."""
        if self._order is None or self._order[0] != epoch:
            self._order = (epoch, rng(self.seed, "order", epoch).permutation(self.n))
        order, count = self._order[1], self.per_epoch
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

    Parameters
    ----------
    stimuli : StimulusSet
        Labelled images.
    path : BMFL
        Computes tokens and responses, on its device.

    Notes
    -----
    Images are decoded in this process, one after the other.
    """

    def __init__(self, stimuli: StimulusSet, path: BMFL):
        self.stimuli, self.path, self.n = stimuli, path, len(stimuli)
        self.device = next(path.backbone.parameters()).device

    def take(self, index: np.ndarray) -> dict[str, Tensor]:
        """Return tokens, responses and labels of the images at `index` (B,), and the index."""
        backbone = self.path.backbone
        images = torch.stack([backbone.preprocess(self.stimuli.image(i)) for i in index])
        ids = [str(self.stimuli.ids[i]) for i in index]
        with torch.no_grad():
            batch = self.path.tokens(images.to(self.device))
            response = self.path.respond(batch, ids)
        batch.pop("encoder", None)
        if response is not None:
            batch["response"] = response
        # a clone leaves inference mode, so that the fusion can be trained on it
        batch = {name: value.clone().to(self.device) for name, value in batch.items()}
        batch["label"] = torch.as_tensor(labels_of(self.stimuli)[index]).to(self.device)
        batch["index"] = torch.as_tensor(np.asarray(index)).to(self.device)
        return batch

    def state(self) -> dict[str, str]:
        """Return a digest of images and labels."""
        return {"data": f"images {self.stimuli.fingerprint()}"}


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
        "give every tensor one row per stimulus",
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
