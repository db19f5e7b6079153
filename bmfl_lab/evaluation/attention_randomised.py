"""Maps of models whose weights are randomised from the output down, stage by stage.

A map that stays the same shows the image and the architecture, not what the model learned.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import numpy as np
import pandas as pd
import torch
from torch import Tensor, nn

from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, message
from bmfl_lab.evaluation.attention import (
    backbone_attention,
    image_batches,
    queries_of,
    query_names,
    roi_attention,
    rollout,
)
from bmfl_lab.evaluation.attention_checks import map_similarity
from bmfl_lab.evaluation.attribution import class_attribution
from bmfl_lab.runtime import seed_for


@dataclass(frozen=True)
class Randomisation:
    """Maps along a cascade of randomised weights.

    Parameters
    ----------
    maps : dict of str to ndarray, shape (n_stimuli, h, w)
        Stage to maps, "trained" first; at each stage it and all above it are randomised.
    similarity : dict of str to DataFrame
        Stage to `map_similarity` with the trained model's maps.
    """

    maps: dict[str, np.ndarray]
    similarity: dict[str, pd.DataFrame]

    @property
    def final(self) -> pd.DataFrame:
        """Similarity after every stage was randomised."""
        return list(self.similarity.values())[-1]

    def table(self) -> pd.DataFrame:
        """Return the mean over images of both measures, one row a stage."""
        return pd.DataFrame({k: t.mean() for k, t in self.similarity.items()}).T.rename_axis(
            "randomised down to"
        )


def weight_randomisation(
    module: nn.Module,
    stages: Mapping[str, tuple[str, ...]],
    maps: Callable[[nn.Module], np.ndarray],
    *,
    seed: int = 0,
    trained: np.ndarray | None = None,
    cascade: bool = True,
) -> Randomisation:
    """Randomise weights stage by stage, each on top of the ones before, and compare the maps.

    Parameters
    ----------
    module : nn.Module
        Left as it is; a copy is randomised.
    stages : mapping of str to tuple of str
        Label to the prefixes of its parameters' names, from the output down.
    maps : callable
        ``maps(module) -> (n_stimuli, h, w)``.
    seed : int
        Of the new weights.
    trained : ndarray, shape (n_stimuli, h, w), optional
        What `maps` gives for `module`, if it is known.
    cascade : bool, default True
        Make maps after every stage; False makes them once, after all stages, which is what the
        check looks at.

    Returns
    -------
    Randomisation

    Raises
    ------
    ConfigError
        If a stage has no parameter.

    Notes
    -----
    New weights are drawn from a normal distribution with each tensor's own mean and standard
    deviation (our choice: the scale of the activations stays), constant tensors stay as they are.

    References
    ----------
    Adebayo et al. (2018), Sanity checks for saliency maps, NeurIPS, arXiv:1810.03292: cascading
    randomisation.
    """
    found, similarity = {"trained": np.array(maps(module) if trained is None else trained)}, {}
    changed = copy.deepcopy(module).eval()
    for label, prefixes in stages.items():
        names = [n for n, _ in changed.named_parameters() if n.startswith(prefixes)]
        if not names:
            raise ConfigError(
                message(
                    f"parameters of the stage {label!r}", f"none named {prefixes}", "correct it"
                )
            )
        for name in names:
            redraw(changed.get_parameter(name), seed_for(seed, "weights", name))
        if not cascade and label != list(stages)[-1]:
            continue
        found[label] = np.array(maps(changed))
        similarity[label] = map_similarity(found["trained"], found[label])
    return Randomisation(found, similarity)


def redraw(parameter: Tensor, seed: int) -> None:
    """Replace a tensor's values by normal ones with the same mean and standard deviation, in place."""
    values = parameter.detach().float()
    spread = float(values.std(correction=0))
    if spread > 0:
        generator = torch.Generator().manual_seed(seed % 2**63)
        new = torch.randn(values.shape, generator=generator) * spread + float(values.mean())
        with torch.no_grad():
            parameter.copy_(new.to(parameter))


def backbone_stages(backbone: Any, prefix: str = "", groups: int = 3) -> dict[str, tuple[str, ...]]:
    """Return a backbone's stages from the last block down, blocks in at most `groups` groups, the embedding last."""
    stages = {}
    for part in np.array_split(np.arange(backbone.n_blocks)[::-1], min(groups, backbone.n_blocks)):
        label = f"block {part[0] + 1}" if len(part) == 1 else f"blocks {part[-1] + 1}-{part[0] + 1}"
        stages[label] = tuple(f"{prefix}blocks.{i}." for i in part)
    embedding = ("patch_embed", "pos_embed", "cls_token", "register_tokens")
    return {**stages, "embedding": tuple(prefix + name for name in embedding)}


