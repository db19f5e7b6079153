"""Response sources: controls that replace the predicted responses.

A response source is a function of a batch, ``source(tokens, ids) -> float32 (B, n_vertices)``, for
the argument `brain` of `train_fusion`; `tokens` is a `bmfl_lab.models.bmfl.TokenBatch`. Random
numbers belong to a stimulus id: an image has the same ones in training, in evaluation, in every
batch and in a later process. A source may have an attribute `identity`, a text that changes with
its responses: models that are trained on a source without one are never kept.
"""

from __future__ import annotations

import copy
import dataclasses
from collections.abc import Callable, Sequence
from dataclasses import dataclass

import numpy as np
import torch

from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.backbones.tokens import StoredTokens
from bmfl_lab.data import StimulusSet, Study
from bmfl_lab.errors import ConfigError, DataError, require
from bmfl_lab.models.bmfl import ResponseSource, TokenBatch
from bmfl_lab.models.encoders import LinearEncoder
from bmfl_lab.runtime import as_control, rng, seed_for
from bmfl_lab.training.batches import fingerprint
from bmfl_lab.training.context import local_device
from bmfl_lab.training.encoder import EncoderConfig, train_brain_encoder
from bmfl_lab.training.external import ExternalEncoder
from bmfl_lab.training.trained_encoder import TrainedEncoder


