"""Align a vision network with a subject's responses (ReAlnet-fMRI), with its controls.

Shape suffixes: B batch, C classes or channels, E response features.
"""

from __future__ import annotations

import copy
import weakref
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Literal

import numpy as np
import torch
from PIL import Image
from torch import Tensor, nn
from torch.nn import functional

from bmfl_lab import config as configs
from bmfl_lab.backbones import CORnetS, Preprocess, load_backbone
from bmfl_lab.backbones.cornet import load_cornet
from bmfl_lab.backbones.protocol import MEAN, STD
from bmfl_lab.backbones.weights import hash_state
from bmfl_lab.data import StimulusSet, Study, Subject
from bmfl_lab.errors import ConfigError, DataError, message, require
from bmfl_lab.losses.alignment import alignment_loss
from bmfl_lab.models.alignment import AlignedNetwork, AlignmentHead, TokenNetwork
from bmfl_lab.runtime import note_backbone, progress, rng, seed_for
from bmfl_lab.training.checkpoint import matching_tensors, read_bundle, write_bundle
from bmfl_lab.training.context import local_device
from bmfl_lab.training.loop import FitResult, LoopConfig, fit

STEM = "aligned"
WHAT = "aligned model"


@dataclass(frozen=True)
class AlignConfig:
    """Choices of an alignment run.

    Parameters
    ----------
    backbone : str, default "cornet_s"
        "cornet_s", or a name that `bmfl_lab.backbones.load_backbone` accepts.
    weights : str, optional
        Checkpoint of the original network. Without one, CORnet-S (or the linear classifier of
        another backbone) is first trained on the study's labelled images.
    width : int, default 64
        Channels of CORnet-S's V1; 64 is the published network.
    blocks : tuple of int, default (2, 5, 8, 11)
        Blocks of a token backbone that the head reads. In CORnet-S it always reads V1, V2, V4 and
        IT.
    image_size : int, default 224
        Side of the input in pixels.
    pool : int, optional
        Side to which feature maps are averaged before the head; default: no averaging.
    n_components : int, default 1024
        Number of response features (principal components).
    rois : tuple of str, default ("all",)
        ROIs or groups whose vertices are used.
    beta : float, default 100
        Weight of the alignment in the loss.
    freeze : bool, default False
        Train the head alone; the network, with the statistics of its normalisation, stays as it is.
    contrast : {"matrix", "detached", "none"}, default "matrix"
        Contrastive term, see `bmfl_lab.losses.alignment_loss`.
    targets : {"original", "soft", "labels"}, default "original"
        Targets of the classification: argmax or softmax of the frozen original network, or the
        labels of the stimuli.
    control : {"none", "no_fmri", "shuffled", "noise"}, default "none"
        "no_fmri" sets beta to 0; "shuffled" pairs images with responses to other images of the same
        split; "noise" replaces the response features by Gaussian values.
    selection : {"val_loss", "last"}, default "val_loss"
        Epoch that is kept. Test images never take part.
    pretrain : LoopConfig
        Training of the original network, used without `weights`.
    loop : LoopConfig
        Training of the alignment.
    seed : int, default 0
        Seed of initial weights and controls.

    References
    ----------
    Lu & Wang (2025), Cognitive Neurodynamics 19:61 (arXiv:2407.10414), and its released code:
    CORnet-S, 1,024 components, beta 100, argmax of the original network as target, Adam with
    learning rate 2e-5, batch size 16, 30 epochs. The controls are our choice.
    """

    backbone: str = "cornet_s"
    weights: str | None = None
    width: int = 64
    blocks: tuple[int, ...] = (2, 5, 8, 11)
    image_size: int = 224
    pool: int | None = None
    n_components: int = 1024
    rois: tuple[str, ...] = ("all",)
    beta: float = 100.0
    freeze: bool = False
    contrast: Literal["matrix", "detached", "none"] = "matrix"
    targets: Literal["original", "soft", "labels"] = "original"
    control: Literal["none", "no_fmri", "shuffled", "noise"] = "none"
    selection: Literal["val_loss", "last"] = "val_loss"
    pretrain: LoopConfig = field(default_factory=lambda: LoopConfig(epochs=10, batch_size=16))
    loop: LoopConfig = field(
        default_factory=lambda: LoopConfig(
            epochs=30,
            batch_size=16,
            lr=2e-5,
            weight_decay=0.0,
            warmup=0.0,
            clip_norm=0.0,
            optimiser="adam",
            schedule="constant",
        )
    )
    seed: int = 0