def randomise_backbone(
    backbone: Any,
    stimuli: StimulusSet,
    *,
    kind: str = "last block",
    seed: int = 0,
    groups: int = 3,
    **options: Any,
) -> Randomisation:
    """Randomise a backbone under its own attention.

    Parameters
    ----------
    backbone : Backbone
    stimuli : StimulusSet
        Images.
    kind : {"last block", "rollout"}
        CLS to patches in the last block, mean over heads; or attention rollout.
    seed, groups : int
        As `weight_randomisation` and `backbone_stages`.
    **options
        ``trained`` and ``cascade`` as in `weight_randomisation`.

    Raises
    ------
    ConfigError
        If `kind` is unknown.
    """
    if kind not in ("last block", "rollout"):
        raise ConfigError(
            message("kind 'last block' or 'rollout'", repr(kind), "choose one of the two")
        )

    def maps(module: Any) -> np.ndarray:
        if kind == "rollout":
            return rollout(module, stimuli)
        return backbone_attention(module, stimuli, blocks=(-1,), heads="mean")[:, 0, 0]

    return weight_randomisation(
        backbone, backbone_stages(backbone, groups=groups), maps, seed=seed, **options
    )


def randomise_roi_attention(
    encoder: Any,
    stimuli: StimulusSet,
    query: str,
    *,
    backbone: Any = None,
    seed: int = 0,
    groups: int = 3,
) -> Randomisation:
    """Randomise a brain encoder, then its backbone, under the attention of one ROI query (mean over heads).

    The readout, the feed-forward block and the values come first: attention weights are computed
    before them, so their map cannot change there. This is a limit of every attention map.

    Parameters
    ----------
    encoder : TrainedEncoder
        With an ROI-query transformer inside.
    stimuli : StimulusSet
        Images.
    query : str
        Among `query_names`.
    backbone, seed, groups
        As `roi_attention` and `randomise_backbone`.

    Raises
    ------
    ConfigError
        If the encoder has no such query.
    """
    names, inner = query_names(encoder), queries_of(encoder)
    if query not in names:
        raise ConfigError(message(f"a query among {names}", repr(query), "choose one of them"))
    both = nn.ModuleDict(
        {
            "encoder": encoder.module,
            "backbone": encoder.load_backbone() if backbone is None else backbone,
        }
    )
    at = next(name for name, m in both.named_modules() if m is inner) + "."
    after = tuple(at + name for name in ("readout", "norm_out", "ffn", "norm_ffn", "out.", "v."))
    keys = tuple(at + name for name in ("queries_RE", "q.", "k.", "project"))
    stages = {"readout and values": after, "queries and keys": keys}
    stages |= backbone_stages(both["backbone"], "backbone.", groups)

    def maps(module: nn.Module) -> np.ndarray:
        changed = dataclasses.replace(encoder, module=module["encoder"])
        return roi_attention(changed, stimuli, backbone=module["backbone"])[
            :, names.index(query)
        ].mean(1)

    return weight_randomisation(both, stages, maps, seed=seed)


def path_stages(path: Any, groups: int = 3) -> dict[str, tuple[str, ...]]:
    """Return the stages of an assembled path from the classifier down to the backbone's embedding."""
    stages = {"classifier": ("fusion.classifier",)}
    if path.fusion.brain is not None:
        stages["fusion"] = ("fusion.fusion", "fusion.project")
        stages["brain transformer"] = ("fusion.brain",)
        stages["brain encoder"] = ("encoder.",)
    names = [n for n, _ in path.named_parameters()]
    kept = {k: v for k, v in stages.items() if any(n.startswith(v) for n in names)}
    return {**kept, **backbone_stages(path.backbone, "backbone.", groups)}


def randomise_class_attribution(
    fusion: Any,
    stimuli: StimulusSet,
    *,
    steps: int = 16,
    baseline: str = "grey",
    seed: int = 0,
    groups: int = 1,
    **options: Any,
) -> Randomisation:
    """Randomise the whole path under the integrated gradients of the class predicted by the trained model.

    Parameters
    ----------
    fusion : TrainedFusion
    stimuli : StimulusSet
        Images.
    steps, baseline
        As `class_attribution`.
    seed, groups : int
        As `randomise_backbone`.
    **options
        ``trained`` and ``cascade`` as in `weight_randomisation`.
    """
    path, classes = fusion.path, fusion.logits(stimuli).argmax(1)

    def maps(module: nn.Module) -> np.ndarray:
        found = class_attribution(
            fusion, stimuli, target=classes, baseline=baseline, steps=steps, path=module
        )
        return np.abs(found.patches)

    return weight_randomisation(path, path_stages(path, groups), maps, seed=seed, **options)


def randomise_brain_attention(
    fusion: Any, stimuli: StimulusSet, *, seed: int = 0, groups: int = 1, **options: Any
) -> Randomisation:
    """Randomise the whole path under the brain CLS token's attention to image patches (mean over heads).

    Parameters
    ----------
    fusion, stimuli, seed, groups, options
        As `randomise_class_attribution`.

    Raises
    ------
    ConfigError
        If the model has no cross-attention, or its path cannot be assembled.
    """
    if fusion.config.head != "fusion":
        raise ConfigError(
            message("a model with cross-attention", repr(fusion.config.head), "use head='fusion'")
        )
    path = fusion.path.eval()
    grid = path.backbone.grid_of(path.backbone.image_size, path.backbone.image_size)
    grid = (path.pool, path.pool) if path.pool else grid

    def maps(module: Any) -> np.ndarray:
        parts = []
        for images in image_batches(module.backbone, stimuli):
            with torch.no_grad():
                weights = module(images, weights=True).attention["bv"][:, :, 0].mean(1)
            parts.append(weights.unflatten(-1, grid).cpu().numpy())
        return np.concatenate(parts)

    return weight_randomisation(path, path_stages(path, groups), maps, seed=seed, **options)
