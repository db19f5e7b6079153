"""Trained brain encoders: prediction from tokens, images or pixels, ensembles, and files.

Shape suffixes: B batch, P patches, D token width, V vertices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone, FeatureStore, StoredTokens
from bmfl_lab.backbones.tokens import extract_many, read_tokens, stored_patches
from bmfl_lab.data import Atlas, StimulusSet, Subject
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import (
    CheckpointError,
    ConfigError,
    DataError,
    message,
    require,
    require_known,
)
from bmfl_lab.files import sha256_json
from bmfl_lab.models.encoders import KINDS, ROIQueryEncoder, build_encoder, ensemble_weights
from bmfl_lab.models.protocols import BrainEncoder
from bmfl_lab.training.checkpoint import (
    atlas_from_tensors,
    atlas_to_tensors,
    matching_tensors,
    read_bundle,
    write_bundle,
)
from bmfl_lab.training.context import load_spec, local_device, pinned

STEM = "encoder"
WHAT = "brain encoder"


def token_source(manifest: Mapping[str, Mapping]) -> dict[str, Any]:
    """Return the fields that tokens must share with those that an encoder was trained on.

    Parameters
    ----------
    manifest : mapping
        `StoredTokens.manifest`.

    Returns
    -------
    dict
        Identity of the backbone, kind of tokens, block and features.
    """
    return {k: manifest["identity"][k] for k in ("backbone", "kind", "block", "features")}


def backbone_digest(described: Mapping[str, Any]) -> str:
    """Return a hash of the description of a backbone; the label of its weights is left out.

    Parameters
    ----------
    described : mapping
        Result of ``Backbone.describe()``, or the entry "backbone" of a token source.
    """
    return sha256_json({k: v for k, v in described.items() if k != "weights_label"})


def reads_backbone(encoder: BrainEncoder, backbone: Backbone) -> bool:
    """Return whether an encoder was trained on the tokens of a given backbone.

    Parameters
    ----------
    encoder : BrainEncoder
        The encoder.
    backbone : Backbone
        The backbone, which may carry another label of the same weights.
    """
    own = backbone_digest(backbone.describe())
    return all(backbone_digest(source["backbone"]) == own for source in encoder.sources)


def shared_tokens(backbone: Backbone, encoder: BrainEncoder | None) -> list[tuple[str, int]]:
    """Return the tokens that an encoder reads from a given backbone.

    Parameters
    ----------
    backbone : Backbone
        Backbone whose one pass is to compute these tokens together with others.
    encoder : BrainEncoder or None
        The encoder; None reads nothing.

    Returns
    -------
    list of (str, int)
        Kind and block; empty if the encoder reads another backbone.
    """
    if not getattr(encoder, "sources", ()) or not reads_backbone(encoder, backbone):
        return []
    return [(s["kind"], s["block"]) for s in encoder.sources if s["features"] == "tokens"]


class _Predicts:
    """Prediction from tokens and images, shared by `TrainedEncoder` and `EncoderEnsemble`."""

    module: nn.Module
    atlas: Atlas
    backbone: BackboneSpec
    sources: tuple[Mapping[str, Any], ...]

    def load_backbone(self, device: str = "auto") -> Backbone:
        """Return the backbone of the encoder's tokens.

        Parameters
        ----------
        device : {"auto", "cpu", "cuda"}, default "auto"
            Device of the backbone.

        Raises
        ------
        CheckpointError
            If the weights that are loaded are not those of the training, e.g. because the encoder
            was trained on a backbone that was passed as an object.
        """
        trained = self.sources[0]["backbone"]["weights_hash"] if self.sources else ""
        backbone = load_spec(pinned(self.backbone, trained), device)
        self._refuse_other_weights(backbone)
        return backbone

    def _refuse_other_weights(self, backbone: Backbone) -> None:
        for source in self.sources:
            trained = source["backbone"]
            require(
                trained["weights_hash"] == backbone.weights_hash,
                CheckpointError,
                f"{trained['name']} with weights {trained['weights_hash'][:12]}, on which this "
                "encoder was trained",
                f"{backbone.name} with weights {backbone.weights_hash[:12]}",
                "pass the backbone of the training as backbone=...",
            )

    def to(self, device: str) -> _Predicts:
        """Move the encoder to a device and return it."""
        self.module.to(device)
        return self

    def tokens(
        self,
        stimuli: StimulusSet,
        *,
        store: FeatureStore | None = None,
        backbone: Backbone | None = None,
        device: str = "auto",
    ) -> tuple[StoredTokens, ...]:
        """Return the tokens of images that this encoder reads.

        Parameters
        ----------
        stimuli : StimulusSet
            Images.
        store : FeatureStore, optional
            Store that keeps the tokens; without one they are extracted into memory.
        backbone : Backbone, optional
            The encoder's backbone, if it is already loaded.
        device : {"auto", "cpu", "cuda"}, default "auto"
            Device of the backbone that is loaded otherwise.

        Returns
        -------
        tuple of StoredTokens
            One per entry of `sources`.
        """
        backbone = backbone or self.load_backbone(device)
        get = extract_many if store is None else store.get_many
        stored: dict[tuple[str, str, int], StoredTokens] = {}
        for features in dict.fromkeys(s["features"] for s in self.sources):
            mine = [s for s in self.sources if s["features"] == features]
            wanted = list(dict.fromkeys((s["kind"], s["block"]) for s in mine))
            parts = get(backbone, stimuli, wanted, features=features)
            stored |= {(features, *w): part for w, part in zip(wanted, parts)}
        return tuple(stored[s["features"], s["kind"], s["block"]] for s in self.sources)

    def check(self, stored: Sequence[StoredTokens]) -> None:
        """Refuse tokens other than those the encoder was trained on.

        Parameters
        ----------
        stored : sequence of StoredTokens
            Tokens of any stimuli.

        Raises
        ------
        DataError
            If the backbone, its weights, the kind, the block or the number of tokens differs; the
            error says which.
        """
        require(
            len(stored) == len(self.sources),
            DataError,
            f"tokens of {len(self.sources)} block(s)",
            len(stored),
            "get them with encoder.tokens(...)",
        )
        for wanted, found in zip(self.sources, (token_source(s.manifest) for s in stored)):
            wrong = [k for k in wanted if wanted[k] != found[k]]
            require(
                not wrong,
                DataError,
                "the tokens this encoder was trained on",
                "; ".join(f"{k} {found[k]!r} instead of {wanted[k]!r}" for k in wrong),
                "extract them with encoder.tokens(...)",
            )

    def predict(
        self,
        tokens: StoredTokens | Sequence[StoredTokens],
        *,
        batch_size: int = 64,
        device: str = "auto",
    ) -> np.ndarray:
        """Predict responses from stored tokens.

        Parameters
        ----------
        tokens : StoredTokens or sequence of StoredTokens
            Tokens of the same stimuli, one per entry of `sources`, as `tokens` returns them.
        batch_size : int, default 64
            Number of stimuli per batch.
        device : {"auto", "cpu", "cuda"}, default "auto"
            Device of the computation.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_vertices)

        Raises
        ------
        DataError
            If the tokens are not those the encoder was trained on, see `check`.
        """
        stored = (tokens,) if isinstance(tokens, StoredTokens) else tuple(tokens)
        self.check(stored)
        where = local_device(device)
        self.to(where).module.eval()
        arrays = [stored_patches([s]) for s in stored]
        out = np.empty((len(stored[0]), self.atlas.n_vertices), np.float32)
        with torch.inference_mode():
            for start in range(0, len(out), batch_size):
                rows = slice(start, start + batch_size)
                batch = [
                    torch.as_tensor(np.array(a[rows], np.float32), device=where) for a in arrays
                ]
                out[rows] = self.respond(batch).float().cpu().numpy()
        return out

    def predict_stimuli(
        self,
        stimuli: StimulusSet,
        *,
        store: FeatureStore | None = None,
        backbone: Backbone | None = None,
        device: str = "auto",
    ) -> np.ndarray:
        """Predict responses to images.

        Parameters
        ----------
        stimuli, store, backbone, device
            See `tokens`.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_vertices)
        """
        stored = self.tokens(stimuli, store=store, backbone=backbone, device=device)
        return self.predict(stored, device=device)


@dataclass
class TrainedEncoder(_Predicts):
    """A brain encoder of one subject, with everything that is needed to use and judge it.

    Parameters
    ----------
    module : nn.Module
        Maps patches (B, P, D) to responses (B, V); frozen, in eval mode.
    atlas : Atlas
        Hemisphere and ROIs of the V vertices.
    backbone : BackboneSpec
        Backbone of the tokens.
    sources : tuple of mapping
        Backbone identity, kind, block and features of the tokens, one mapping per block.
    label : str
        Kind, subject, whether the responses are simulated, backbone and weights, for figures.
    hash : str
        16 hexadecimal digits that identify configuration, subject and backbone weights.
    scores : ndarray of float32, shape (V,)
        Validation r per vertex; NaN where undefined.
    selection : str
        Rule by which the weights were selected.
    history : list of dict
        One dict per epoch; empty for encoders in closed form.
    facts : mapping
        JSON values: configuration, subject, study, split, counts.
    """

    module: nn.Module
    atlas: Atlas
    backbone: BackboneSpec
    sources: tuple[Mapping[str, Any], ...]
    label: str
    hash: str
    scores: np.ndarray
    selection: str
    history: list[dict[str, Any]] = field(default_factory=list)
    facts: Mapping[str, Any] = field(default_factory=dict)

    def __repr__(self) -> str:
        n_vertices = self.atlas.n_vertices
        return f"TrainedEncoder({self.label!r}, n_vertices={n_vertices}, hash={self.hash!r})"

    @property
    def build(self) -> dict[str, Any]:
        """Type and sizes of the module, as JSON values."""
        return self.module.describe()

    def respond(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return responses to a batch of tokens; gradients flow to the tokens.

        Stored tokens, images and pixels are all predicted through this method.

        Parameters
        ----------
        tokens : sequence of Tensor, each of shape (B, P, D)
            One tensor per entry of `sources`, as `bmfl_lab.backbones.tokens.read_tokens` returns
            it, on the device of the encoder (see `to`).

        Returns
        -------
        Tensor of float32, shape (B, V)
        """
        return self.module(tokens[0] if len(tokens) == 1 else torch.cat(tuple(tokens), dim=2))

    def query_module(self) -> ROIQueryEncoder | None:
        """Return the ROI-query transformer inside, for attention maps; None if there is none."""
        return next((m for m in self.module.modules() if isinstance(m, ROIQueryEncoder)), None)

    def save(self, folder: str | Path) -> Path:
        """Write ``encoder.safetensors`` and ``encoder.json`` and return the path of the latter.

        Parameters
        ----------
        folder : str or Path
            Folder of both files; created if missing.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors["scores"] = torch.from_numpy(np.asarray(self.scores, np.float32))
        atlas, described = atlas_to_tensors(self.atlas)
        manifest = {
            "build": self.build,
            "atlas": described,
            "backbone": dataclasses.asdict(self.backbone),
            "sources": [dict(s) for s in self.sources],
            "label": self.label,
            "hash": self.hash,
            "selection": self.selection,
            "history": self.history,
            "facts": dict(self.facts),
        }
        return write_bundle(folder, STEM, {**tensors, **atlas}, manifest, what=WHAT)


def load_encoder(folder: str | Path, subject: Subject | None = None) -> TrainedEncoder:
    """Read an encoder that `TrainedEncoder.save` wrote.

    Parameters
    ----------
    folder : str or Path
        Folder of the encoder.
    subject : Subject, optional
        Subject whose responses it must predict; an encoder of another subject or another number of
        vertices is refused.

    Returns
    -------
    TrainedEncoder

    Raises
    ------
    CheckpointError
        If a file is missing or damaged, or if the manifest describes something else, an unknown
        kind of encoder or another subject. The manifest is checked before any tensor is read.
    """
    tensors, manifest = read_bundle(
        folder, STEM, lambda found: _refuse_others(found, subject), what=WHAT
    )
    state = {k.removeprefix("module."): v for k, v in tensors.items() if k.startswith("module.")}
    with matching_tensors(folder):
        module = frozen(build_encoder(manifest["build"], state))
    return TrainedEncoder(
        module=module,
        atlas=atlas_from_tensors(tensors, manifest["atlas"]),
        backbone=BackboneSpec(**manifest["backbone"]),
        sources=tuple(manifest["sources"]),
        scores=tensors["scores"].numpy(),
        **{name: manifest[name] for name in ("label", "hash", "selection", "history", "facts")},
    )


def _refuse_others(manifest: dict, subject: Subject | None) -> None:
    kind = manifest["build"]["type"]
    require(
        kind in KINDS,
        CheckpointError,
        "a known kind of encoder",
        repr(kind),
        "read it with the version of bmfl_lab that wrote it, or train again",
    )
    if subject is None:
        return
    # schema 1 did not say the number of vertices
    name, n_vertices = manifest["facts"].get("subject"), manifest["atlas"].get("n_vertices")
    if name != subject.name or n_vertices not in (None, subject.n_vertices):
        size = "an unknown number of" if n_vertices is None else n_vertices
        raise CheckpointError(
            message(
                f"an encoder of subject {subject.name!r} with {subject.n_vertices} vertices",
                f"one of {name!r} with {size}",
                "give the folder of this subject's encoder, or train one",
            )
        )


def frozen(module: nn.Module) -> nn.Module:
    """Return the module on the CPU, in eval mode, with parameters that require no gradient."""
    return module.cpu().eval().requires_grad_(False)


@dataclass
class EncoderEnsemble(_Predicts):
    """Encoders of one subject, averaged with weights per vertex; made by `combine_encoders`.

    Parameters
    ----------
    members : dict of str to TrainedEncoder
        Encoders by name.
    weights : ndarray of float32, shape (n_members, V)
        Weights that sum to 1 at each vertex.
    scores : ndarray of float32, shape (V,)
        Validation r of the members, averaged with the same weights. This ranks vertices; it is not
        the validation r of the averaged prediction.
    """

    members: dict[str, TrainedEncoder]
    weights: np.ndarray
    scores: np.ndarray
    selection: str = "softmax of validation r per vertex over encoders, each selected as it says"
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        members = self.members.values()
        first = next(iter(members))
        self.atlas, self.backbone = first.atlas, first.backbone
        self.sources = tuple(source for member in members for source in member.sources)
        about = first.label.split(" encoder of ", 1)[-1].split(", ")[0]
        self.label = f"ensemble encoder of {about}, of {', '.join(self.members)}"
        self.hash = sha256_json([[m.hash for m in members], self.weights.tobytes().hex()])[:16]
        self.facts = {"members": {k: dict(m.facts) for k, m in self.members.items()}}
        self.module = nn.ModuleList([member.module for member in members])
        self.module.register_buffer("weights_MV", torch.from_numpy(self.weights))

    def respond(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return responses to a batch of tokens; gradients flow to the tokens.

        Parameters
        ----------
        tokens : sequence of Tensor, each of shape (B, P, D)
            One tensor per entry of `sources`, that is, the tokens of one member after the other, on
            the device of the encoder (see `to`); P and D may differ between members.

        Returns
        -------
        Tensor of float32, shape (B, V)
        """
        total, start = 0, 0
        for weight_V, member in zip(self.module.weights_MV, self.members.values()):
            stop = start + len(member.sources)
            total = total + member.respond(tokens[start:stop]) * weight_V
            start = stop
        return total


