"""Computing tokens of stimuli: decoding in threads, the backbone, and the reduction of its tokens.

Shape suffixes: n stimuli, B batch, P patches, D width, G side of a pooled grid.
"""

from __future__ import annotations

import itertools
import os
import re
from collections import deque
from collections.abc import Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass

import numpy as np
import torch
import torch.nn.functional as F

from bmfl_lab.backbones.protocol import Backbone, BackboneTokens
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, FileError, NumericsError, message
from bmfl_lab.files import sha256_json

FORMAT = 1
_POOLED = re.compile(r"^pooled:([1-9]\d?)$")
_AHEAD = 2

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
        if grid[0] > side:
            raise ConfigError(
                message(
                    f"a pooled grid of at most {side}",
                    kind,
                    "pool to fewer cells, or use larger images",
                )
            )
    shapes: Shapes = {"cls": (n, width)}
    if kind != "cls":
        shapes["mean"] = (n, width)
    if kind == "patches" or pooled:
        shapes["patches"] = (n, grid[0] * grid[1], width)
    return shapes, grid


def _check_kind(kind: str) -> re.Match[str] | None:
    """Return the match of "pooled:G", None for another valid kind."""
    pooled = _POOLED.match(kind)
    if not pooled and kind not in ("cls", "cls+mean", "patches"):
        kinds = "'cls', 'cls+mean', 'patches' or 'pooled:G'"
        raise ConfigError(
            message(f"a kind {kinds}", repr(kind), "choose one of them, for example 'pooled:4'")
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


def _load_inputs(backbone: Backbone, stimuli: StimulusSet, index: int) -> torch.Tensor:
    try:
        return backbone.preprocess(stimuli.image(index))
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
                    [pool.submit(_load_inputs, backbone, stimuli, i) for i in spans[position]]
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
    for span, batch in zip(spans, _batches(backbone, stimuli, spans), strict=True):
        yield span, _compute(backbone, batch, kept, features)


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
    backbone: Backbone, digests: list[str] | None, kind: str, block: int, dtype: str, features: str
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
        "stimuli": None if digests is None else sha256_json(digests),
    }


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
        As in `FeatureStore.get`.

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