def published(weights: str | None = None, **changes: object) -> AlignConfig:
    """Return the released choices, except that test images never select the epoch.

    Parameters
    ----------
    weights : str, optional
        Checkpoint of CORnet-S with 1,000 classes.
    **changes
        Other fields of `AlignConfig`.

    Notes
    -----
    The released notebook selects the epoch on test images; here a validation split does. In the
    released code no gradient flows through the contrastive term; ``contrast="detached"`` trains in
    that way.

    References
    ----------
    See `AlignConfig`.
    """
    return configs.replace(AlignConfig(weights=weights), **changes)


def tiny(**changes: object) -> AlignConfig:
    """Return choices for tests and the planted study: CORnet-S of width 4 at 56 pixels.

    Parameters
    ----------
    **changes
        Other fields of `AlignConfig`.
    """
    base = AlignConfig(
        width=4,
        image_size=56,
        n_components=32,
        beta=10.0,
        pretrain=LoopConfig(epochs=10, batch_size=16, lr=3e-3),
        loop=LoopConfig(epochs=6, batch_size=32, lr=3e-3, weight_decay=0.0, optimiser="adam"),
    )
    return configs.replace(base, **changes)


def small(**changes: object) -> AlignConfig:
    """Return choices for the demo on a laptop: CORnet-S of width 8 at 48 pixels, minutes.

    Parameters
    ----------
    **changes
        Other fields of `AlignConfig`.
    """
    base = AlignConfig(
        width=8,
        image_size=48,
        n_components=128,
        beta=10.0,
        pretrain=LoopConfig(epochs=10, batch_size=64, lr=2e-3),
        loop=LoopConfig(epochs=3, batch_size=32, lr=1e-3, weight_decay=0.0, optimiser="adam"),
    )
    return configs.replace(base, **changes)


@dataclass(frozen=True)
class ResponseFeatures:
    """Principal components of z-scored responses.

    Parameters
    ----------
    mean, scale : ndarray of float32, shape (n_vertices,)
        Mean and standard deviation of the training responses. The scale of a constant vertex is 1;
        it then contributes nothing.
    components : ndarray of float32, shape (n_components, n_vertices)
        Orthonormal directions by decreasing variance.
    gain : float
        Factor of all features that gives them a mean square of 1 over the training images.
    explained : float
        Share of the training variance that the components hold.
    n_constant : int, default 0
        Number of vertices with constant training responses.
    """

    mean: np.ndarray
    scale: np.ndarray
    components: np.ndarray
    gain: float
    explained: float
    n_constant: int = 0

    def transform(self, responses: np.ndarray) -> np.ndarray:
        """Return the features of responses.

        Parameters
        ----------
        responses : ndarray, shape (n, n_vertices)
            Responses of the vertices on which the features were fitted.

        Returns
        -------
        ndarray of float32, shape (n, n_components)

        Raises
        ------
        DataError
            If the number of vertices differs.
        """
        require(
            np.ndim(responses) == 2 and np.shape(responses)[1] == len(self.mean),
            DataError,
            f"responses of shape (n, {len(self.mean)})",
            np.shape(responses),
            "use the vertices on which the features were fitted",
        )
        z = (np.asarray(responses, dtype=np.float32) - self.mean) / self.scale
        return (z @ self.components.T * np.float32(self.gain)).astype(np.float32)