def combine_encoders(
    members: Mapping[str, TrainedEncoder], temperature: float = 40.0
) -> EncoderEnsemble:
    """Average encoders of one subject, weighted per vertex by the softmax of their validation r.

    Parameters
    ----------
    members : mapping of str to TrainedEncoder
        Two or more encoders of the same vertices; their tokens may differ in block and kind.
    temperature : float, default 40
        Factor of r in the softmax; a higher one gives more weight to the best encoder.

    Returns
    -------
    EncoderEnsemble
        Can be used like any encoder, e.g. in `evaluate_encoder` and ``train_fusion(encoder=...)``.

    Raises
    ------
    DataError
        If there are fewer than two members, or if they predict other vertices or read another
        backbone.

    References
    ----------
    Adeli et al. (2025), Transformer brain encoders explain human high-level visual responses,
    arXiv:2505.17329: softmax with a factor of 40 over encoders of several blocks.
    """
    require(len(members) >= 2, DataError, "two or more encoders", len(members), "name more of them")
    first = next(iter(members.values()))
    for name, member in members.items():
        same = np.array_equal(member.atlas.hemisphere, first.atlas.hemisphere) and all(
            np.array_equal(member.atlas.rois.get(roi), mask)
            for roi, mask in first.atlas.rois.items()
        )
        require(
            same and member.backbone == first.backbone,
            DataError,
            "encoders of one subject and one backbone",
            f"{name!r} of {'another backbone' if same else 'other vertices'}",
            "combine encoders of the same subject, trained on the same backbone",
        )
    scores = np.stack([np.asarray(member.scores, np.float32) for member in members.values()])
    weights = ensemble_weights(scores, temperature)
    with np.errstate(invalid="ignore"):
        mean = np.where(
            np.isfinite(scores).any(0), (weights * np.nan_to_num(scores)).sum(0), np.nan
        )
    return EncoderEnsemble(dict(members), weights, mean.astype(np.float32))


