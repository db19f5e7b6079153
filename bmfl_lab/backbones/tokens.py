"""Tokens of stimuli: computing and reducing them, and the store that keeps them on disk.

Shape suffixes: n stimuli, B batch, P patches, D width, G side of a pooled grid.
"""

from __future__ import annotations

import contextlib
import hashlib
import itertools
import json
import math
import os
import re
import shutil
import weakref
from collections import deque
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import TypeVar

import numpy as np
import torch
import torch.nn.functional as F

from bmfl_lab.backbones.protocol import Backbone, BackboneTokens
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import (
    ConfigError,
    DataError,
    FileError,
    LockedError,
    NumericsError,
    message,
    require,
    translated,
)
from bmfl_lab.files import (
    evict,
    folder_bytes,
    load_npy,
    lock,
    map_new_npy,
    read_json,
    read_sealed_json,
    sha256_bytes,
    sha256_json,
    share,
    sole_user,
    system_errors,
    write_json,
    write_sealed_json,
)
from bmfl_lab.runtime import home, processes, progress, versions

FORMAT = 1
_POOLED = re.compile(r"^pooled:([1-9]\d?)$")
_AHEAD = 2
_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 512
_REMAKE = "delete the folder; its tokens are extracted again at the next call"

T = TypeVar("T")
Shapes = dict[str, tuple[int, ...]]
Identity = dict[str, object]
"""Everything that determines stored tokens, as plain JSON values."""


@dataclass(frozen=True)
class StoredTokens:
    """Tokens of `n` stimuli, in the order of the set.

    Parameters
    ----------
    cls : ndarray, shape (n, D)
        Class tokens, or mean patch tokens if the backbone has no class token.
    mean : ndarray, shape (n, D), or None
        Mean over all patch tokens.
    patches : ndarray, shape (n, P, D), or None
        Patch tokens, or their pooled grid.
    grid : tuple of int
        Rows and columns of `patches`, or of the backbone's own grid if there are no `patches`.
    key : str
        Name of the set in the store; empty if it was never stored.
    manifest : mapping
        Everything that determined the numbers, as JSON values.
    """

    cls: np.ndarray
    mean: np.ndarray | None
    patches: np.ndarray | None
    grid: tuple[int, int]
    key: str
    manifest: Mapping[str, object]

    def __len__(self) -> int:
        return len(self.cls)

    def features(self) -> np.ndarray:
        """Return class and mean patch tokens side by side as float32.

        Returns
        -------
        ndarray of float32, shape (n, 2 D)
            Or (n, D), class tokens alone, if the set has no mean tokens.
        """
        parts = [self.cls] if self.mean is None else [self.cls, self.mean]
        return np.concatenate([np.asarray(p, dtype=np.float32) for p in parts], axis=1)


def array_shapes(
    backbone: Backbone, n: int, kind: str, block: int = -1
) -> tuple[Shapes, tuple[int, int]]:
    """Return the shape of each array of a kind of tokens, and the patch grid.

    Parameters
    ----------
    backbone : Backbone
        Source of the tokens.
    n : int
        Number of stimuli.
    kind : {"cls", "cls+mean", "patches", "pooled:G"}
        Kind of tokens that are kept.
    block : int, default -1
        Block index.

    Returns
    -------
    shapes : dict of str to tuple of int
        "cls" (n, D); "mean" (n, D) unless only class tokens are kept; "patches" (n, P, D) if
        patches are kept.
    grid : tuple of int
        Rows and columns of the kept patches, or of the block's own grid if none are kept.

    Raises
    ------
    ConfigError
        If `kind` is unknown, the block index is out of range, or the pooled grid is finer than the
        patches.
    """
    pooled = _check_kind(kind)
    grid, width = backbone.block_shape(block)
    if pooled:
        side = min(grid)
        grid = (int(pooled[1]), int(pooled[1]))
        require(
            grid[0] <= side,
            ConfigError,
            f"a pooled grid of at most {side}",
            kind,
            "pool to fewer cells, or use larger images",
        )
    shapes: Shapes = {"cls": (n, width)}
    if kind != "cls":
        shapes["mean"] = (n, width)
    if kind == "patches" or pooled:
        shapes["patches"] = (n, grid[0] * grid[1], width)
    return shapes, grid


def token_bytes(backbone: Backbone, n: int, wanted: Sequence[tuple[str, int]]) -> int:
    """Return the size in bytes of the float16 tokens of n stimuli.

    Parameters
    ----------
    backbone : Backbone
        Source of the tokens.
    n : int
        Number of stimuli.
    wanted : sequence of (str, int)
        Kinds and blocks, see `array_shapes`.
    """
    found = [array_shapes(backbone, n, *each)[0] for each in dict.fromkeys(wanted)]
    return sum(2 * math.prod(shape) for shapes in found for shape in shapes.values())


