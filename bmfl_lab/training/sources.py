"""What may stand where the predicted responses stand: controls for every claim that a brain helps.

Each factory returns a response source, ``source(stimuli, tokens) -> float32 (n_stimuli,
n_vertices)``, for the argument `brain` of `train_fusion`. Random numbers belong to a stimulus id:
every image keeps its own in training, in evaluation and in a later process.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable
from typing import Any

import numpy as np
import torch

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import Study
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.runtime import pick_device, rng, seed_for
from bmfl_lab.training.fusion_parts import ResponseSource


def remembered(source: ResponseSource, keep: int = 32) -> ResponseSource:
    """Return a source that answers the same set of images once, for many models that share it.

    Parameters
    ----------
    source : callable
        Any response source.
    keep : int, default 32
        Sets whose responses are kept.
    """
    kept: list[tuple[StimulusSet, np.ndarray]] = []

    def answer(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        for known, response in kept:
            if known is stimuli:
                return response
        response = np.asarray(source(stimuli, tokens), dtype=np.float32)
        kept.append((stimuli, response))
        del kept[:-keep]
        return response

    return answer


def noise_source(
    reference: np.ndarray, *, covariance: bool = False, seed: int = 0
) -> ResponseSource:
    """Noise in place of predicted responses: fresh for every image, the same whenever that image is asked for.

    Parameters
    ----------
    reference : ndarray, shape (n_reference, n_vertices)
        Predicted responses whose statistics are matched.
    covariance : bool, default False
        Match the full covariance between vertices (of rank n_reference - 1 at most) instead of the
        variances alone.
    seed : int, default 0
        Of the noise.

    Raises
    ------
    DataError
        If the reference holds fewer than two images or values that are not finite.
    """
    reference = _checked(reference)
    mean, n = reference.mean(0), len(reference)
    if covariance:
        _, size, directions = np.linalg.svd(reference - mean, full_matrices=False)
        mixing = (size[:, None] * directions / np.sqrt(n - 1)).astype(np.float32)
    scale = reference.std(0, ddof=1)

    def noise(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        width = len(mixing) if covariance else len(mean)
        z = _own_noise(stimuli, width, seed, "noise")
        return (mean + (z @ mixing if covariance else z * scale)).astype(np.float32)

    return noise


def _own_noise(stimuli: StimulusSet, width: int, seed: int, what: str) -> np.ndarray:
    rows = [rng(seed, what, str(i)).standard_normal(width, dtype=np.float32) for i in stimuli.ids]
    return np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)


def _checked(reference: np.ndarray) -> np.ndarray:
    reference = np.asarray(reference, dtype=np.float64)
    if reference.ndim != 2 or len(reference) < 2 or not np.isfinite(reference).all():
        raise DataError(
            message(
                "finite reference responses of shape (n >= 2, n_vertices)",
                f"shape {reference.shape}",
                "predict them for the training images",
            )
        )
    return reference


def mixed_source(
    source: ResponseSource,
    reference: np.ndarray,
    *,
    accuracy: float,
    reached: float = 1.0,
    seed: int = 0,
) -> ResponseSource:
    """Predicted responses mixed with noise, down to a given encoding accuracy.

    Parameters
    ----------
    source : callable
        The encoder's own source.
    reference : ndarray, shape (n_reference, n_vertices)
        Its responses to the training images; the noise has their mean and covariance, so that the
        mixture has too.
    accuracy : float
        Wanted encoding accuracy, mean r.
    reached : float, default 1
        The encoder's own, e.g. the mean of `TrainedEncoder.scores`.
    seed : int, default 0
        Of the noise.

    Raises
    ------
    ConfigError
        If more is wanted than the encoder reaches.

    Notes
    -----
    With ``a = accuracy / reached`` the mixture is ``mean + a (response - mean) + sqrt(1 - a^2)
    noise``: it correlates with the encoder's response by a, and so with measured responses by a
    times the encoder's own accuracy.
    """
    if not 0 <= accuracy <= reached:
        raise ConfigError(
            message(
                f"an accuracy from 0 to {reached:.3f}, what the encoder reaches",
                f"{accuracy}",
                "ask for less or train a better encoder",
            )
        )
    share = accuracy / reached if reached else 0.0
    mean = _checked(reference).mean(0)
    noise = noise_source(reference, covariance=True, seed=seed_for(seed, "mixed"))

    def mixed(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        own, other = source(stimuli, tokens) - mean, noise(stimuli, tokens) - mean
        return (mean + share * own + np.sqrt(1 - share**2) * other).astype(np.float32)

    return mixed


def other_image_source(
    donors: StimulusSet,
    donor_responses: np.ndarray,
    *,
    classes: Callable[[StimulusSet], np.ndarray] | None = None,
    seed: int = 0,
) -> ResponseSource:
    """The predicted response to another image, never to the image itself.

    Parameters
    ----------
    donors : StimulusSet
        Labelled training images.
    donor_responses : ndarray, shape (n_donors, n_vertices)
        Their predicted responses.
    classes : callable, optional
        ``classes(stimuli) -> (n_stimuli,) int``: what to take as the class of images that are not
        donors. None pairs with any image.
    seed : int, default 0
        Of the pairing.

    Raises
    ------
    DataError
        If responses and donors differ in number, or a class has no other image.

    Notes
    -----
    With `classes`, a training image is given a partner of its own *label*, and every other image
    (validation, test, out of distribution) one of the class that the classifier *predicts*, because
    a partner by label would tell the answer. The control thus asks what a response of the right
    category adds when it carries nothing else of the image; its accuracy outside training is
    bounded by that classifier's.
    """
    if len(donor_responses) != len(donors):
        raise DataError(
            message(
                f"{len(donors)} donor responses",
                f"{len(donor_responses)}",
                "predict them for the donors",
            )
        )
    place = {str(i): k for k, i in enumerate(donors.ids)}
    labels = np.asarray(donors.labels)
    donor_responses = np.asarray(donor_responses, dtype=np.float32)

    def other(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        own = np.asarray([place.get(str(i), -1) for i in stimuli.ids], dtype=np.int64)
        wanted = None
        if classes is not None and len(stimuli):
            guessed = np.asarray(classes(stimuli)) if (own < 0).any() else np.full(len(own), -1)
            wanted = np.where(own >= 0, labels[own], guessed)
        chosen = np.empty(len(own), dtype=np.int64)
        for k, identifier in enumerate(stimuli.ids):
            pool = np.arange(len(labels)) if wanted is None else np.flatnonzero(labels == wanted[k])
            pool = pool[pool != own[k]]
            if not len(pool):
                raise DataError(
                    message(
                        f"another training image for {identifier!r}",
                        "none",
                        "use more images a class",
                    )
                )
            chosen[k] = pool[rng(seed, "partner", str(identifier)).integers(len(pool))]
        return donor_responses[chosen]

    return other


def pca_source(patches: np.ndarray, n_vertices: int) -> ResponseSource:
    """Principal components of the image's own patches, as many as there are vertices: no brain, same size.

    Parameters
    ----------
    patches : ndarray, shape (n_fit, P, D)
        Patch tokens of the images that the brain encoder learned from, of the kind that the fusion
        reads.
    n_vertices : int
        Outputs; those beyond the rank of the fit (n_fit - 1, or P * D) are zero.
    """
    flat = np.asarray(patches, dtype=np.float32).reshape(len(patches), -1)
    mean = flat.mean(0)
    centred = (flat - mean).astype(np.float64)
    # by the smaller Gram matrix, which is (n_fit, n_fit) for full patches
    if flat.shape[1] <= len(flat):
        values, vectors = np.linalg.eigh(centred.T @ centred)
        order = np.argsort(-values)
        values, directions = values[order], vectors[:, order]
    else:
        values, vectors = np.linalg.eigh(centred @ centred.T)
        order = np.argsort(-values)
        values = values[order]
        directions = centred.T @ vectors[:, order] / np.sqrt(np.maximum(values, 1e-12))
    kept = min(n_vertices, int(np.sum(values > values[0] * 1e-9)))
    directions = directions[:, :kept].astype(np.float32)

    def components(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        out = np.zeros((len(stimuli), n_vertices), dtype=np.float32)
        out[:, :kept] = (_flat(tokens) - mean) @ directions
        return out

    return components


def projection_source(n_vertices: int, *, seed: int = 0) -> ResponseSource:
    """A fixed random projection of the image's own patches to as many numbers as there are vertices.

    Parameters
    ----------
    n_vertices : int
        Outputs.
    seed : int, default 0
        Of the Gaussian weights.
    """
    weights: dict[int, np.ndarray] = {}

    def project(stimuli: StimulusSet, tokens: Any) -> np.ndarray:
        flat = _flat(tokens)
        width = flat.shape[1]
        if width not in weights:
            drawn = rng(seed, "projection", width).standard_normal(
                (width, n_vertices), dtype=np.float32
            )
            weights[width] = drawn / np.float32(np.sqrt(width))
        return flat @ weights[width]

    return project


def _flat(tokens: Any) -> np.ndarray:
    if tokens.patches is None:
        raise DataError(message("tokens with patches", "none", "use kind='patches' or 'pooled:G'"))
    return np.asarray(tokens.patches, dtype=np.float32).reshape(len(tokens.patches), -1)


def random_weight_encoder(encoder: Any, seed: int = 0) -> Any:
    """Return the brain encoder with random weights, on the trained backbone: never saw a response.

    Parameters
    ----------
    encoder : TrainedEncoder
        Gives the architecture. Weights are shuffled within each tensor, which keeps their
        distribution.
    seed : int, default 0
        Of the shuffle.

    Returns
    -------
    TrainedEncoder
    """
    module = copy.deepcopy(encoder.module)
    with torch.no_grad():
        for name, value in module.named_parameters():
            order = rng(seed, "random encoder", name).permutation(value.numel())
            value.copy_(value.flatten()[torch.from_numpy(order)].view_as(value))
    return dataclasses.replace(
        encoder,
        module=module,
        label=f"{encoder.label}, weights shuffled",
        hash=f"{encoder.hash}-shuffled-{seed}",
        scores=np.full_like(encoder.scores, np.nan),
        selection="none",
        history=[],
    )


def random_backbone_encoder(
    config: Any,
    study: Study,
    *,
    seed: int = 0,
    subject: str | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> Any:
    """Return a brain encoder trained on the responses, but on tokens of a backbone with random weights.

    Parameters
    ----------
    config : EncoderConfig
        As `train_brain_encoder`.
    study, subject, store, device
        As `train_brain_encoder`.
    seed : int, default 0
        Of the backbone's weights.

    Returns
    -------
    TrainedEncoder
        Reads its own tokens; the fusion goes on reading those of the trained backbone.
    """
    from bmfl_lab.training.encoder import train_brain_encoder

    spec = study.backbone
    device = pick_device(device)
    weights = f"random:{seed + 1000}"
    backbone = load_backbone(
        spec.name, weights=weights, image_size=spec.image_size, device=device, resize=spec.resize
    )
    untrained = dataclasses.replace(study, backbone=dataclasses.replace(spec, weights=weights))
    return train_brain_encoder(
        config, untrained, subject=subject, store=store, device=device, backbone=backbone
    )


def rank_statement(encoder: Any) -> str:
    """Say what a linear encoder's output can hold at most: nothing beyond the tokens that it reads.

    Parameters
    ----------
    encoder : TrainedEncoder
        Any kind.

    Returns
    -------
    str
        For a linear encoder the numerical rank of its weights beside the number of vertices. For
        others that no such bound follows from the architecture.
    """
    from bmfl_lab.models.encoders import LinearEncoder

    n_vertices = encoder.atlas.n_vertices
    linear = (
        encoder.module
        if isinstance(encoder.module, LinearEncoder)
        else getattr(encoder.module, "encoder", None)
    )
    if not isinstance(linear, LinearEncoder):
        return (
            f"The {encoder.build.get('encoder', encoder.build)['type']} encoder is not linear in its tokens: the rank of its {n_vertices} outputs is not "
            "bounded by the token width. What it adds is computed from the image's own patches all the same."
        )
    weight = linear.linear.weight.detach().double()
    rank, width = int(torch.linalg.matrix_rank(weight)), weight.shape[1]
    return (
        f"The encoder is linear: its {n_vertices} outputs have rank {rank}, at most the {width} token features that it "
        "reads. Its predicted responses hold nothing beyond those features, only a reweighting of them."
    )