@dataclass
class JoinedEncoder(_Predicts):
    """Encoders of several subjects, whose predicted responses stand side by side.

    Parameters
    ----------
    members : dict of str to TrainedEncoder
        Encoders by name of the subject.

    Notes
    -----
    All left vertices come before all right ones, within a hemisphere in the order of the subjects.
    An ROI is the union of the subjects' ROIs of that name. The vertices lie on no common surface.
    """

    members: dict[str, TrainedEncoder]
    history: list[dict[str, Any]] = field(default_factory=list)

    def __post_init__(self) -> None:
        members = list(self.members.values())
        side = np.concatenate([np.asarray(m.atlas.hemisphere) for m in members])
        self.order = np.argsort(side, kind="stable")
        names = dict.fromkeys(roi for m in members for roi in m.atlas.rois)
        rois = {
            roi: np.concatenate(
                [
                    np.asarray(m.atlas.rois.get(roi, np.zeros(m.atlas.n_vertices, bool)))
                    for m in members
                ]
            )[self.order]
            for roi in names
        }
        groups = {k: v for m in members for k, v in m.atlas.groups.items()}
        self.atlas = Atlas(side[self.order], rois, groups=groups)
        self.backbone = members[0].backbone
        self.sources = tuple(source for m in members for source in m.sources)
        self.scores = np.concatenate([np.asarray(m.scores) for m in members])[self.order]
        self.selection = members[0].selection
        self.label = f"joined encoders of {', '.join(self.members)}"
        self.hash = sha256_json(["joined", [m.hash for m in members]])[:16]
        self.facts = {"members": {k: dict(m.facts) for k, m in self.members.items()}}
        self.build = {"type": "joined"}
        self.module = nn.ModuleList([m.module for m in members])

    def respond(self, tokens: Sequence[Tensor]) -> Tensor:
        """Return responses of all subjects to a batch of tokens; gradients flow to the tokens.

        Parameters
        ----------
        tokens : sequence of Tensor, each of shape (B, P, D)
            One tensor per entry of `sources`, see `EncoderEnsemble.respond`.

        Returns
        -------
        Tensor of float32, shape (B, V), where V counts the vertices of all subjects
        """
        parts, start = [], 0
        for member in self.members.values():
            parts.append(member.respond(tokens[start : start + len(member.sources)]))
            start += len(member.sources)
        return torch.cat(parts, 1)[:, self.order.tolist()]


