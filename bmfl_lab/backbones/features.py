"""The store of tokens: extracted once, named by content, memory-mapped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from bmfl_lab.backbones.tokens import (
    StoredTokens,
    array_shapes,
    cut,
    derive,
    extract,
    identity_of,
    narrow,
    run,
)
from bmfl_lab.backbones.vit import Backbone
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.files import (
    load_npy,
    lock,
    read_json,
    read_sealed_json,
    sha256_bytes,
    sha256_json,
    write_json,
    write_sealed_json,
)
from bmfl_lab.runtime import home, progress, versions

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 512

__all__ = ["FeatureStore", "StoredTokens", "extract"]


class FeatureStore:
    """Tokens on disk, named by the content that determines them.

    Parameters
    ----------
    root : str or Path, optional
        Folder of the store; default ``features`` in the project's cache folder.
    limit_gb : float, default 20
        Largest total size of the store in GB (10^9 bytes).

    Notes
    -----
    The name is a hash of weights, preprocessing, block, kind, number types and of every stimulus'
    content, in order. Threads, batch size and device change tokens by rounding only; they are
    stated in the manifest and are not part of the name. Where all patch tokens of the same images
    are there already, the other kinds are derived from them instead of running the backbone again:
    class and mean tokens to the bit, a pooled grid within the rounding of the stored type; their
    manifest says so. Each set is written into a partial folder, shard by shard with a SHA-256 each,
    and gets its final name only when complete: a reader never sees half of it, and a killed
    extraction goes on at the last whole shard.
    """

    def __init__(self, root: str | Path | None = None, limit_gb: float = 20):
        self.root = Path(root).expanduser() if root is not None else home() / "features"
        self.limit_gb = float(limit_gb)
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
            Made by `load_backbone`, on the device that shall compute.
        stimuli : StimulusSet
            The images.
        kind : {"cls", "cls+mean", "patches", "pooled:G"}
            What is kept: the class token; with the mean patch token; with all patch tokens; with
            the patch tokens averaged over a G x G grid.
        block : int, default -1
            Block index; negative ones count from the end. The final LayerNorm is applied to every
            block.
        dtype : {"float16", "float32"}
            Stored number type.
        batch_size : int, default 32
            Images computed at once.
        features : {"tokens", "q", "k", "v"}
            As in ``Backbone.forward``.

        Returns
        -------
        StoredTokens
            Read-only memory maps.

        Raises
        ------
        ConfigError
            If a choice is not valid, or the set does not fit the limit or the disk.
        DataError
            If an image cannot be read, or a stored set is damaged or has another manifest than its
            name says.
        NumericsError
            If a token is not finite, or does not fit the stored type.
        """
        return self.get_many(
            backbone, stimuli, [(kind, block)], dtype, batch_size, features=features
        )[0]

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
        """Return several token sets of the same stimuli, extracting all that are missing in one pass of the backbone.

        Parameters
        ----------
        wanted : sequence of (str, int)
            Kind and block of each set; the rest as `get`, and so are the errors.

        Returns
        -------
        list of StoredTokens
            In the order of `wanted`.
        """
        self._check_choices(dtype, batch_size, len(stimuli))
        identities, order, digests = {}, [], stimuli.digests()
        for kind, block in wanted:
            array_shapes(backbone, len(stimuli), kind)
            backbone.indices((block,))
            identity = identity_of(backbone, digests, kind, block, dtype, features)
            order.append(sha256_json(identity)[:32])
            identities[order[-1]] = identity
        missing = [key for key in identities if not (self.root / key).is_dir()]
        if missing:
            with contextlib.ExitStack() as stack:
                for key in sorted(
                    missing
                ):  # one order for all processes, so that two never wait for each other
                    stack.enter_context(self._alone(key))
                todo = {key: identities[key] for key in missing if not (self.root / key).is_dir()}
                whole = {
                    key: w
                    for key, identity in todo.items()
                    if (w := self._whole(identity)) is not None
                }
                for key, source in whole.items():
                    self._extract(backbone, stimuli, {key: todo.pop(key)}, batch_size, source)
                if todo:
                    self._extract(backbone, stimuli, todo, batch_size)
        found = {key: self._open(key, identity) for key, identity in identities.items()}
        return [found[key] for key in order]

    def _check_choices(self, dtype: str, batch_size: int, n: int) -> None:
        if dtype not in ("float16", "float32"):
            raise ConfigError(
                message("a stored dtype 'float16' or 'float32'", repr(dtype), "choose one of them")
            )
        if batch_size < 1 or n < 1:
            raise ConfigError(
                message(
                    "at least one stimulus and a positive batch size",
                    f"{n} and {batch_size}",
                    "give some of each",
                )
            )

    def _alone(self, key: str):
        path = self.root / ".locks" / f"{key}.lock"
        try:
            with lock(path, wait=False):
                pass
        except DataError:
            print(f"feature store: another process is extracting {key}; waiting for it", flush=True)
        return lock(path)

    def used_bytes(self) -> int:
        """Return the size of everything in the store, in bytes."""
        return sum(p.stat().st_size for p in self.root.glob("*/*.npy")) if self.root.is_dir() else 0

    def _whole(self, identity: Mapping[str, Any]) -> StoredTokens | None:
        """Return the set of all patch tokens that `identity` can be derived from, or None."""
        if identity["kind"] == "patches":
            return None
        for dtype in dict.fromkeys((identity["dtype"], "float32")):
            wanted = {**identity, "kind": "patches", "dtype": dtype}
            key = sha256_json(wanted)[:32]
            if (self.root / key).is_dir():
                return self._open(key, wanted)
        return None

    def _announce(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identity: Mapping[str, Any],
        needed: int,
        partial: Path,
        whole: StoredTokens | None,
    ) -> None:
        already = sum(p.stat().st_size for p in partial.glob("*.npy")) if partial.is_dir() else 0
        used, limit = self.used_bytes() - already, self.limit_gb * 1e9
        free = shutil.disk_usage(self.root).free
        print(
            f"feature store: {identity['kind']} of {len(stimuli)} images of {stimuli.name!r} by {backbone.name} "
            f"({backbone.weights_label}) at {backbone.image_size} px, block {identity['block']}, "
            f"{identity['dtype']}: {needed / 1e6:.1f} MB in {self.root}"
            + ("" if whole is None else f", derived from {whole.key}"),
            flush=True,
        )
        if used + needed > limit or needed - already > free:
            raise ConfigError(
                message(
                    f"room for {needed / 1e9:.3g} GB of tokens",
                    f"{used / 1e9:.3g} GB used of a limit of {self.limit_gb:g} GB, {free / 1e9:.3g} GB free on the disk",
                    f"delete folders in {self.root}, raise limit_gb, or keep less (kind='cls+mean' or 'pooled:4')",
                )
            )

    def _extract(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identities: Mapping[str, dict[str, Any]],
        batch_size: int,
        whole: StoredTokens | None = None,
    ) -> None:
        writers = []
        for key, identity in identities.items():
            partial = self.root / f"{key}.partial"
            shapes, _ = array_shapes(backbone, len(stimuli), identity["kind"])
            number = np.dtype(identity["dtype"])
            row_bytes = sum(int(np.prod(s[1:])) for s in shapes.values()) * number.itemsize
            self.root.mkdir(parents=True, exist_ok=True)
            self._announce(backbone, stimuli, identity, row_bytes * len(stimuli), partial, whole)
            rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes) // batch_size) * batch_size
            writers.append(_Writer(partial, identity, shapes, number, rows))
        spans = [
            s for s in cut(range(len(stimuli)), batch_size) if any(w.needs(s) for w in writers)
        ]
        if whole is not None:
            done = derive(
                whole, spans, *array_shapes(backbone, len(stimuli), writers[0].identity["kind"])
            )
        else:
            done = run(
                backbone,
                stimuli,
                spans,
                [w.wanted for w in writers],
                writers[0].identity["features"],
            )
        for span, parts in progress(
            done, f"{stimuli.name}: batches of {batch_size} images", total=len(spans)
        ):
            for writer, part in zip(writers, parts):
                if writer.needs(span):
                    writer.put(span, part, stimuli.ids[span.start : span.stop])
        if whole is None and sha256_json(stimuli.digests()) != writers[0].identity["stimuli"]:
            for key in identities:
                shutil.rmtree(self.root / f"{key}.partial")
            got = "others: a file was replaced in between"
            raise DataError(
                message(
                    f"the images of {stimuli.name!r} as they were when asked for",
                    got,
                    "leave them alone, try again",
                )
            )
        facts = {
            "stimuli_name": stimuli.name,
            "weights_label": backbone.weights_label,
            "batch_size": batch_size,
            "threads": torch.get_num_threads(),
            "device": backbone.device.type,
            "derived_from": None if whole is None else whole.key,
            "versions": versions(),
        }
        for key, writer in zip(identities, writers):
            _, grid = array_shapes(backbone, len(stimuli), writer.identity["kind"])
            writer.finish(self.root / key, {"grid": list(grid), **facts})

    def _open(self, key: str, identity: Mapping[str, Any]) -> StoredTokens:
        folder = self.root / key
        manifest = read_sealed_json(folder / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("identity") != identity:
            raise DataError(
                message(
                    f"tokens made with the weights, preprocessing and stimuli asked for in {folder}",
                    "another manifest",
                    "delete the folder; it is made again",
                )
            )
        arrays = {k: load_npy(folder / f"{k}.npy", mmap=True) for k in manifest["arrays"]}
        for name, array in arrays.items():
            if list(array.shape) != manifest["arrays"][name] or array.dtype != identity["dtype"]:
                raise _damaged(folder, name, f"{array.dtype} {array.shape}")
        self._verify(folder, manifest, arrays)
        grid = tuple(manifest["grid"])
        return StoredTokens(
            arrays["cls"], arrays.get("mean"), arrays.get("patches"), grid, key, manifest
        )

    def _verify(
        self, folder: Path, manifest: Mapping[str, Any], arrays: Mapping[str, np.ndarray]
    ) -> None:
        """Compare every shard with its checksum, once a process as long as the files stay untouched."""
        stamp = tuple(
            (k, (s := (folder / f"{k}.npy").stat()).st_mtime_ns, s.st_size) for k in sorted(arrays)
        )
        if self._verified.get(folder.name) == stamp:
            return
        for shard, digests in manifest["shards"].items():
            start = int(shard) * manifest["shard_rows"]
            span = range(start, min(start + manifest["shard_rows"], manifest["n_stimuli"]))
            for name, array in arrays.items():
                if _digest(array, span) != digests[name]:
                    raise _damaged(
                        folder, name, f"another checksum in rows {span.start} to {span.stop - 1}"
                    )
        for name, digest in manifest.get(
            "headers", {}
        ).items():  # sets of earlier versions have none
            if _header_digest(folder / f"{name}.npy", arrays[name]) != digest:
                raise _damaged(folder, name, "another header")
        self._verified[folder.name] = stamp


class _Writer:
    """One token set in the making: a partial folder that gets its name when complete."""

    def __init__(
        self,
        partial: Path,
        identity: dict[str, Any],
        shapes: Mapping[str, tuple[int, ...]],
        number: np.dtype,
        rows: int,
    ):
        self.partial, self.identity, self.shapes, self.number = partial, identity, shapes, number
        self.wanted = (identity["kind"], identity["block"])
        self.n = next(iter(shapes.values()))[0]
        self.state, self.arrays = _open_partial(partial, identity, shapes, number, rows)

    def shard(self, span: range) -> int:
        return span.start // self.state["shard_rows"]

    def needs(self, span: range) -> bool:
        return str(self.shard(span)) not in self.state["shards"]

    def put(self, span: range, part: Mapping[str, np.ndarray], ids: np.ndarray) -> None:
        for name, values in part.items():
            self.arrays[name][span.start : span.stop] = narrow(values, self.number, ids, name)
        size, shard = self.state["shard_rows"], self.shard(span)
        whole = range(shard * size, min((shard + 1) * size, self.n))
        if span.stop == whole.stop:
            for array in self.arrays.values():
                array.flush()
            self.state["shards"][str(shard)] = {
                k: _digest(a, whole) for k, a in self.arrays.items()
            }
            write_json(self.partial / "progress.json", self.state)

    def finish(self, final: Path, facts: Mapping[str, Any]) -> None:
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


def _digest(array: np.ndarray, span: range) -> str:
    return sha256_bytes(np.ascontiguousarray(array[span.start : span.stop]).data)


def _header_digest(path: Path, array: np.ndarray) -> str:
    with open(path, "rb") as stream:
        return sha256_bytes(stream.read(path.stat().st_size - array.nbytes))


def _damaged(folder: Path, name: str, got: str) -> DataError:
    return DataError(
        message(
            f"undamaged tokens in {folder / name}.npy", got, "delete the folder; it is made again"
        )
    )


def _open_partial(
    partial: Path,
    identity: dict[str, Any],
    shapes: Mapping[str, tuple[int, ...]],
    number: np.dtype,
    rows: int,
) -> tuple[dict[str, Any], dict[str, np.memmap]]:
    """Open the files of a killed extraction with the shards that are whole, or make new ones."""
    progress_file = partial / "progress.json"
    if progress_file.is_file():
        try:
            state = read_json(progress_file)
            arrays = {
                k: np.load(partial / f"{k}.npy", mmap_mode="r+", allow_pickle=False) for k in shapes
            }
            if state["identity"] == identity and all(
                arrays[k].shape == s and arrays[k].dtype == number for k, s in shapes.items()
            ):
                n, size = next(iter(shapes.values()))[0], state["shard_rows"]
                state["shards"] = {
                    shard: digests
                    for shard, digests in state["shards"].items()
                    if all(
                        _digest(
                            arrays[k], range(int(shard) * size, min((int(shard) + 1) * size, n))
                        )
                        == digests[k]
                        for k in shapes
                    )
                }
                return state, arrays
        except (OSError, ValueError, KeyError, TypeError):
            # a partial extraction that cannot be read is worth nothing: start over
            pass
    shutil.rmtree(partial, ignore_errors=True)
    partial.mkdir(parents=True)
    arrays = {
        k: np.lib.format.open_memmap(partial / f"{k}.npy", mode="w+", dtype=number, shape=s)
        for k, s in shapes.items()
    }
    return {"identity": identity, "shard_rows": rows, "shards": {}}, arrays
