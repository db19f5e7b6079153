"""Protocols of trained models: the methods that evaluation, figures and widgets call."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

import numpy as np
from torch import Tensor

from bmfl_lab.backbones.tokens import StoredTokens
from bmfl_lab.data import Atlas, StimulusSet
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.models.lesion import Lesion


@runtime_checkable
class Classifier(Protocol):
    """A trained model that scores classes of images: fusion, baseline, probe or readout."""

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        ...


@runtime_checkable
class LesionableClassifier(Protocol):
    """A classifier that reads predicted responses, so that regions can be lesioned."""

    name: str
    seed: int
    class_names: tuple[str, ...]

    def logits(self, stimuli: StimulusSet, lesion: Lesion | None = None) -> np.ndarray:
        """Return class scores under a lesion, float32 (n_stimuli, n_classes)."""
        ...

    def predict_responses(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the responses that the model reads, float32 (n_stimuli, n_vertices)."""
        ...


@runtime_checkable
class BrainEncoder(Protocol):
    """A trained brain encoder, which predicts responses from stored tokens or images."""

    atlas: Atlas
    backbone: BackboneSpec
    sources: tuple[Mapping[str, Any], ...]
    label: str
    selection: str
    hash: str
    scores: np.ndarray

    def respond(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return responses (B, V) to tokens (B, P, D), one tensor per entry of `sources`."""
        ...

    def to(self, device: str) -> BrainEncoder:
        """Move the encoder to a device and return it."""
        ...

    def predict(self, tokens: Sequence[StoredTokens], *, device: str = "auto") -> np.ndarray:
        """Return predicted responses, float32 (n_stimuli, n_vertices)."""
        ...

    def predict_stimuli(self, stimuli: StimulusSet, *, device: str = "auto") -> np.ndarray:
        """Return predicted responses to images, float32 (n_stimuli, n_vertices)."""
        ...