def combine_subjects(
    members: Mapping[str, TrainedEncoder], how: str = "join"
) -> JoinedEncoder | EncoderEnsemble:
    """Return one encoder of several subjects, e.g. for ``train_fusion(encoder=...)``.

    Parameters
    ----------
    members : mapping of str to TrainedEncoder
        Encoders by name of the subject, on the same backbone.
    how : {"join", "average"}, default "join"
        "join" puts the predicted responses of all subjects side by side. "average" predicts the
        average subject, which needs subjects in one common space, such as fsaverage.

    Returns
    -------
    JoinedEncoder or EncoderEnsemble

    Raises
    ------
    DataError
        If there are fewer than two subjects, their backbones differ, or vertices to be averaged
        differ.
    ConfigError
        If `how` is unknown.

    Notes
    -----
    Both are our choice. The average gives each subject the same weight at every vertex.
    """
    require_known(how, ("join", "average"), ConfigError, "how to combine subjects")
    require(
        len(members) >= 2,
        DataError,
        "encoders of two or more subjects",
        f"{len(members)}",
        "train an encoder for each subject, with train_brain_encoder(..., subject=NAME)",
    )
    if how == "average":
        return combine_encoders(members, temperature=0.0)
    first = next(iter(members.values()))
    for name, member in members.items():
        require(
            member.backbone == first.backbone,
            DataError,
            "encoders on one backbone",
            f"{name!r} on another",
            "train all of them on the same backbone",
        )
    return JoinedEncoder(dict(members))