def _check_kind(kind: str) -> re.Match[str] | None:
    """Return the match of "pooled:G", None for another valid kind."""
    pooled = _POOLED.match(kind)
    require(
        pooled or kind in ("cls", "cls+mean", "patches"),
        ConfigError,
        "a kind 'cls', 'cls+mean', 'patches' or 'pooled:G'",
        repr(kind),
        "choose one of them, for example 'pooled:4'",
    )
    return pooled


def _reduce(tokens: BackboneTokens, names: Shapes, grid: tuple[int, int]) -> dict[str, np.ndarray]:
    """Return the arrays that `array_shapes` names, from the tokens of one batch."""
    found = {"cls": tokens.cls}
    if "mean" in names:
        found["mean"] = tokens.patches.mean(1)
    if "patches" in names:
        own = grid == tokens.grid
        found["patches"] = (
            tokens.patches if own else pool_patches(tokens.patches, tokens.grid, grid)
        )
    return {k: v.float().cpu().numpy() for k, v in found.items()}


def pool_patches(
    patches_BPD: torch.Tensor, grid: tuple[int, int], wanted: tuple[int, int]
) -> torch.Tensor:
    """Average a grid of patch tokens down to a smaller one, shape (B, rows * columns, D).

    Parameters
    ----------
    patches_BPD : Tensor, shape (B, P, D)
        Patch tokens, row by row.
    grid, wanted : tuple of int
        Rows and columns of `patches_BPD` and of the result.

    Raises
    ------
    RuntimeError
        If `grid` does not hold P patches.
    """
    plane = patches_BPD.unflatten(1, grid).permute(0, 3, 1, 2)
    return F.adaptive_avg_pool2d(plane, wanted).flatten(2).transpose(1, 2)


def read_tokens(tokens: BackboneTokens, kind: str) -> torch.Tensor:
    """Return a backbone's tokens as an encoder or fusion model of this kind takes them.

    Parameters
    ----------
    tokens : BackboneTokens
        Output of one block of a backbone.
    kind : {"patches", "pooled:G", "cls", "cls+mean"}
        All patch tokens; patch tokens averaged to a G x G grid; the class token; the class token
        and the mean patch token side by side. The same names as in `FeatureStore.get`.

    Returns
    -------
    Tensor, shape (B, P, D), (B, G * G, D), (B, 1, D) or (B, 1, 2 D)

    Raises
    ------
    ConfigError
        If the kind is unknown.
    """
    if pooled := _check_kind(kind):
        side = int(pooled[1])
        return pool_patches(tokens.patches, tokens.grid, (side, side))
    if kind == "patches":
        return tokens.patches
    mean = [tokens.patches.mean(1)] if kind == "cls+mean" else []
    return torch.cat([tokens.cls, *mean], 1)[:, None]


def derive(
    stored: StoredTokens, spans: Sequence[range], names: Shapes, grid: tuple[int, int]
) -> Iterator[tuple[range, list[dict[str, np.ndarray]]]]:
    """Yield what `run` yields for one kind, computed from a stored set of all patch tokens.

    Class and mean tokens are those of the set; a pooled grid is the average of the stored patches.
    """
    for span in spans:
        rows = slice(span.start, span.stop)
        found = {k: np.asarray(getattr(stored, k)[rows], np.float32) for k in names}
        if "patches" in names:
            patches_BPD = torch.from_numpy(np.array(found["patches"]))
            found["patches"] = pool_patches(patches_BPD, stored.grid, grid).numpy()
        yield span, [found]


def load_input(stimuli: StimulusSet, index: int, prepare: Callable[[np.ndarray], T]) -> T:
    """Return an image after `prepare`.

    Raises
    ------
    DataError
        If the image cannot be read; the message names it.
    """
    try:
        return prepare(stimuli.image(index))
    except FileError:
        raise
    except Exception as error:
        where = f" ({stimuli.paths[index]})" if stimuli.paths is not None else ""
        raise DataError(
            message(
                f"a readable image for stimulus {stimuli.ids[index]!r}{where} of {stimuli.name!r}",
                f"{type(error).__name__}: {error}",
                "repair the file or leave the stimulus out",
            )
        ) from error


def _batches(
    backbone: Backbone, stimuli: StimulusSet, spans: Sequence[range]
) -> Iterator[torch.Tensor]:
    """Yield preprocessed batches, decoded in threads while the backbone computes earlier ones."""
    pinned = backbone.device.type == "cuda"
    pool = ThreadPoolExecutor(max_workers=min(16, os.cpu_count() or 1), thread_name_prefix="decode")
    try:
        waiting: deque[list[Future]] = deque()
        for position in range(len(spans) + _AHEAD):
            if position < len(spans):
                waiting.append(
                    [
                        pool.submit(load_input, stimuli, i, backbone.preprocess)
                        for i in spans[position]
                    ]
                )
            if position < _AHEAD:
                continue
            for future in itertools.chain.from_iterable(waiting):
                # a broken file in a later batch stops the extraction now
                if future.done() and future.exception():
                    future.result()
            batch = torch.stack([future.result() for future in waiting.popleft()])
            yield batch.pin_memory() if pinned else batch
    finally:
        pool.shutdown(wait=False, cancel_futures=True)


