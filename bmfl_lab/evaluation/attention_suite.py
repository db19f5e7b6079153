"""One call a map: the map, its randomised version, and every check that can be made of it."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.evaluation.attention import (
    backbone_attention,
    brain_attention,
    query_names,
    roi_attention,
    rollout,
)
from bmfl_lab.evaluation.attention_checks import map_similarity, region_share
from bmfl_lab.evaluation.attention_curves import DeletionInsertion, class_curves, response_curves
from bmfl_lab.evaluation.attention_randomised import (
    Randomisation,
    randomise_backbone,
    randomise_brain_attention,
    randomise_class_attribution,
    randomise_roi_attention,
)
from bmfl_lab.evaluation.attention_table import CheckRow, check_rows
from bmfl_lab.evaluation.attribution import Attribution, class_attribution


@dataclass(frozen=True)
class CheckedMap:
    """A map with its checks.

    Parameters
    ----------
    name : str
        Of the map, in tables and figures.
    maps : ndarray, shape (n_stimuli, h, w)
        Magnitudes.
    randomised : Randomisation
        Along the cascade of random weights.
    curves : DeletionInsertion
        Against random orders.
    rows : list of CheckRow
        Outcomes.
    """

    name: str
    maps: np.ndarray
    randomised: Randomisation
    curves: DeletionInsertion
    rows: list[CheckRow]

    @property
    def random_weights(self) -> np.ndarray:
        """Maps after all weights were randomised, shape (n_stimuli, h, w)."""
        return list(self.randomised.maps.values())[-1]


def _judged(name, maps, randomised, curves, *, shuffled=None, region=None, gap=None) -> CheckedMap:
    labels: pd.DataFrame | None = None if shuffled is None else map_similarity(maps, shuffled)
    fits = region is not None and region.shape == maps.shape[1:]
    rows = check_rows(
        name,
        weights=randomised.final,
        labels=labels,
        curves=curves.areas(),
        region=region_share(maps, region) if fits else None,
        gap=gap,
    )
    return CheckedMap(name, np.abs(maps), randomised, curves, rows)


def check_backbone(
    backbone: Any,
    fusion: Any,
    stimuli: StimulusSet,
    *,
    kind: str = "last block",
    region: np.ndarray | None = None,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
) -> CheckedMap:
    """Check the backbone's attention (mean over heads) or its rollout.

    Parameters
    ----------
    backbone : Backbone
        Frozen: there is no training answer to shuffle.
    fusion : TrainedFusion
        Whose class probability the deletion curves show.
    stimuli : StimulusSet
        Images.
    kind : {"last block", "rollout"}
        As `randomise_backbone`.
    region : ndarray, shape (h, w), optional
        Planted region from `on_patches`.
    seed : int
        Of random weights and orders.
    reference : DeletionInsertion, optional
        Curves of another map of the same model, images and seed: its random orders serve again.
    """
    rolled = kind == "rollout"
    maps = (
        rollout(backbone, stimuli)
        if rolled
        else backbone_attention(backbone, stimuli, blocks=(-1,)).mean(2)[:, 0]
    )
    randomised = randomise_backbone(
        backbone, stimuli, kind=kind, seed=seed, trained=maps, cascade=False
    )
    curves = class_curves(fusion, stimuli, maps, seed=seed, reference=reference)
    return _judged(
        "backbone rollout" if rolled else "backbone CLS", maps, randomised, curves, region=region
    )


def check_roi_attention(
    encoder: Any,
    stimuli: StimulusSet,
    query: str,
    *,
    backbone: Any = None,
    shuffled: Any = None,
    region: np.ndarray | None = None,
    seed: int = 0,
) -> CheckedMap:
    """Check the attention of one ROI query (mean over heads).

    Parameters
    ----------
    encoder : TrainedEncoder
        With an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    query : str
        Among `query_names`; the deletion curves show the predicted response of its vertices.
    backbone : Backbone, optional
        The encoder's, if it is loaded already.
    shuffled : TrainedEncoder, optional
        Trained in the same way on responses dealt out to the wrong images.
    region, seed
        As `check_backbone`.

    Raises
    ------
    ConfigError
        If the encoder has no such query.
    """
    backbone = encoder.load_backbone() if backbone is None else backbone
    randomised = randomise_roi_attention(encoder, stimuli, query, backbone=backbone, seed=seed)
    maps, at = randomised.maps["trained"], query_names(encoder).index(query)
    other = (
        None
        if shuffled is None
        else roi_attention(shuffled, stimuli, backbone=backbone)[:, at].mean(1)
    )
    curves = response_curves(encoder, stimuli, maps, query, backbone=backbone, seed=seed)
    return _judged(f"{query} query", maps, randomised, curves, shuffled=other, region=region)


def check_brain_attention(
    fusion: Any,
    stimuli: StimulusSet,
    *,
    shuffled: Any = None,
    region: np.ndarray | None = None,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
) -> CheckedMap:
    """Check the attention of the brain's CLS token to image patches (mean over heads).

    Parameters
    ----------
    fusion : TrainedFusion
        With cross-attention.
    stimuli, region, seed, reference
        As `check_backbone`.
    shuffled : TrainedFusion, optional
        Trained in the same way on shuffled labels.
    """
    maps = brain_attention(fusion, stimuli).mean(1)
    other = None if shuffled is None else brain_attention(shuffled, stimuli).mean(1)
    randomised = randomise_brain_attention(fusion, stimuli, seed=seed, trained=maps, cascade=False)
    curves = class_curves(fusion, stimuli, maps, seed=seed, reference=reference)
    return _judged("brain CLS", maps, randomised, curves, shuffled=other, region=region)


def check_class_attribution(
    fusion: Any,
    stimuli: StimulusSet,
    *,
    shuffled: Any = None,
    region: np.ndarray | None = None,
    steps: int = 32,
    seed: int = 0,
    reference: DeletionInsertion | None = None,
    attribution: Attribution | None = None,
) -> CheckedMap:
    """Check integrated gradients of the predicted class.

    Parameters
    ----------
    fusion, stimuli, shuffled, region, seed, reference
        As `check_brain_attention`.
    steps : int, default 32
        Points of the quadrature; a quarter as many for models that only lend a map to compare with,
        where nothing but the ranks of patches matters.
    attribution : Attribution, optional
        What `class_attribution` returned for these images, if it is known.
    """
    found = class_attribution(fusion, stimuli, steps=steps) if attribution is None else attribution
    maps, coarse, other = np.abs(found.patches), max(1, steps // 4), None
    if shuffled is not None:
        classes = fusion.logits(stimuli).argmax(1)
        other = np.abs(class_attribution(shuffled, stimuli, target=classes, steps=coarse).patches)
    randomised = randomise_class_attribution(
        fusion, stimuli, steps=coarse, seed=seed, trained=maps, cascade=False
    )
    curves = class_curves(fusion, stimuli, maps, seed=seed, reference=reference)
    return _judged(
        "integrated gradients",
        maps,
        randomised,
        curves,
        shuffled=other,
        region=region,
        gap=found.relative_gap,
    )