def image_function(
    encoder: TrainedEncoder | EncoderEnsemble,
    *,
    backbone: Backbone | None = None,
    device: str = "auto",
) -> Callable[[Tensor], Tensor]:
    """Return a function from pixels to predicted responses through which gradients flow.

    Parameters
    ----------
    encoder : TrainedEncoder or EncoderEnsemble
        The encoder.
    backbone : Backbone, optional
        The encoder's backbone on the same device, if it is already loaded or cannot be loaded by
        name; loaded by default.
    device : {"auto", "cpu", "cuda"}, default "auto"
        Device of backbone and encoder.

    Returns
    -------
    callable
        ``function(images) -> responses`` with images (B, 3, S, S) in 0..1, S being the backbone's
        image size, and responses (B, n_vertices). Its attributes ``image_size`` and ``device`` give
        S and the device.

    Raises
    ------
    CheckpointError
        If the backbone has other weights than that of the training.
    """
    where = local_device(device)
    backbone = backbone or encoder.load_backbone(device)
    encoder._refuse_other_weights(backbone)
    mean, std = (
        torch.tensor(v, device=where).view(1, 3, 1, 1)
        for v in (backbone.preprocess.mean, backbone.preprocess.std)
    )

    def function(images_BCHW: Tensor) -> Tensor:
        x_BCHW = (images_BCHW.to(where) - mean) / std
        tokens = []
        for source in encoder.sources:
            (block,) = backbone(
                x_BCHW, blocks=(source["block"],), features=source["features"], grad=True
            )
            tokens.append(read_tokens(block, source["kind"]))
        return encoder.to(where).respond(tokens)

    function.image_size, function.device = backbone.image_size, where
    return function
