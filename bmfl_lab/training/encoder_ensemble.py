"""Several trained encoders of one subject as one: each on tokens of its own, weighted per vertex by validation r."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from torch import nn

from bmfl_lab.backbones import Backbone, FeatureStore, StoredTokens
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import DataError, message
from bmfl_lab.files import sha256_json
from bmfl_lab.models.brain_encoder import ensemble_weights
from bmfl_lab.training.encoder_io import FromImages, TrainedEncoder

SELECTION = "softmax of validation r per vertex over encoders, each selected as it says"


@dataclass
class EncoderEnsemble(FromImages):
    """Encoders of one subject, averaged with weights per vertex; made by `combine_encoders`.

    Parameters
    ----------
    members : dict of str to TrainedEncoder
        Name to encoder.
    weights : ndarray of float32, shape (n_members, V)
        Sum to 1 at each vertex.
    scores : ndarray of float32, shape (V,)
        The members' validation r, averaged with the same weights: a stand-in for ranking vertices,
        not the validation r of the averaged prediction.
    """

    members: dict[str, TrainedEncoder]
    weights: np.ndarray
    scores: np.ndarray
    selection: str = SELECTION
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        first = next(iter(self.members.values()))
        self.atlas: Atlas = first.atlas
        self.backbone = first.backbone
        self.sources = tuple(
            source for member in self.members.values() for source in member.sources
        )
        about = first.label.split(" encoder of ", 1)[-1].split(", ")[0]
        self.label = f"ensemble encoder of {about}, of {', '.join(self.members)}"
        self.hash = sha256_json(
            [[m.hash for m in self.members.values()], self.weights.tobytes().hex()]
        )[:16]
        self.facts = {
            "members": {name: dict(member.facts) for name, member in self.members.items()}
        }
        self.module = nn.ModuleList([member.module for member in self.members.values()])

    def load_backbone(self, device: str = "auto") -> Backbone:
        """Return the backbone of the members' tokens."""
        return next(iter(self.members.values())).load_backbone(device)

    def tokens(
        self,
        stimuli: StimulusSet,
        *,
        store: FeatureStore | None = None,
        backbone: Backbone | None = None,
        device: str = "auto",
    ) -> tuple[StoredTokens, ...]:
        """Return the tokens of all members, one after the other; parameters as `TrainedEncoder.tokens`."""
        backbone = backbone or self.load_backbone(device)
        options = {"store": store, "backbone": backbone, "device": device}
        return tuple(
            stored
            for member in self.members.values()
            for stored in member.tokens(stimuli, **options)
        )

    def predict(
        self, tokens: Sequence[StoredTokens], *, batch_size: int = 64, device: str = "auto"
    ) -> np.ndarray:
        """Predict responses from tokens as `tokens` returns them, float32 (n_stimuli, n_vertices).

        Raises
        ------
        DataError
            If there are more or fewer tokens than the members need, or of another kind.
        """
        if len(tokens) != len(self.sources):
            raise DataError(
                message(
                    f"tokens of {len(self.sources)} block(s)",
                    f"{len(tokens)}",
                    "get them with encoder.tokens(...)",
                )
            )
        total, at = None, 0
        for weight, member in zip(self.weights, self.members.values()):
            mine = tokens[at : at + len(member.sources)]
            at += len(mine)
            part = member.predict(mine, batch_size=batch_size, device=device) * weight
            total = part if total is None else np.add(total, part, out=total)
        return total


def combine_encoders(
    members: Mapping[str, TrainedEncoder], temperature: float = 40.0
) -> EncoderEnsemble:
    """Average trained encoders of one subject, weighted per vertex by the softmax of their validation r.

    Parameters
    ----------
    members : mapping of str to TrainedEncoder
        Two or more encoders of the same vertices; their tokens may differ in block and kind.
    temperature : float, default 40
        Factor of r in the softmax: higher takes more of the better one.

    Returns
    -------
    EncoderEnsemble
        Used as any encoder: ``evaluate_encoder``, ``train_fusion(encoder=...)``.

    Raises
    ------
    DataError
        If there are fewer than two members, or they predict other vertices or read another
        backbone.

    References
    ----------
    Adeli et al. (2025), arXiv 2505.17329: softmax with a factor of 40 over encoders of several
    blocks.
    """
    found = dict(members)
    if len(found) < 2:
        raise DataError(message("two or more encoders", f"{len(found)}", "name more of them"))
    first = next(iter(found.values()))
    for name, member in found.items():
        same = np.array_equal(member.atlas.hemisphere, first.atlas.hemisphere) and all(
            np.array_equal(member.atlas.rois.get(roi), mask)
            for roi, mask in first.atlas.rois.items()
        )
        if not same or member.backbone != first.backbone:
            what = f"{name!r} of {'another backbone' if same else 'other vertices'}"
            raise DataError(
                message(
                    "encoders of one subject and one backbone",
                    what,
                    "combine those that belong together",
                )
            )
    scores = np.stack([np.asarray(member.scores, np.float32) for member in found.values()])
    weights = ensemble_weights(scores, temperature)
    with np.errstate(invalid="ignore"):
        mean = np.where(
            np.isfinite(scores).any(0), (weights * np.nan_to_num(scores)).sum(0), np.nan
        )
    return EncoderEnsemble(found, weights, mean.astype(np.float32))
