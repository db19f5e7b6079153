"""The store of tokens, which are extracted once, named by content and memory-mapped."""

from __future__ import annotations

import contextlib
import os
import shutil
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
import torch

from bmfl_lab.backbones.protocol import Backbone
from bmfl_lab.backbones.tokens import (
    Identity,
    Shapes,
    StoredTokens,
    array_shapes,
    cut,
    derive,
    identity_of,
    narrow,
    run,
)
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, FileError, message
from bmfl_lab.files import (
    load_npy,
    lock,
    read_json,
    read_sealed_json,
    sha256_bytes,
    sha256_json,
    system_errors,
    write_json,
    write_sealed_json,
)
from bmfl_lab.runtime import home, progress, versions

_SHARD_BYTES = 64 << 20
_SHARD_ROWS = 512
_REMAKE = "delete the folder; its tokens are extracted again at the next call"


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
    The name of a set is a hash of weights, preprocessing, block, kind, number types and the content
    of every stimulus, in order. Threads, batch size and device change tokens by rounding only; they
    are stated in the manifest and are not part of the name. If all patch tokens of the same images
    are stored already, the other kinds are derived from them instead of running the backbone again.
    Class and mean tokens are then equal bit for bit, a pooled grid within the rounding of the
    stored type, and the manifest names the source. Each set is written into a partial folder, shard
    by shard with a SHA-256 per shard, and gets its final name only when it is complete. No reader
    finds an incomplete set, and a killed extraction continues after its last complete shard.
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
        self._check_choices(dtype, batch_size, len(stimuli))
        identities, order, digests = {}, [], stimuli.digests()
        for kind, block in wanted:
            array_shapes(backbone, len(stimuli), kind, block)
            identity = identity_of(backbone, digests, kind, block, dtype, features)
            order.append(sha256_json(identity)[:32])
            identities[order[-1]] = identity
        missing = {k: v for k, v in identities.items() if not (self.root / k).is_dir()}
        with contextlib.ExitStack() as stack:
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
                    f"{n}, {batch_size}",
                    "give an image, and a batch_size of 1 or more",
                )
            )

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
        return sum(p.stat().st_size for p in self.root.glob("*/*.npy")) if self.root.is_dir() else 0

    def _find_patches(self, identity: Identity) -> StoredTokens | None:
        """Return the set of all patch tokens that `identity` can be derived from, or None."""
        if identity["kind"] == "patches":
            return None
        for dtype in dict.fromkeys((identity["dtype"], "float32")):
            wanted = {**identity, "kind": "patches", "dtype": dtype}
            key = sha256_json(wanted)[:32]
            if (self.root / key).is_dir():
                return self._open(key, wanted)
        return None

    def _check_room(self, needed: int, partial: Path) -> None:
        """Check that a set of `needed` bytes fits the limit and the disk.

        Raises
        ------
        ConfigError
            If it does not.
        """
        already = sum(p.stat().st_size for p in partial.glob("*.npy"))
        used, limit = self.used_bytes() - already, self.limit_gb * 1e9
        free = shutil.disk_usage(self.root).free
        if used + needed > limit or needed - already > free:
            raise ConfigError(
                message(
                    f"room for {needed / 1e9:.3g} GB of tokens",
                    f"{used / 1e9:.3g} GB used of a limit of {self.limit_gb:g} GB, "
                    f"{free / 1e9:.3g} GB free on the disk",
                    f"delete folders in {self.root}, raise limit_gb, or keep fewer tokens "
                    "(kind='cls+mean' or 'pooled:4')",
                )
            )

    def _extract(
        self,
        backbone: Backbone,
        stimuli: StimulusSet,
        identities: Mapping[str, Identity],
        batch_size: int,
        source: StoredTokens | None = None,
    ) -> None:
        """Write sets of tokens, computed by the backbone or derived from those of `source`."""
        writers = {
            key: self._start(backbone, stimuli, key, identity, batch_size, source)
            for key, identity in identities.items()
        }
        first = next(iter(writers.values()))
        spans = cut(range(len(stimuli)), batch_size)
        spans = [s for s in spans if any(w.needs(s) for w in writers.values())]
        if source is not None:
            batches = derive(source, spans, first.shapes, first.grid)
        else:
            wanted = [w.wanted for w in writers.values()]
            batches = run(backbone, stimuli, spans, wanted, first.identity["features"])
        title = f"{stimuli.name}: batches of {batch_size} images"
        for span, parts in progress(batches, title, total=len(spans)):
            for writer, part in zip(writers.values(), parts):
                if writer.needs(span):
                    writer.put(span, part, stimuli.ids[span.start : span.stop])
        if source is None and sha256_json(stimuli.digests()) != first.identity["stimuli"]:
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
        self._check_room(needed, partial)
        rows = max(1, min(_SHARD_ROWS, _SHARD_BYTES // row_bytes) // batch_size) * batch_size
        return _Writer(partial, identity, shapes, grid, number, rows)

    def _open(self, key: str, identity: Identity) -> StoredTokens:
        folder = self.root / key
        manifest = read_sealed_json(folder / "manifest.json")
        if not isinstance(manifest, dict) or manifest.get("identity") != identity:
            raise DataError(
                message(
                    f"tokens of the requested weights, preprocessing and stimuli in {folder}",
                    "another manifest",
                    _REMAKE,
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
                if _digest(array, span) != digests[name]:
                    raise _damaged(
                        folder, name, f"another checksum in rows {span.start} to {span.stop - 1}"
                    )
        # sets of earlier versions have no checksums of their headers
        for name, digest in manifest.get("headers", {}).items():
            if _header_digest(folder / f"{name}.npy", arrays[name]) != digest:
                raise _damaged(folder, name, "another header")
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
            k: np.load(self.partial / f"{k}.npy", mmap_mode="r+", allow_pickle=False)
            for k in self.shapes
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
            k: np.lib.format.open_memmap(
                self.partial / f"{k}.npy", mode="w+", dtype=self.number, shape=s
            )
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


def _digest(array: np.ndarray, span: range) -> str:
    return sha256_bytes(np.ascontiguousarray(array[span.start : span.stop]).data)


def _header_digest(path: Path, array: np.ndarray) -> str:
    with open(path, "rb") as stream:
        return sha256_bytes(stream.read(path.stat().st_size - array.nbytes))


def _damaged(folder: Path, name: str, got: str) -> DataError:
    return DataError(message(f"undamaged tokens in {folder / name}.npy", got, _REMAKE))