@dataclass(frozen=True, eq=False)
class EncoderSource:
    """Predict responses with a brain encoder, from the tokens that it was trained on.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        Brain encoder.
    device : "cpu" or "cuda"
        Device that predicts.
    """

    encoder: TrainedEncoder
    device: str = "cpu"

    @property
    def identity(self) -> str:
        """Hash of the encoder and of its weights."""
        state = {k: torch.atleast_1d(v) for k, v in self.encoder.module.state_dict().items()}
        return f"encoder {self.encoder.hash} {fingerprint(state)}"

    def __call__(self, tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        """Return predicted responses, float32 (B, n_vertices)."""
        return self.encoder.predict(tokens.encoder, device=self.device)

    def __eq__(self, other: object) -> bool:
        """Compare by the encoder, so that models of one encoder share its predictions."""
        return (
            isinstance(other, EncoderSource)
            and other.encoder is self.encoder
            and other.device == self.device
        )

    def __hash__(self) -> int:
        return hash((id(self.encoder), self.device))


@dataclass(frozen=True, eq=False)
class MixedSource:
    """Mix predicted responses with noise; made by `mixed_source`."""

    source: ResponseSource
    noise: ResponseSource
    mean: np.ndarray
    share: float

    @property
    def encoder(self) -> TrainedEncoder | None:
        """Brain encoder of the predicted part; its tokens must be in each `TokenBatch`."""
        return getattr(self.source, "encoder", None)

    @property
    def identity(self) -> str | None:
        """Identities of both parts, and the share; None if a part has none."""
        parts = [getattr(part, "identity", None) for part in (self.source, self.noise)]
        return None if None in parts else f"mixed {self.share!r} {parts}"

    def __call__(self, tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        """Return mixed responses, float32 (B, n_vertices)."""
        own, other = self.source(tokens, ids) - self.mean, self.noise(tokens, ids) - self.mean
        mixed = self.mean + self.share * own + np.sqrt(1 - self.share**2) * other
        return mixed.astype(np.float32)


@dataclass(frozen=True, eq=False)
class PermutedSource:
    """Predict responses from tokens whose features a fixed permutation has mixed up.

    The weights of the encoder stay as they are, with their spectrum and scale, but no vertex reads
    the features that it was fitted to. What is predicted is still a function of the image's own
    tokens, so that a fusion which gains as much from it does not gain from the fit to a brain.

    Parameters
    ----------
    source : EncoderSource
        Source of the encoder.
    seed : int, default 0
        Seed of the permutation, which all images and all kinds of tokens share.
    """

    source: EncoderSource
    seed: int = 0

    @property
    def encoder(self) -> TrainedEncoder:
        """Brain encoder; its tokens must be in each `TokenBatch`."""
        return self.source.encoder

    @property
    def identity(self) -> str:
        """Identity of the encoder's source, and the seed."""
        return f"permuted {self.seed} {self.source.identity}"

    def __call__(self, tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        """Return predicted responses, float32 (B, n_vertices)."""
        return self.source(tokens._replace(encoder=tuple(map(self._permute, tokens.encoder))), ids)

    def _permute(self, tokens: StoredTokens) -> StoredTokens:
        order = rng(self.seed, "permuted features").permutation(tokens.cls.shape[-1])
        arrays = {k: getattr(tokens, k) for k in ("cls", "mean", "patches")}
        changed = {k: np.asarray(a)[..., order] for k, a in arrays.items() if a is not None}
        return dataclasses.replace(tokens, **changed)


def noise_source(
    reference: np.ndarray, *, covariance: bool = False, seed: int = 0
) -> ResponseSource:
    """Return a source of noise: independent between images, always the same for one image.

    Parameters
    ----------
    reference : ndarray, shape (n_reference, n_vertices)
        Predicted responses whose statistics the noise has.
    covariance : bool, default False
        Give the noise the full covariance between vertices (of rank n_reference - 1 at most)
        instead of the variances alone.
    seed : int, default 0
        Seed of the noise.

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

    def noise(tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        width = len(mixing) if covariance else len(mean)
        rows = [rng(seed, "noise", str(i)).standard_normal(width, dtype=np.float32) for i in ids]
        z = np.stack(rows) if rows else np.zeros((0, width), dtype=np.float32)
        return (mean + (z @ mixing if covariance else z * scale)).astype(np.float32)

    noise.identity = f"noise {covariance} {seed} {_digest(reference)}"
    return noise


def _checked(reference: np.ndarray) -> np.ndarray:
    reference = np.asarray(reference, dtype=np.float64)
    require(
        reference.ndim == 2 and len(reference) >= 2 and np.isfinite(reference).all(),
        DataError,
        "finite reference responses of shape (n >= 2, n_vertices)",
        f"shape {reference.shape}",
        "predict them for the training images",
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
    """Return a source of predicted responses mixed with noise, of a given encoding accuracy.

    Parameters
    ----------
    source : callable
        Source of the predicted responses, e.g. an `EncoderSource`.
    reference : ndarray, shape (n_reference, n_vertices)
        Responses of `source` to the training images. The noise has their mean and covariance, and
        so has the mixture.
    accuracy : float
        Wanted encoding accuracy (mean r), from 0 to `reached`.
    reached : float, default 1
        Encoding accuracy of `source`, e.g. the mean of `TrainedEncoder.scores`.
    seed : int, default 0
        Seed of the noise.

    Raises
    ------
    ConfigError
        If the wanted accuracy is higher than the encoder's.

    Notes
    -----
    With ``a = accuracy / reached`` the mixture is ``mean + a (response - mean) + sqrt(1 - a^2)
    noise``: it correlates with the encoder's response by a, and so with measured responses by a
    times the encoder's own accuracy.
    """
    require(
        0 <= accuracy <= reached,
        ConfigError,
        f"an accuracy from 0 to {reached:.3f}, what the encoder reaches",
        accuracy,
        "ask for an accuracy in this range, or train a better encoder",
    )
    share = accuracy / reached if reached else 0.0
    mean = _checked(reference).mean(0)
    noise = noise_source(reference, covariance=True, seed=seed_for(seed, "mixed"))

    return MixedSource(source, noise, mean, share)


def other_image_source(
    donors: StimulusSet,
    donor_responses: np.ndarray,
    *,
    classes: Callable[[TokenBatch], np.ndarray] | None = None,
    seed: int = 0,
) -> ResponseSource:
    """Return a source of the predicted response to another image, never to the image itself.

    Parameters
    ----------
    donors : StimulusSet
        Labelled training images.
    donor_responses : ndarray, shape (n_donors, n_vertices)
        Predicted responses to the donors.
    classes : callable, optional
        ``classes(tokens) -> int (B,)``: predicted classes of a batch of images that are not donors,
        from its tokens. By default an image is paired with any donor.
    seed : int, default 0
        Seed of the pairing.

    Raises
    ------
    DataError
        If responses and donors differ in number; when called, if a class has no other image.

    Notes
    -----
    With `classes`, a training image is paired with an image of the same *label*, and every other
    image (validation, test, out of distribution) with one of the class that the classifier
    *predicts*, because a partner by label would disclose the true class. The control thus tests
    what a response of the right class adds when it carries no other information about the image;
    outside training its accuracy is limited by that of the classifier.
    """
    require(
        len(donor_responses) == len(donors),
        DataError,
        f"{len(donors)} donor responses",
        len(donor_responses),
        "predict them for the donors",
    )
    place = {str(i): k for k, i in enumerate(donors.ids)}
    labels = np.asarray(donors.labels)
    donor_responses = np.asarray(donor_responses, dtype=np.float32)

    def other(tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        own = np.asarray([place.get(str(i), -1) for i in ids], dtype=np.int64)
        wanted = None
        if classes is not None and len(own):
            predicted = np.asarray(classes(tokens)) if (own < 0).any() else np.full(len(own), -1)
            wanted = np.where(own >= 0, labels[own], predicted)
        chosen = np.empty(len(own), dtype=np.int64)
        for k, identifier in enumerate(ids):
            pool = np.arange(len(labels)) if wanted is None else np.flatnonzero(labels == wanted[k])
            pool = pool[pool != own[k]]
            require(
                len(pool),
                DataError,
                f"another training image for {identifier!r}",
                "none",
                "use more images per class",
            )
            chosen[k] = pool[rng(seed, "partner", str(identifier)).integers(len(pool))]
        return donor_responses[chosen]

    partner = "any" if classes is None else getattr(classes, "identity", None)
    other.identity = partner and (
        f"other image {partner} {seed} {donors.fingerprint()} {_digest(donor_responses)}"
    )
    return other


def pca_source(patches: np.ndarray, n_vertices: int) -> ResponseSource:
    """Return a source of principal components of the image's own patches, one per vertex.

    Parameters
    ----------
    patches : ndarray, shape (n_fit, P, D)
        Patch tokens of the images that the brain encoder was trained on, of the kind that the
        fusion reads.
    n_vertices : int
        Number of outputs; those beyond the rank of the fit (n_fit - 1, or P * D) are zero.
    """
    flat = _flat(patches)
    mean = flat.mean(0)
    centred = (flat - mean).astype(np.float64)
    # the smaller of the two Gram matrices is (n_fit, n_fit) for full patches
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

    def components(tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        out = np.zeros((len(ids), n_vertices), dtype=np.float32)
        out[:, :kept] = (_flat(tokens.patches) - mean) @ directions
        return out

    components.identity = f"pca {n_vertices} {_digest(patches)}"
    return components


def projection_source(n_vertices: int, *, seed: int = 0) -> ResponseSource:
    """Return a source of fixed random projections of the image's own patches, one per vertex.

    Parameters
    ----------
    n_vertices : int
        Number of outputs.
    seed : int, default 0
        Seed of the Gaussian weights.
    """
    weights: dict[int, np.ndarray] = {}

    def project(tokens: TokenBatch, ids: Sequence[str]) -> np.ndarray:
        flat = _flat(tokens.patches)
        width = flat.shape[1]
        if width not in weights:
            drawn = rng(seed, "projection", width).standard_normal(
                (width, n_vertices), dtype=np.float32
            )
            weights[width] = drawn / np.float32(np.sqrt(width))
        return flat @ weights[width]

    project.identity = f"projection {n_vertices} {seed}"
    return project


def _digest(array: np.ndarray) -> str:
    return fingerprint({"array": np.asarray(array)})


def _flat(patches: np.ndarray) -> np.ndarray:
    return np.asarray(patches, dtype=np.float32).reshape(len(patches), -1)


def random_weight_encoder(encoder: TrainedEncoder, seed: int = 0) -> TrainedEncoder:
    """Return the brain encoder with random weights, which was never trained on responses.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder whose architecture and backbone are kept. Its weights are shuffled within each
        tensor, which keeps their distribution.
    seed : int, default 0
        Seed of the shuffle.

    Returns
    -------
    TrainedEncoder
        Its scores are NaN.
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
    config: EncoderConfig,
    study: Study,
    *,
    seed: int = 0,
    subject: str | None = None,
    store: FeatureStore | None = None,
    device: str = "auto",
) -> TrainedEncoder:
    """Return an encoder trained on responses, on tokens of a backbone with random weights.

    Parameters
    ----------
    config : EncoderConfig
        Configuration of the encoder.
    study : Study
        Gives the subjects and the architecture of the backbone.
    seed : int, default 0
        Seed of the weights of the backbone.
    subject : str, optional
        Name of the subject; the first one by default.
    store : FeatureStore, optional
        Store of tokens; the one in the cache folder by default.
    device : "auto", "cpu" or "cuda", default "auto"
        Device that trains.

    Returns
    -------
    TrainedEncoder
        It reads tokens of the random backbone; a fusion reads those of the trained one.
    """
    spec = study.backbone
    device = local_device(device)
    weights = f"random:{seed + 1000}"
    with as_control():
        backbone = load_backbone(
            spec.name,
            weights=weights,
            image_size=spec.image_size,
            device=device,
            resize=spec.resize,
        )
    untrained = dataclasses.replace(study, backbone=dataclasses.replace(spec, weights=weights))
    return train_brain_encoder(
        config, untrained, subject=subject, store=store, device=device, backbone=backbone
    )


def rank_statement(encoder: TrainedEncoder) -> str:
    """Return a sentence on how much the output of an encoder can hold beyond the tokens it reads.

    Parameters
    ----------
    encoder : TrainedEncoder
        Encoder of any kind.

    Returns
    -------
    str
        For a linear encoder, the numerical rank of its weights beside the number of vertices. For
        other kinds, that the architecture sets no such bound.
    """
    if isinstance(encoder, ExternalEncoder):
        return "The responses were predicted elsewhere: nothing is known about their rank."
    n_vertices = encoder.atlas.n_vertices
    linear = encoder.module
    if not isinstance(linear, LinearEncoder):
        linear = getattr(encoder.module, "encoder", None)
    if not isinstance(linear, LinearEncoder):
        kind = encoder.build.get("encoder", encoder.build)["type"]
        return (
            f"The {kind} encoder is not linear in its tokens: the rank of its {n_vertices} outputs "
            "is not bounded by the token width. What it adds is computed from the image's own "
            "patches all the same."
        )
    weight = linear.linear.weight.detach().double()
    rank, width = int(torch.linalg.matrix_rank(weight)), weight.shape[1]
    return (
        f"The encoder is linear: its {n_vertices} outputs have rank {rank}, at most the {width} "
        "token features that it reads. Its predicted responses hold nothing beyond those features, "
        "only a reweighting of them."
    )