def fit_response_features(responses: np.ndarray, n_components: int) -> ResponseFeatures:
    """Fit z-scores and principal components on training responses.

    Parameters
    ----------
    responses : ndarray, shape (n_train, n_vertices)
        Responses to the training images, averaged over trials.
    n_components : int
        Number of features.

    Returns
    -------
    ResponseFeatures

    Raises
    ------
    DataError
        If values are not finite, or the rank of the responses is below `n_components`.

    Notes
    -----
    The released data are 1,024 components of trial-averaged responses. Fitting them on the training
    images only, z-scoring the vertices first, and applying one gain are our choice.

    References
    ----------
    Lu & Wang (2025), Cognitive Neurodynamics 19:61 (arXiv:2407.10414).
    """
    y = np.asarray(responses, dtype=np.float64)
    require(
        y.ndim == 2 and np.isfinite(y).all(),
        DataError,
        "finite responses of shape (n_train, n_vertices)",
        f"shape {y.shape}",
        "drop NaN vertices first",
    )
    mean, scale = y.mean(axis=0), y.std(axis=0)
    constant = scale <= 1e-12 * np.maximum(np.abs(mean), 1e-30)
    scale = np.where(constant, 1, scale)
    z = np.where(constant, 0, (y - mean) / scale)
    _, values, directions = np.linalg.svd(z, full_matrices=False)
    rank = int(np.sum(values > values.max(initial=0) * max(z.shape) * np.finfo(np.float64).eps))
    if not 1 <= n_components <= rank:
        size = f"{y.shape[0]} training images x {y.shape[1]} vertices"
        raise DataError(
            message(
                f"1 to {rank} components (the rank of {size})",
                str(n_components),
                f"set n_components={rank}, or use more training images"
                if rank
                else "use responses that differ between images",
            )
        )
    power = float(np.sum(values[:n_components] ** 2))
    return ResponseFeatures(
        mean=mean.astype(np.float32),
        scale=scale.astype(np.float32),
        components=directions[:n_components].astype(np.float32),
        gain=float(np.sqrt(len(y) * n_components / power)),
        explained=power / float(np.sum(values**2)),
        n_constant=int(constant.sum()),
    )


# Pixels of the last set: several networks are evaluated on one set in turn, and decoding shifted
# images is slow. Each entry is (weak reference to the set, image size, preprocessing, pixels).
_last_pixels: list[tuple[weakref.ref, int, Preprocess | None, np.ndarray]] = []


def read_pixels(
    stimuli: StimulusSet, image_size: int, preprocess: Preprocess | None = None
) -> np.ndarray:
    """Return images as pixels; the last set is kept in memory.

    Parameters
    ----------
    stimuli : StimulusSet
        The images.
    image_size : int
        Side of the result in pixels.
    preprocess : Preprocess, optional
        Crops the images as a backbone does. Without it they are resized to the square and lose
        their aspect ratio, as for CORnet-S in ReAlnet.

    Returns
    -------
    ndarray of uint8, shape (n_stimuli, 3, image_size, image_size)
    """
    for known, *choices, pixels in _last_pixels:
        if known() is stimuli and choices == [image_size, preprocess]:
            return pixels
    out = np.empty((len(stimuli), 3, image_size, image_size), dtype=np.uint8)
    for i in progress(range(len(stimuli)), f"{stimuli.name} images"):
        image = stimuli.image(i)
        if preprocess is not None:
            image = preprocess.crop(image)
        elif image.shape[:2] != (image_size, image_size):
            image = np.asarray(
                Image.fromarray(image).resize((image_size, image_size), Image.Resampling.BILINEAR)
            )
        out[i] = image.transpose(2, 0, 1)
    _last_pixels[:] = [(weakref.ref(stimuli), image_size, preprocess, out)]
    return out


def normalise(pixels: Tensor) -> Tensor:
    """Return uint8 images as float32, normalised by ImageNet's mean and standard deviation.

    Parameters
    ----------
    pixels : Tensor of uint8, shape (B, 3, H, W)
        Images.

    Returns
    -------
    Tensor of float32, shape (B, 3, H, W)
    """
    mean, std = (torch.tensor(v, device=pixels.device).view(1, 3, 1, 1) for v in (MEAN, STD))
    return (pixels.float() / 255 - mean) / std


