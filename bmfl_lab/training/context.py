"""The device, token store, seed and predicted responses that trainings of a comparison share."""

from __future__ import annotations

import dataclasses
import functools
import math
import os
from collections import OrderedDict
from collections.abc import Callable, Hashable
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import torch

from bmfl_lab.backbones import Backbone, FeatureStore, load_backbone
from bmfl_lab.backbones.dinov2 import STAND_IN_HASH, STAND_IN_WEIGHTS
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.models.fusion import Moments
from bmfl_lab.runtime import home, pick_device

RESPONSE_BYTES = 512 << 20
"""Size up to which a context keeps predicted responses, in bytes (512 MiB, our choice)."""


class ResponseCache:
    """Keep predicted responses of image sets, so that several models of a comparison share them.

    The responses that were used longest ago go first when the size exceeds the limit.

    Parameters
    ----------
    limit : int
        Largest total size in bytes; responses that are mapped from files do not count.
    """

    def __init__(self, limit: int = RESPONSE_BYTES):
        self.limit = limit
        self._kept: OrderedDict[Hashable, np.ndarray] = OrderedDict()

    def get(self, key: Hashable, predict: Callable[[], np.ndarray]) -> np.ndarray:
        """Return the responses kept under `key`, or those that `predict` returns now."""
        if key not in self._kept:
            self._kept[key] = predict()
        self._kept.move_to_end(key)
        while len(self._kept) > 1 and self._size() > self.limit:
            self._kept.popitem(last=False)
        return self._kept[key]

    def _size(self) -> int:
        return sum(v.nbytes for v in self._kept.values() if not isinstance(v, np.memmap))


@dataclass(frozen=True)
class Context:
    """Hold what the models of one comparison share.

    Parameters
    ----------
    device : "cpu" or "cuda"
        Device that trains and predicts.
    store : FeatureStore
        Store of backbone tokens.
    seed : int, default 0
        Seed of initial weights, order of the images and dropout.
    responses : ResponseCache
        Responses that were predicted already.
    moments : dict of str to tuple of Moments
        Moments of CLS and patches that were measured already, by the key of their tokens.
    models : Path, optional
        Folder in which trained models are kept, so that none is trained twice; None keeps none.
    fresh : bool, default False
        Train models even if they are kept.
    models_gb : float, default infinity
        Largest total size of the kept models in GB (10^9 bytes); a new model evicts those that were
        used longest ago.
    """

    device: str
    store: FeatureStore
    seed: int = 0
    responses: ResponseCache = field(default_factory=ResponseCache, repr=False)
    moments: dict[str, tuple[Moments, Moments]] = field(default_factory=dict, repr=False)
    models: Path | None = None
    fresh: bool = False
    models_gb: float = math.inf

    @classmethod
    def make(cls, store: FeatureStore | None = None, device: str = "auto") -> Context:
        """Return a context from the keywords of public functions.

        Parameters
        ----------
        store : FeatureStore, optional
            The one in the cache folder by default.
        device : "auto", "cpu" or "cuda", default "auto"
        """
        return cls(local_device(device), store if store is not None else FeatureStore())

    def keeping(self, folder: str | Path | None, fresh: bool) -> Context:
        """Return the same context with models kept in `folder`, or in the cache folder.

        In the cache folder they have the limit of the feature store.
        """
        return dataclasses.replace(
            self,
            models=home() / "models" if folder is None else Path(folder),
            fresh=fresh,
            models_gb=self.store.limit_gb if folder is None else math.inf,
        )

    def seeded(self, seed: int) -> Context:
        """Return the same context with another seed; store and responses are shared."""
        return dataclasses.replace(self, seed=seed)

    def backbone(self, spec: BackboneSpec) -> Backbone:
        """Return the backbone of a study on this device."""
        return study_backbone(spec, self.device)


def local_device(device: str = "auto") -> str:
    """Return the device of this process; "cuda" is from now on the GPU that LOCAL_RANK names.

    Every training calls this before it touches CUDA, so that several processes of one training have
    a GPU each.

    Parameters
    ----------
    device : {"auto", "cpu", "cuda"}, default "auto"
        Same as in `bmfl_lab.runtime.pick_device`.
    """
    device = pick_device(device)
    if device == "cuda" and "LOCAL_RANK" in os.environ:
        torch.cuda.set_device(int(os.environ["LOCAL_RANK"]))
    return device


def load_spec(spec: BackboneSpec, device: str = "auto") -> Backbone:
    """Load the backbone that a specification names.

    Parameters
    ----------
    spec : BackboneSpec
        Name, weights, image size and resize rule.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the backbone.

    Returns
    -------
    Backbone
    """
    return load_backbone(
        spec.name,
        spec.weights,
        image_size=spec.image_size,
        device=local_device(device),
        resize=spec.resize,
    )


def pinned(spec: BackboneSpec, weights_hash: str) -> BackboneSpec:
    """Return a specification that keeps to the stand-in, if a model was trained on it.

    "auto" may find other weights than on the day of the training.

    Parameters
    ----------
    spec : BackboneSpec
        Specification of the study or of the encoder.
    weights_hash : str
        Hash of the weights that the model was trained on.

    Returns
    -------
    BackboneSpec
    """
    if spec.weights == "auto" and weights_hash == STAND_IN_HASH:
        return dataclasses.replace(spec, weights=STAND_IN_WEIGHTS)
    return spec


@functools.lru_cache(maxsize=2)
def study_backbone(spec: BackboneSpec, device: str) -> Backbone:
    """Return the backbone of a study; the last two that were loaded are kept.

    Parameters
    ----------
    spec, device
        See `load_spec`.
    """
    return load_spec(spec, device)