def run(
    backbone: Backbone,
    stimuli: StimulusSet,
    spans: Sequence[range],
    wanted: Sequence[tuple[str, int]],
    features: str,
) -> Iterator[tuple[range, list[dict[str, np.ndarray]]]]:
    """Yield each span with the reduced tokens of its stimuli, one dict per (kind, block)."""
    kept = [(block, *array_shapes(backbone, len(stimuli), kind, block)) for kind, block in wanted]
    batches = _batches(backbone, stimuli, spans)
    if backbone.device.type == "cpu" and getattr(backbone, "reentrant", False):
        computed = _in_threads(lambda batch: _compute(backbone, batch, kept, features), batches)
    else:
        computed = (_compute(backbone, batch, kept, features) for batch in batches)
    yield from zip(spans, computed, strict=True)


def _in_threads(
    compute: Callable[[torch.Tensor], T], batches: Iterable[torch.Tensor]
) -> Iterator[T]:
    """Yield what `compute` returns for each batch, with one batch per thread of torch at once.

    Two threads that share a batch wait for each other at every operation; with a batch each they
    took 10 to 40 % less time on two cores (ViT-S/14, 32 images of 126 px), with the same bits.
    """
    n = torch.get_num_threads()
    pool = ThreadPoolExecutor(n, "backbone", initializer=torch.set_num_threads, initargs=(1,))
    try:
        waiting: deque[Future[T]] = deque()
        for batch in batches:
            waiting.append(pool.submit(compute, batch))
            if len(waiting) > n:
                yield waiting.popleft().result()
        while waiting:
            yield waiting.popleft().result()
    finally:
        pool.shutdown(cancel_futures=True)


def _compute(
    backbone: Backbone,
    batch: torch.Tensor,
    kept: Sequence[tuple[int, Shapes, tuple[int, int]]],
    features: str,
) -> list[dict[str, np.ndarray]]:
    """Return the reduced tokens of a batch, computed in halves if the GPU's memory is too small."""
    blocks = tuple(dict.fromkeys(block for block, *_ in kept))
    try:
        with torch.inference_mode():
            inputs = batch.to(backbone.device, non_blocking=True)
            tokens = dict(zip(blocks, backbone(inputs, blocks=blocks, features=features)))
            return [_reduce(tokens[block], shapes, grid) for block, shapes, grid in kept]
    except torch.OutOfMemoryError:
        if len(batch) == 1:
            raise
    torch.cuda.empty_cache()
    first, second = (_compute(backbone, part, kept, features) for part in batch.chunk(2))
    return [{k: np.concatenate([a[k], b[k]]) for k in a} for a, b in zip(first, second)]


def cut(span: range, size: int) -> list[range]:
    """Cut `span` into pieces of at most `size`."""
    return [span[i : i + size] for i in range(0, len(span), size)]


def narrow(values: np.ndarray, dtype: np.dtype, ids: np.ndarray, name: str) -> np.ndarray:
    """Convert tokens to the stored type.

    Raises
    ------
    NumericsError
        If a token is not finite, or too large for the type.
    """
    largest = np.abs(values).reshape(len(values), -1).max(1)
    limit = np.finfo(dtype).max
    bad = np.flatnonzero(~(largest <= limit))
    if len(bad):
        value = largest[bad[0]]
        raise NumericsError(
            message(
                f"finite tokens of magnitude at most {limit:.6g} to store as {dtype}",
                f"{value} in {name!r} of stimulus {ids[bad[0]]!r}",
                "store as dtype='float32'"
                if np.isfinite(value)
                else "check the weights and compute in float32",
            )
        )
    return values.astype(dtype)


def identity_of(
    backbone: Backbone, content: str | None, kind: str, block: int, dtype: str, features: str
) -> Identity:
    """Return everything that determines the stored numbers up to rounding."""
    described = backbone.describe()
    # the same weights under another label are the same weights
    described.pop("weights_label")
    return {
        "format": FORMAT,
        "backbone": described,
        "kind": kind,
        "block": backbone.indices((block,))[0],
        "features": features,
        "dtype": dtype,
        "stimuli": content,
    }


def _content(stimuli: StimulusSet) -> str:
    """Return `sha256_json` of the digests of all images, without a list of them."""
    found = hashlib.sha256(b"[")
    for i in range(len(stimuli)):
        found.update(("," * (i > 0) + json.dumps(stimuli.digest_of(i))).encode())
    found.update(b"]")
    return found.hexdigest()


def extract(
    backbone: Backbone,
    stimuli: StimulusSet,
    kind: str = "patches",
    block: int = -1,
    batch_size: int = 32,
    *,
    features: str = "tokens",
) -> StoredTokens:
    """Return tokens in memory as float32, without a store.

    Parameters
    ----------
    backbone, stimuli, kind, block, batch_size, features
        See `FeatureStore.get`.

    Returns
    -------
    StoredTokens
        Its `key` is empty.

    Raises
    ------
    DataError
        If an image cannot be read.
    ConfigError
        If a choice is not valid.
    NumericsError
        If a token is not finite.
    """
    return extract_many(backbone, stimuli, [(kind, block)], batch_size, features=features)[0]