@dataclass
class TrainedAligned:
    """A network before or after alignment.

    Parameters
    ----------
    network : nn.Module
        ``network(images, blocks=True) -> (logits, {name: map})``.
    head : AlignmentHead or None
        Head that predicts response features; None for the original network.
    config : AlignConfig
        Choices of the run.
    n_classes : int
        Number of logits.
    name : str, default "original"
        "original", "aligned", or the name of the control.
    label : str
        One line for figures; it says *simulated* if the responses are.
    features : ResponseFeatures or None
        Response features that `responses` predicts.
    history : list of dict
        One dict per epoch.
    selection : str
        Rule by which the epoch was chosen.
    preprocess : Preprocess or None
        Cropping of the images; None resizes them to the square.
    """

    network: nn.Module
    head: AlignmentHead | None
    config: AlignConfig
    n_classes: int
    name: str = "original"
    label: str = ""
    features: ResponseFeatures | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    selection: str = "none"
    preprocess: Preprocess | None = None

    @torch.no_grad()
    def _outputs(self, stimuli: StimulusSet) -> Iterator[tuple[Tensor, dict[str, Tensor]]]:
        """Yield the logits and the blocks of each batch."""
        pixels = read_pixels(stimuli, self.config.image_size, self.preprocess)
        self.network.eval()
        device = next(self.network.parameters()).device
        for batch in torch.from_numpy(pixels).split(64):
            yield self.network(normalise(batch.to(device)), blocks=True)

    def logits(self, stimuli: StimulusSet) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes)."""
        return _joined([logits for logits, _ in self._outputs(stimuli)])

    @torch.no_grad()
    def responses(self, stimuli: StimulusSet) -> np.ndarray:
        """Return predicted response features, float32 (n_stimuli, n_components).

        Raises
        ------
        ConfigError
            If this is the original network, which predicts none.
        """
        require(
            self.head is not None,
            ConfigError,
            "an aligned network",
            "the original, without a head",
            "use the model that train_aligned returns",
        )
        self.head.eval()
        return _joined([self.head(blocks) for _, blocks in self._outputs(stimuli)])

    @property
    def seed(self) -> int:
        """Seed of the run."""
        return self.config.seed

    def pooled(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the last block averaged over space, float32 (n_stimuli, channels)."""
        last = (list(blocks.values())[-1] for _, blocks in self._outputs(stimuli))
        return _joined([block.float().mean((2, 3)).cpu() for block in last])

    def activations(self, stimuli: StimulusSet) -> dict[str, np.ndarray]:
        """Return the output of every block by its name.

        Returns
        -------
        dict of str to ndarray of float32, shape (n_stimuli, channels * height * width)
        """
        batches = [
            {name: block.flatten(1).float().cpu() for name, block in blocks.items()}
            for _, blocks in self._outputs(stimuli)
        ]
        return {name: _joined([batch[name] for batch in batches]) for name in batches[0]}

    def save(self, folder: str | Path) -> Path:
        """Write network, head and choices into a folder and return the path of the manifest.

        Parameters
        ----------
        folder : str or Path
            Folder of ``aligned.safetensors`` and ``aligned.json``; created if missing.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        tensors = {f"network.{k}": v for k, v in self.network.state_dict().items()}
        if self.head is not None:
            tensors |= {f"head.{k}": v for k, v in self.head.state_dict().items()}
        features = vars(self.features) if self.features is not None else {}
        arrays = {k: v for k, v in features.items() if isinstance(v, np.ndarray)}
        tensors |= {f"features.{k}": torch.from_numpy(v) for k, v in arrays.items()}
        manifest = {
            "config": configs.to_dict(self.config),
            "n_classes": self.n_classes,
            "name": self.name,
            "label": self.label,
            "history": self.history,
            "selection": self.selection,
            "features": {k: v for k, v in features.items() if k not in arrays},
        }
        return write_bundle(folder, STEM, tensors, manifest, what=WHAT)


def _joined(batches: list[Tensor]) -> np.ndarray:
    return torch.cat(batches).float().cpu().numpy()


def load_aligned(folder: str | Path) -> TrainedAligned:
    """Read a model that `TrainedAligned.save` wrote.

    Parameters
    ----------
    folder : str or Path
        Folder of the model.

    Returns
    -------
    TrainedAligned

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or if the manifest, which is read before any tensor,
        describes something else.
    """
    tensors, manifest = read_bundle(folder, STEM, what=WHAT)
    config = configs.from_dict(AlignConfig, manifest["config"])

    def part(prefix: str) -> dict[str, Tensor]:
        return {k.removeprefix(prefix): v for k, v in tensors.items() if k.startswith(prefix)}

    network, sizes, preprocess = _new_network(config, manifest["n_classes"])
    with matching_tensors(folder):
        network.load_state_dict(part("network."))
    head, features = None, None
    if part("head."):
        head = _new_head(config, sizes)
        with matching_tensors(folder):
            head.load_state_dict(part("head."))
        arrays = {k: v.numpy() for k, v in part("features.").items()}
        features = ResponseFeatures(**arrays, **manifest["features"])
    return TrainedAligned(
        network=network.eval(),
        head=head,
        config=config,
        features=features,
        preprocess=preprocess,
        **{k: manifest[k] for k in ("n_classes", "name", "label", "history", "selection")},
    )


def _new_head(config: AlignConfig, sizes: Mapping[str, tuple[int, int, int]]) -> AlignmentHead:
    return AlignmentHead(sizes, n_responses=config.n_components, pool=config.pool)


def _new_network(
    config: AlignConfig, n_classes: int
) -> tuple[nn.Module, dict[str, tuple[int, int, int]], Preprocess | None]:
    """Return a network with initial weights, the sizes (C, H, W) of its blocks and its cropping."""
    if config.backbone == "cornet_s":
        network = CORnetS(n_classes=n_classes, width=config.width)
        return network, network.sizes(config.image_size), None
    backbone = load_backbone(config.backbone, weights=config.weights, image_size=config.image_size)
    backbone.requires_grad_(True)
    side = config.image_size // backbone.patch_size
    sizes = {f"block{i}": (backbone.width, side, side) for i in config.blocks}
    network = TokenNetwork(
        backbone, blocks=config.blocks, width=backbone.width, n_classes=n_classes
    )
    return network, sizes, backbone.preprocess


def prepare_original(config: AlignConfig, study: Study, *, device: str = "auto") -> TrainedAligned:
    """Return the network before alignment: loaded, or trained on the study's labelled images.

    Parameters
    ----------
    config : AlignConfig
        For CORnet-S, `weights` names a checkpoint with 1,000 classes. Without it the network (or
        the linear classifier of a token backbone) is trained on the study's own classes.
    study : Study
        Study with labelled images.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the training.

    Returns
    -------
    TrainedAligned
        Model without a head.

    Raises
    ------
    CheckpointError
        If the checkpoint does not fit the network.
    """
    if config.backbone == "cornet_s" and config.weights is not None:
        network = load_cornet(config.weights, width=config.width)
        name = Path(config.weights).name
        note_backbone("CORnet-S", f"weights of {name}", hash_state(network.state_dict()))
        return TrainedAligned(network, None, config, 1000, label=f"CORnet-S, {name}")
    n_classes = len(study.class_names)
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "original"))
        network, _, preprocess = _new_network(config, n_classes)
    images, whole = study.set("train"), config.backbone == "cornet_s"
    x = torch.from_numpy(read_pixels(images, config.image_size, preprocess))
    data = {
        "x": x if whole else _class_tokens(network, x, device),
        "labels": torch.from_numpy(np.asarray(images.labels)),
    }

    def loss_fn(module: nn.Module, batch: Mapping[str, Tensor]) -> tuple[Tensor, dict[str, Tensor]]:
        logits = module(normalise(batch["x"]) if whole else batch["x"])
        return functional.cross_entropy(logits, batch["labels"]), {}

    result = fit(
        network if whole else network.decoder,
        loss_fn,
        data,
        config.pretrain,
        device=device,
        what="original network",
    )
    network.requires_grad_(True)
    if whole:  # any other network reads a backbone, which is noted when it is loaded
        source = f"trained from scratch on {len(images)} labelled images of {study.name}"
        note_backbone(f"CORnet-S of width {config.width}", source, "")
    return TrainedAligned(
        network.eval(),
        None,
        config,
        n_classes,
        label=f"{config.backbone} trained on {len(images)} labelled images of {study.name}",
        history=result.history,
        selection=result.selection,
        preprocess=preprocess,
    )


def _class_tokens(network: TokenNetwork, pixels: Tensor, device: str) -> Tensor:
    """Return the class tokens (n, D) that the linear classifier reads.

    One pass suffices, because the backbone is frozen here and images are not augmented.
    """
    where = local_device(device)
    network.to(where)
    with torch.no_grad():
        parts = [
            network.backbone(normalise(p.to(where)), blocks=network.blocks)[-1].cls
            for p in pixels.split(64)
        ]
    return torch.cat(parts).float().cpu()


def train_aligned(
    config: AlignConfig,
    study: Study,
    *,
    subject: str | Subject | None = None,
    original: TrainedAligned | None = None,
    folder: str | Path | None = None,
    device: str = "auto",
) -> TrainedAligned:
    """Train a vision network to predict a subject's responses while it keeps classifying.

    Parameters
    ----------
    config : AlignConfig
        Choices; `published`, `small` and `tiny` return complete ones.
    study : Study
        Study of the subject; without weights its labelled images train the original network.
    subject : str or Subject, optional
        Subject whose responses are used; default: the study's first subject.
    original : TrainedAligned, optional
        Network from which training starts and whose classification is the target; default: the
        result of `prepare_original`.
    folder : str or Path, optional
        Folder of the training's checkpoints; default: none are written.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of the training.

    Returns
    -------
    TrainedAligned
        Aligned network with its head.

    Raises
    ------
    ConfigError
        If a batch holds fewer than two stimuli.
    DataError
        If the subject has no training or validation images, or the rank of the responses is too
        low.

    Notes
    -----
    The network runs once per step. The frozen original runs only once in all, because images are
    not augmented.

    References
    ----------
    Lu & Wang (2025), Cognitive Neurodynamics 19:61 (arXiv:2407.10414).
    """
    require(
        config.loop.batch_size >= 2,
        ConfigError,
        "batches of at least 2 stimuli, to contrast between",
        f"batch_size={config.loop.batch_size}",
        "set batch_size=16 in the loop, as published",
    )
    subject = subject if isinstance(subject, Subject) else study.subject(subject)
    train, val = subject.rows("train"), subject.rows("val")
    require(
        len(val) >= 2 or config.selection != "val_loss",
        DataError,
        f"validation stimuli of {subject.name!r}",
        len(val),
        "move some of the training stimuli to a split 'val', or set selection='last'",
    )
    original = original or prepare_original(config, study, device=device)
    vertices = subject.atlas.select(config.rois)
    features = fit_response_features(
        np.asarray(subject.responses[train])[:, vertices], config.n_components
    )
    rows = np.concatenate([train, val])
    splits = (np.arange(len(train)), np.arange(len(train), len(rows)))
    measured = features.transform(np.asarray(subject.responses[rows])[:, vertices])
    stimuli = subject.stimuli.subset(rows)
    data = {
        "pixels": torch.from_numpy(read_pixels(stimuli, config.image_size, original.preprocess)),
        "responses": torch.from_numpy(_controlled(config, measured, splits)),
        "targets": torch.from_numpy(_targets(config, original, stimuli)),
    }
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed_for(config.seed, "alignment head"))
        head = _new_head(config, _sizes(original, data["pixels"][:1]))
    trained = copy.deepcopy(original.network).requires_grad_(not config.freeze)
    network = AlignedNetwork(trained, head, frozen=config.freeze)
    result = _fit(config, network, data, splits, study, folder, device)
    return TrainedAligned(
        network.backbone.eval(),
        head.eval(),
        config,
        original.n_classes,
        name="aligned" if config.control == "none" else config.control,
        label=_label(config.control, subject),
        features=features,
        history=result.history,
        selection=result.selection,
        preprocess=original.preprocess,
    )


def _label(control: str, subject: Subject) -> str:
    if control == "no_fmri":
        return "same recipe without fMRI"
    source = f"{subject.name} ({subject.kind})"
    return f"aligned with {source}" if control == "none" else f"{control} responses of {source}"


def _targets(config: AlignConfig, original: TrainedAligned, stimuli: StimulusSet) -> np.ndarray:
    """Return the targets of the classification: classes (n,), or probabilities (n, n_classes)."""
    if config.targets == "labels":
        labels = np.asarray(stimuli.labels)
        require(
            labels.min() >= 0 and labels.max() < original.n_classes,
            DataError,
            f"labels 0..{original.n_classes - 1} for the subject's images",
            f"{labels.min()}..{labels.max()}",
            "use targets='original', which needs no labels",
        )
        return labels
    logits = original.logits(stimuli)
    if config.targets == "soft":
        return torch.from_numpy(logits).softmax(1).numpy()
    return logits.argmax(axis=1)


def _controlled(
    config: AlignConfig, features: np.ndarray, splits: tuple[np.ndarray, ...]
) -> np.ndarray:
    if config.control == "noise":
        return rng(config.seed, "noise control").standard_normal(features.shape).astype(np.float32)
    if config.control == "shuffled":
        features = features.copy()
        for i, rows in enumerate(splits):
            features[rows] = features[rng(config.seed, "shuffled control", i).permutation(rows)]
    return features


def _sizes(original: TrainedAligned, pixels: Tensor) -> dict[str, tuple[int, int, int]]:
    device = next(original.network.parameters()).device
    with torch.no_grad():
        _, blocks = original.network.eval()(normalise(pixels.to(device)), blocks=True)
    return {k: tuple(v.shape[1:]) for k, v in blocks.items()}


def _fit(
    config: AlignConfig,
    network: nn.Module,
    data: Mapping[str, Tensor],
    splits: tuple[np.ndarray, ...],
    study: Study,
    folder: str | Path | None,
    device: str,
) -> FitResult:
    beta = 0.0 if config.control == "no_fmri" else config.beta
    train, val = ({k: v[torch.from_numpy(rows)] for k, v in data.items()} for rows in splits)

    def loss_of(
        batch: Mapping[str, Tensor], logits_BC: Tensor, predicted_BE: Tensor
    ) -> tuple[Tensor, dict[str, Tensor]]:
        return alignment_loss(
            logits_BC,
            batch["targets"],
            predicted_BE,
            batch["responses"],
            beta=beta,
            contrast=config.contrast,
        )

    def validate(module: nn.Module) -> dict[str, float]:
        kind = next(module.parameters()).device
        outputs = [module(normalise(part.to(kind))) for part in val["pixels"].split(64)]
        loss, parts = loss_of(val, *(torch.cat(o).float().cpu() for o in zip(*outputs)))
        return {"val_loss": float(loss)} | {f"val_{k}": float(v) for k, v in parts.items()}

    return fit(
        network,
        lambda module, batch: loss_of(batch, *module(normalise(batch["pixels"]))),
        train,
        config.loop,
        validate=validate if len(splits[1]) >= 2 else None,
        select=("val_loss", "min") if config.selection == "val_loss" else None,
        folder=folder,
        device=device,
        what=f"alignment ({config.control})" if config.control != "none" else "alignment",
        manifest={"study": study.fingerprint(), "config": configs.to_dict(config)}
        if folder
        else None,
    )