def extract_many(
    backbone: Backbone,
    stimuli: StimulusSet,
    wanted: Sequence[tuple[str, int]],
    batch_size: int = 32,
    *,
    features: str = "tokens",
) -> list[StoredTokens]:
    """Return tokens of several kinds and blocks, computed in one pass through the backbone.

    Parameters
    ----------
    wanted : sequence of (str, int)
        Kind and block of each result; other parameters and errors as in `extract`.

    Returns
    -------
    list of StoredTokens
        In the order of `wanted`.
    """
    shapes = [array_shapes(backbone, len(stimuli), kind, block) for kind, block in wanted]
    kept = [{k: np.empty(shape, np.float32) for k, shape in found.items()} for found, _ in shapes]
    for span, parts in run(
        backbone, stimuli, cut(range(len(stimuli)), batch_size), wanted, features
    ):
        ids = stimuli.ids[span.start : span.stop]
        for arrays, part in zip(kept, parts):
            for k, v in part.items():
                arrays[k][span.start : span.stop] = narrow(v, np.dtype(np.float32), ids, k)
    found = []
    for (kind, block), (_, grid), arrays in zip(wanted, shapes, kept):
        identity = identity_of(backbone, None, kind, block, "float32", features)
        manifest = {
            "identity": identity,
            "n_stimuli": len(stimuli),
            "grid": list(grid),
            "batch_size": batch_size,
        }
        found.append(
            StoredTokens(
                arrays["cls"], arrays.get("mean"), arrays.get("patches"), grid, "", manifest
            )
        )
    return found


def stored_patches(stored: Sequence[StoredTokens]) -> np.ndarray:
    """Return stored tokens of one or more blocks of the same images as patches, side by side.

    Parameters
    ----------
    stored : sequence of StoredTokens
        Tokens of the same n stimuli, one per block. Tokens without patches count as a single patch:
        the class token, or the class token and the mean patch token side by side.

    Returns
    -------
    ndarray, shape (n, P, D * n_blocks)
        In the stored type (a view for a single block with patches).
    """
    parts = [s.patches if s.patches is not None else s.features()[:, None] for s in stored]
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=2)


class FeatureStore:
    """Tokens on disk, named by the content that determines them.

    Parameters
    ----------
    root : str or Path, optional
        Folder of the store; default ``features`` in the project's cache folder.
    limit_gb : float, optional
        Largest total size of the store in GB (10^9 bytes); the environment variable BMFL_STORE_GB
        by default, and 20 without it. A new set evicts those that were used longest ago and that no
        process uses now.

    Raises
    ------
    ConfigError
        If BMFL_STORE_GB is needed and no number.

    Notes
    -----
    The name of a set is a hash of weights, preprocessing, block, kind, number types and the content
    of every stimulus, in order. Threads, batch size and device change tokens by rounding only; they
    are stated in the manifest and are not part of the name. If all patch tokens of the same images
    are stored already, the other kinds are derived from them instead of running the backbone again.
    Class and mean tokens are then equal bit for bit, a pooled grid within the rounding of the
    stored type, and the manifest names the source. Each set is written into a partial folder, shard
    by shard with a SHA-256 per shard, and gets its final name only when it is complete. No reader
    finds an incomplete set, and a killed extraction continues after its last complete shard.
    Under ``torchrun`` each process extracts a part of a missing set, and one of them joins the
    parts; the bits are those of one process.
    """

    def __init__(self, root: str | Path | None = None, limit_gb: float | None = None):
        self.root = Path(root).expanduser() if root is not None else home() / "features"
        if limit_gb is None:
            with translated(
                ValueError,
                expected="a number of GB in the environment variable BMFL_STORE_GB",
                remedy="set it to the largest size of the store, for example 100",
                error=ConfigError,
            ):
                limit_gb = float(os.environ.get("BMFL_STORE_GB") or 20)
        self.limit_gb = float(limit_gb)
        self._divides = True
        self._verified: dict[str, tuple] = {}

    def get(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        kind: str = "patches",
        block: int = -1,
        dtype: str = "float16",
        batch_size: int = 32,
        *,
        features: str = "tokens",
    ) -> StoredTokens:
        """Return the tokens of `stimuli`, from disk or extracted now.

        Parameters
        ----------
        backbone : Backbone
            Made by `load_backbone` or `wrap`, on the device that computes.
        stimuli : StimulusSet
            The n images.
        kind : {"patches", "cls", "cls+mean", "pooled:G"}, default "patches"
            Tokens that are kept. "cls": the class token; "cls+mean": also the mean patch token;
            "patches": also all patch tokens; "pooled:G": class, mean and the patch tokens averaged
            over a G x G grid.
        block : int, default -1
            Block index; negative ones count from the end. DINOv2 backbones apply their final
            LayerNorm to every block.
        dtype : {"float16", "float32"}, default "float16"
            Stored number type.
        batch_size : int, default 32
            Number of images computed at once.
        features : {"tokens", "q", "k", "v"}, default "tokens"
            Tokens after the block, or its query, key or value projections (DINOv2 only).

        Returns
        -------
        StoredTokens
            Its arrays are read-only memory maps.

        Raises
        ------
        ConfigError
            If a choice is not valid, or the set exceeds the limit of the store or the free space.
        DataError
            If an image cannot be read or changes meanwhile, or a stored set is damaged.
        NumericsError
            If a token is not finite, or too large for the stored type.
        """
        return self.get_many(
            backbone, stimuli, [(kind, block)], dtype, batch_size, features=features
        )[0]

    @system_errors("the feature store")
    def get_many(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        wanted: Sequence[tuple[str, int]],
        dtype: str = "float16",
        batch_size: int = 32,
        *,
        features: str = "tokens",
    ) -> list[StoredTokens]:
        """Return several token sets of the same stimuli.

        All missing sets are extracted in one pass through the backbone.

        Parameters
        ----------
        wanted : sequence of (str, int)
            Kind and block of each set; other parameters and errors as in `get`.

        Returns
        -------
        list of StoredTokens
            In the order of `wanted`.
        """
        require(
            dtype in ("float16", "float32"),
            ConfigError,
            "a stored dtype 'float16' or 'float32'",
            repr(dtype),
            "choose one of them",
        )
        require(
            batch_size >= 1 and len(stimuli) >= 1,
            ConfigError,
            "at least one stimulus and a positive batch size",
            f"{len(stimuli)}, {batch_size}",
            "give an image, and a batch_size of 1 or more",
        )
        identities, order, content = {}, [], _content(stimuli)
        for kind, block in wanted:
            array_shapes(backbone, len(stimuli), kind, block)
            identity = identity_of(backbone, content, kind, block, dtype, features)
            order.append(sha256_json(identity)[:32])
            identities[order[-1]] = identity
        with contextlib.ExitStack() as stack:
            missing = {k: v for k, v in identities.items() if not self._hold(k, stack)}
            # each process of torchrun extracts its part before one of them gathers all parts
            parts = self._parts(len(stimuli), batch_size)
            if len(parts) > 1 and processes()[0] < len(parts):
                own = {k: v for k, v in missing.items() if self._find_patches(v) is None}
                self._part(backbone, stimuli, own, batch_size, parts[processes()[0]])
            # all processes lock in the same order, so that two never wait for each other
            for key in sorted(missing):
                stack.enter_context(self._lock(key))
            todo = {}
            for key, identity in missing.items():
                if (self.root / key).is_dir():
                    continue
                source = self._find_patches(identity)
                if source is None:
                    todo[key] = identity
                else:
                    self._extract(backbone, stimuli, {key: identity}, batch_size, source)
            if todo and len(parts) > 1:
                self._gather(backbone, stimuli, todo, batch_size, parts)
            elif todo:
                self._extract(backbone, stimuli, todo, batch_size)
            found = {key: self._open(key, identity) for key, identity in identities.items()}
        return [found[key] for key in order]

    def _parts(self, n: int, batch_size: int) -> list[range]:
        """Return the images of each process, in whole batches, so that all bits are the same."""
        count = processes()[1] if self._divides else 1
        return cut(range(n), batch_size * math.ceil(n / batch_size / count))

    def _part(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identities: Mapping[str, Identity],
        batch_size: int,
        rows: range,
    ) -> list[StoredTokens]:
        """Return the tokens of a part of a set, extracted by the process that comes first."""
        if not identities:
            return []
        store = FeatureStore(self.root / ".parts", self.limit_gb)
        store._divides = False
        first = next(iter(identities.values()))
        return store.get_many(
            backbone,
            stimuli.subset(np.asarray(rows)),
            [(each["kind"], each["block"]) for each in identities.values()],
            first["dtype"],
            batch_size,
            features=first["features"],
        )

    def _gather(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identities: Mapping[str, Identity],
        batch_size: int,
        parts: Sequence[range],
    ) -> None:
        """Write sets of tokens from the parts of all processes, waiting for those that lack."""
        found = [self._part(backbone, stimuli, identities, batch_size, rows) for rows in parts]
        self._extract(backbone, stimuli, identities, batch_size, parts=found)
        for stored in itertools.chain.from_iterable(found):
            shutil.rmtree(self.root / ".parts" / stored.key, ignore_errors=True)

    def _hold(self, key: str, stack: contextlib.ExitStack) -> bool:
        """Keep a set from being evicted until `stack` is closed; False if there is no such set.

        All users of a set share the lock of its manifest, whose time of change is that of the last
        use.
        """
        path = self.root / key / "manifest.json"
        try:
            stream = stack.enter_context(open(path, "rb"))
            share(stream)
            with contextlib.suppress(OSError):  # a store that may only be read
                os.utime(path)
            return os.path.samestat(os.fstat(stream.fileno()), path.stat())
        except (FileNotFoundError, NotADirectoryError):  # never there, or evicted meanwhile
            return False

    def _lock(self, key: str) -> contextlib.AbstractContextManager[None]:
        path = self.root / ".locks" / f"{key}.lock"
        try:
            with lock(path, wait=False):
                pass
        except DataError:
            print(f"feature store: another process is extracting {key}; waiting for it", flush=True)
        return lock(path)

    def used_bytes(self) -> int:
        """Return the size of everything in the store, in bytes."""
        return folder_bytes(self.root, "*.npy")

    def missing_bytes(
        self, backbone: Backbone, stimuli: StimulusSet, wanted: Sequence[tuple[str, int]]
    ) -> int:
        """Return how many bytes `get_many` would add to the store, float16; 0 if all are stored.

        Parameters
        ----------
        backbone, stimuli, wanted
            See `get_many`.
        """
        content = _content(stimuli)

        def is_missing(kind: str, block: int) -> bool:
            identity = identity_of(backbone, content, kind, block, "float16", "tokens")
            return not (self.root / sha256_json(identity)[:32]).is_dir()

        missing = [each for each in wanted if is_missing(*each)]
        return token_bytes(backbone, len(stimuli), missing)

    def room(self, *, evicting: bool = False) -> int:
        """Return how many bytes can be added, by the limit and by the space on the disk.

        Parameters
        ----------
        evicting : bool, default False
            Count what can be evicted as room.
        """
        place = next(p for p in (self.root, *self.root.absolute().parents) if p.exists())
        room = min(self.limit_gb * 1e9 - self.used_bytes(), shutil.disk_usage(place).free)
        return int(room + (sum(self._evictable().values()) if evicting else 0))

    def _evictable(self) -> dict[Path, int]:
        """Return the manifest and the size in bytes of each set that no process uses now."""
        found = {}
        for path in self.root.glob("*/manifest.json"):
            with contextlib.suppress(LockedError, FileNotFoundError), self._claim(path.parent):
                found[path] = folder_bytes(path.parent, "*.npy")
        return found

    @contextlib.contextmanager
    def _claim(self, folder: Path) -> Iterator[None]:
        """Let no other process write or open a set; raise `LockedError` if one does already."""
        with (
            lock(self.root / ".locks" / f"{folder.name}.lock", wait=False),
            sole_user(folder / "manifest.json"),
        ):
            yield

    def _find_patches(self, identity: Identity) -> StoredTokens | None:
        """Return the set of all patch tokens that `identity` can be derived from, or None."""
        if identity["kind"] == "patches":
            return None
        for dtype in dict.fromkeys((identity["dtype"], "float32")):
            wanted = {**identity, "kind": "patches", "dtype": dtype}
            key = sha256_json(wanted)[:32]
            with contextlib.ExitStack() as stack:
                if self._hold(key, stack):
                    return self._open(key, wanted)
        return None

    def _make_room(self, needed: int, partial: Path) -> None:
        """Evict what was used longest ago until a set of `needed` bytes fits limit and disk.

        Raises
        ------
        ConfigError
            If it does not.
        """
        already = folder_bytes(partial, "*.npy")
        # the limit does not count what is joined from parts twice
        limit = self.limit_gb * 1e9 + folder_bytes(self.root / ".parts", "*.npy")
        used, free = self.used_bytes() - already, shutil.disk_usage(self.root).free
        lacking = max(used + needed - limit, needed - already - free)
        evictable = self._evictable() if lacking > 0 else {}
        enough = lacking <= sum(evictable.values())
        if gone := evict(evictable, lacking, self._claim, _described) if enough else []:
            print(
                f"feature store: deleted {', '.join(gone)} to make room within {self.limit_gb:g} "
                "GB; raise limit_gb or BMFL_STORE_GB to keep more",
                flush=True,
            )
        used = self.used_bytes() - already
        free = shutil.disk_usage(self.root).free
        require(
            used + needed <= limit and needed - already <= free,
            ConfigError,
            f"room for {needed / 1e9:.3g} GB of tokens",
            f"{used / 1e9:.3g} GB used of a limit of {self.limit_gb:g} GB, "
            f"{free / 1e9:.3g} GB free on the disk",
            f"delete folders in {self.root}, raise limit_gb or BMFL_STORE_GB, or keep fewer tokens "
            "(kind='cls+mean' or 'pooled:4')",
        )

    def _extract(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identities: Mapping[str, Identity],
        batch_size: int,
        source: StoredTokens | None = None,
        parts: Sequence[Sequence[StoredTokens]] = (),
    ) -> None:
        """Write sets of tokens from the backbone, from all patches (`source`), or from `parts`."""
        writers = {
            key: self._start(backbone, stimuli, key, identity, batch_size, source)
            for key, identity in identities.items()
        }
        first = next(iter(writers.values()))
        spans = cut(range(len(stimuli)), batch_size)
        spans = [s for s in spans if any(w.needs(s) for w in writers.values())]
        if source is not None:
            batches = derive(source, spans, first.shapes, first.grid)
        elif parts:
            batches = _joined(parts, spans, [w.shapes for w in writers.values()])
        else:
            wanted = [w.wanted for w in writers.values()]
            batches = run(backbone, stimuli, spans, wanted, first.identity["features"])
        title = f"{stimuli.name}: batches of {batch_size} images"
        for span, parts in progress(batches, title, total=len(spans)):
            for writer, part in zip(writers.values(), parts):
                if writer.needs(span):
                    writer.put(span, part, stimuli.ids[span.start : span.stop])
        if source is None and _content(stimuli) != first.identity["stimuli"]:
            for writer in writers.values():
                shutil.rmtree(writer.partial)
            raise DataError(
                message(
                    f"the images of {stimuli.name!r} as they were when asked for",
                    "others: a file was replaced in between",
                    "leave them alone, try again",
                )
            )
        facts = {
            "stimuli_name": stimuli.name,
            "weights_label": backbone.weights_label,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": backbone.device.type,
            "derived_from": None if source is None else source.key,
            "versions": versions(),
        }
        for key, writer in writers.items():
            writer.finish(self.root / key, {"grid": list(writer.grid), **facts})

    def _start(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        key: str,
        identity: Identity,
        batch_size: int,
        source: StoredTokens | None,
    ) -> _Writer:
        """Announce a set, check that there is room for it, and open its files."""
        kind, block = identity["kind"], identity["block"]
        shapes, grid = array_shapes(backbone, len(stimuli), kind, block)
        number = np.dtype(identity["dtype"])
        row_bytes = sum(int(np.prod(s[1:])) for s in shapes.values()) * number.itemsize
        needed, partial = row_bytes * len(stimuli), self.root / f"{key}.partial"
        print(
            f"feature store: {kind} of {len(stimuli)} images of {stimuli.name!r} by "
            f"{backbone.name} ({backbone.weights_label}) at {backbone.image_size} px, "
            f"block {block}, {number}: {needed / 1e6:.1f} MB in {self.root}"
            + ("" if source is None else f", derived from {source.key}"),
            flush=True,
        )
        self.root.mkdir(parents=True, exist_ok=True)
        self._make_room(needed, partial)
        rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes) // batch_size) * batch_size
        return _Writer(partial, identity, shapes, grid, number, rows)

    def _open(self, key: str, identity: Identity) -> StoredTokens:
        """Map the arrays of a set, which is not evicted as long as they are there."""
        with contextlib.ExitStack() as stack:
            self._hold(key, stack)
            found = self._read(key, identity)
            # a slice keeps the map and not the array that it was cut from
            maps = [a._mmap for a in (found.cls, found.mean, found.patches) if a is not None]
            close, left = stack.pop_all().close, set(map(id, maps))
            for each in maps:
                weakref.finalize(each, _release, id(each), left, close)
            return found

    def _read(self, key: str, identity: Identity) -> StoredTokens:
        folder = self.root / key
        manifest = read_sealed_json(folder / "manifest.json")
        require(
            isinstance(manifest, dict) and manifest.get("identity") == identity,
            DataError,
            f"tokens of the requested weights, preprocessing and stimuli in {folder}",
            "another manifest",
            _REMAKE,
        )
        arrays = {k: load_npy(folder / f"{k}.npy", mmap=True) for k in manifest["arrays"]}
        for name, array in arrays.items():
            _require_intact(
                [list(array.shape), array.dtype] == [manifest["arrays"][name], identity["dtype"]],
                folder,
                name,
                f"{array.dtype} {array.shape}",
            )
        self._verify(folder, manifest, arrays)
        grid = tuple(manifest["grid"])
        return StoredTokens(
            arrays["cls"], arrays.get("mean"), arrays.get("patches"), grid, key, manifest
        )

    def _verify(
        self, folder: Path, manifest: Mapping[str, object], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Compare every shard with its checksum, once per process while the files are unchanged.

        Raises
        ------
        DataError
            If a shard or the header of an array differs.
        """
        stamp = tuple(
            (k, (s := (folder / f"{k}.npy").stat()).st_mtime_ns, s.st_size) for k in sorted(arrays)
        )
        if self._verified.get(folder.name) == stamp:
            return
        for shard, digests in manifest["shards"].items():
            start = int(shard) * manifest["shard_rows"]
            span = range(start, min(start + manifest["shard_rows"], manifest["n_stimuli"]))
            for name, array in arrays.items():
                got = f"another checksum in rows {span.start} to {span.stop - 1}"
                _require_intact(_digest(array, span) == digests[name], folder, name, got)
        # sets of earlier versions have no checksums of their headers
        for name, digest in manifest.get("headers", {}).items():
            found = _header_digest(folder / f"{name}.npy", arrays[name])
            _require_intact(found == digest, folder, name, "another header")
        self._verified[folder.name] = stamp


class _Writer:
    """A token set that is being written: a partial folder that gets its name when complete."""

    def __init__(
        self,
        partial: Path,
        identity: Identity,
        shapes: Shapes,
        grid: tuple[int, int],
        number: np.dtype,
        rows: int,
    ):
        self.partial, self.identity, self.shapes, self.grid = partial, identity, shapes, grid
        self.number = number
        self.wanted = (identity["kind"], identity["block"])
        self.n = shapes["cls"][0]
        try:
            self._continue()
        except FileError:
            raise
        except (FileNotFoundError, ValueError, KeyError, TypeError):
            # there is no partial extraction, or it cannot be read: start again
            self._begin(rows)

    def _continue(self) -> None:
        """Open the files of a killed extraction with the shards that are complete."""
        self.state = read_json(self.partial / "progress.json")
        self.arrays = {
            k: load_npy(self.partial / f"{k}.npy", mmap=True, writable=True) for k in self.shapes
        }
        found = {k: (a.shape, a.dtype) for k, a in self.arrays.items()}
        if self.state["identity"] != self.identity or found != {
            k: (s, self.number) for k, s in self.shapes.items()
        }:
            raise ValueError("the partial folder belongs to other tokens")
        self.state["shards"] = {
            shard: digests
            for shard, digests in self.state["shards"].items()
            if digests == self._digests(int(shard))
        }

    def _begin(self, rows: int) -> None:
        """Make new files."""
        shutil.rmtree(self.partial, ignore_errors=True)
        self.partial.mkdir(parents=True)
        self.arrays = {
            k: map_new_npy(self.partial / f"{k}.npy", s, self.number)
            for k, s in self.shapes.items()
        }
        self.state = {"identity": self.identity, "shard_rows": rows, "shards": {}}

    def _rows(self, shard: int) -> range:
        size = self.state["shard_rows"]
        return range(shard * size, min((shard + 1) * size, self.n))

    def _digests(self, shard: int) -> dict[str, str]:
        return {k: _digest(a, self._rows(shard)) for k, a in self.arrays.items()}

    def shard(self, span: range) -> int:
        return span.start // self.state["shard_rows"]

    def needs(self, span: range) -> bool:
        return str(self.shard(span)) not in self.state["shards"]

    def put(self, span: range, part: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
        for name, values in part.items():
            self.arrays[name][span.start : span.stop] = narrow(values, self.number, ids, name)
        shard = self.shard(span)
        if span.stop == self._rows(shard).stop:
            for array in self.arrays.values():
                array.flush()
            self.state["shards"][str(shard)] = self._digests(shard)
            write_json(self.partial / "progress.json", self.state)

    def finish(self, final: Path, facts: Mapping[str, object]) -> None:
        manifest = {
            "identity": self.identity,
            "n_stimuli": self.n,
            "arrays": {k: list(s) for k, s in self.shapes.items()},
            "shard_rows": self.state["shard_rows"],
            "shards": self.state["shards"],
            "headers": {
                k: _header_digest(self.partial / f"{k}.npy", a) for k, a in self.arrays.items()
            },
            **facts,
        }
        write_sealed_json(self.partial / "manifest.json", manifest)
        (self.partial / "progress.json").unlink()
        os.replace(self.partial, final)


def _described(folder: Path) -> str:
    """Return what a set of tokens holds, for messages."""
    try:
        found = read_json(folder / "manifest.json")
        identity = found["identity"]
        return f"{identity['kind']} of {found['stimuli_name']!r} by {identity['backbone']['name']}"
    except (DataError, KeyError, TypeError):
        return folder.name


def _joined(
    parts: Sequence[Sequence[StoredTokens]], spans: Sequence[range], names: Sequence[Shapes]
) -> Iterator[tuple[range, list[dict[str, np.ndarray]]]]:
    """Yield what `run` yields, from the tokens of consecutive parts of a set."""
    size = len(parts[0][0])
    for span in spans:
        start = span.start % size
        rows = slice(start, start + len(span))
        yield (
            span,
            [
                {k: np.asarray(getattr(stored, k)[rows], np.float32) for k in kinds}
                for stored, kinds in zip(parts[span.start // size], names, strict=True)
            ],
        )


def _release(one: int, left: set[int], close: Callable[[], None]) -> None:
    """Close what is held for several objects when the last one is gone."""
    left.discard(one)
    if not left:
        close()


def _digest(array: np.ndarray, span: range) -> str:
    return sha256_bytes(np.ascontiguousarray(array[span.start : span.stop]).data)


def _header_digest(path: Path, array: np.ndarray) -> str:
    with open(path, "rb") as stream:
        return sha256_bytes(stream.read(path.stat().st_size - array.nbytes))


def _require_intact(condition: object, folder: Path, name: str, got: str) -> None:
    """Raise a `DataError` about damaged tokens unless a condition holds."""
    require(condition, DataError, f"undamaged tokens in {folder / name}.npy", got, _REMAKE)
