"""A trained brain encoder: what it predicts, what it was trained on, and its files."""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab.backbones import Backbone, FeatureStore, StoredTokens, load_backbone
from bmfl_lab.backbones.tokens import extract_many
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.responses import Subject
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.data.study import BackboneSpec
from bmfl_lab.errors import CheckpointError, DataError, message
from bmfl_lab.files import sha256_json
from bmfl_lab.models.brain_encoder import (
    EnsembleEncoder,
    LinearEncoder,
    RetinotopicEncoder,
    ScaledEncoder,
)
from bmfl_lab.models.roi_query import ROIQueryEncoder
from bmfl_lab.runtime import pick_device
from bmfl_lab.training.checkpoint import read_bundle, write_bundle

STEM = "encoder"
KINDS = ("linear", "roi_query", "retinotopic", "scaled", "ensemble")


def token_source(manifest: Mapping[str, Any]) -> dict[str, Any]:
    """Return what tokens must have in common with those an encoder was trained on."""
    identity = manifest["identity"]
    return {k: identity[k] for k in ("backbone", "kind", "block", "features")}


def shared_tokens(backbone: Backbone, encoder: Any) -> list[tuple[str, int]]:
    """Return kind and block of what an encoder will ask of this very backbone, so that one pass can make all."""
    described = sha256_json({k: v for k, v in backbone.describe().items() if k != "weights_label"})
    return [
        (s["kind"], s["block"])
        for s in getattr(encoder, "sources", ())
        if s["features"] == "tokens" and sha256_json(s["backbone"]) == described
    ]


def as_patches(stored: Sequence[StoredTokens]) -> np.ndarray:
    """Return the tokens of one or more blocks as patches, shape (n, P, D * n_blocks).

    CLS, or CLS and mean side by side, count as a single patch.
    """
    parts = [s.patches if s.patches is not None else s.features()[:, None] for s in stored]
    return np.asarray(parts[0]) if len(parts) == 1 else np.concatenate(parts, axis=2)


class FromImages:
    """What every encoder with `tokens` and `predict` can do."""

    def predict_stimuli(
        self,
        stimuli: StimulusSet,
        *,
        store: FeatureStore | None = None,
        backbone: Backbone | None = None,
        device: str = "auto",
    ) -> np.ndarray:
        """Predict responses to images, float32 (n_stimuli, n_vertices)."""
        return self.predict(
            self.tokens(stimuli, store=store, backbone=backbone, device=device), device=device
        )


@dataclass
class TrainedEncoder(FromImages):
    """A brain encoder of one subject, with all that is needed to use and judge it.

    Parameters
    ----------
    module : nn.Module
        Patches (B, P, D) to responses (B, V); frozen, in eval mode.
    build : mapping
        How `module` is made again before its weights are loaded.
    atlas : Atlas
        Of the V vertices.
    backbone : BackboneSpec
        Which backbone its tokens come from.
    sources : tuple of mapping
        Backbone identity, kind, block and features of the tokens, one a block.
    label : str
        For figures: kind, subject, whether simulated, backbone and its weights.
    hash : str
        Of configuration, subject and backbone weights.
    scores : ndarray of float32, shape (V,)
        Validation r per vertex; NaN where undefined.
    selection : str
        How the weights were selected.
    history : list of dict
        One dict an epoch; empty for closed-form encoders.
    facts : mapping
        JSON values: configuration, subject, study, split, counts.
    """

    module: nn.Module
    build: Mapping[str, Any]
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
        return f"TrainedEncoder({self.label!r}, n_vertices={self.atlas.n_vertices}, hash={self.hash!r})"

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
        tokens : StoredTokens, or one per block
            Of the backbone, block and kind the encoder was trained on.

        Returns
        -------
        ndarray of float32, shape (n_stimuli, n_vertices)

        Raises
        ------
        DataError
            If the tokens are of other weights, size, block or kind.
        """
        stored = (tokens,) if isinstance(tokens, StoredTokens) else tuple(tokens)
        self.check(stored)
        return self.predict_patches(as_patches(stored), batch_size=batch_size, device=device)

    def predict_patches(
        self, patches: np.ndarray, *, batch_size: int = 64, device: str = "auto"
    ) -> np.ndarray:
        """Predict responses from patches of shape (n_stimuli, P, D), unchecked."""
        where = pick_device(device)
        module = self.module.to(where).eval()
        out = np.empty((len(patches), self.atlas.n_vertices), np.float32)
        with torch.inference_mode():
            for start in range(0, len(patches), batch_size):
                part = torch.as_tensor(
                    np.array(patches[start : start + batch_size], np.float32), device=where
                )
                out[start : start + batch_size] = module(part).float().cpu().numpy()
        return out

    def check(self, stored: Sequence[StoredTokens]) -> None:
        """Refuse tokens that the encoder was not trained on.

        Raises
        ------
        DataError
            Naming what differs.
        """
        got = [token_source(s.manifest) for s in stored]
        if len(got) != len(self.sources):
            raise DataError(
                message(
                    f"tokens of {len(self.sources)} block(s)",
                    f"{len(got)}",
                    "give one StoredTokens per block",
                )
            )
        for wanted, found in zip(self.sources, got):
            wrong = [k for k in wanted if wanted[k] != found[k]]
            if wrong:
                shown = "; ".join(f"{k} {found[k]!r} instead of {wanted[k]!r}" for k in wrong)
                raise DataError(
                    message(
                        "the tokens this encoder was trained on",
                        shown,
                        "extract them with encoder.tokens(...)",
                    )
                )

    def load_backbone(self, device: str = "auto") -> Backbone:
        """Return the backbone the tokens come from."""
        spec = self.backbone
        return load_backbone(
            spec.name,
            spec.weights,
            image_size=spec.image_size,
            device=pick_device(device),
            resize=spec.resize,
        )

    def tokens(
        self,
        stimuli: StimulusSet,
        *,
        store: FeatureStore | None = None,
        backbone: Backbone | None = None,
        device: str = "auto",
    ) -> tuple[StoredTokens, ...]:
        """Return the tokens this encoder needs, from a store, or extracted into memory without one."""
        backbone = backbone or self.load_backbone(device)
        wanted, features = (
            [(s["kind"], s["block"]) for s in self.sources],
            self.sources[0]["features"],
        )
        if store is None:
            return tuple(extract_many(backbone, stimuli, wanted, features=features))
        return tuple(store.get_many(backbone, stimuli, wanted, features=features))

    def query_module(self) -> ROIQueryEncoder | None:
        """Return the ROI-query transformer inside, or None if there is none (for attention maps)."""
        return next((m for m in self.module.modules() if isinstance(m, ROIQueryEncoder)), None)

    def save(self, folder: str | Path) -> Path:
        """Write ``encoder.safetensors`` and ``encoder.json`` and return the manifest's path.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        tensors: dict[str, Tensor] = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        tensors["scores"] = torch.from_numpy(np.asarray(self.scores, np.float32))
        atlas, described = _atlas_tensors(self.atlas)
        manifest = {
            "what": "brain encoder",
            "build": dict(self.build),
            "atlas": described,
            "backbone": dataclasses.asdict(self.backbone),
            "sources": [dict(s) for s in self.sources],
            "label": self.label,
            "hash": self.hash,
            "selection": self.selection,
            "history": self.history,
            "facts": dict(self.facts),
        }
        return write_bundle(folder, STEM, {**tensors, **atlas}, manifest)


def load_encoder(folder: str | Path, subject: Subject | None = None) -> TrainedEncoder:
    """Read an encoder that `TrainedEncoder.save` wrote.

    Parameters
    ----------
    folder : str or Path
        Where it was saved.
    subject : Subject, optional
        Whose responses it is to predict; another subject or number of vertices is refused.

    Raises
    ------
    CheckpointError
        If a file is missing or damaged. From the manifest, before any tensor is read: if it holds
        something else, an unknown kind of encoder, or one of another subject.
    """
    tensors, manifest = read_bundle(
        folder, STEM, lambda found: _refuse_others(found, folder, subject)
    )
    state = {k[len("module.") :]: v for k, v in tensors.items() if k.startswith("module.")}
    module = _build(manifest["build"], state)
    module.load_state_dict(state)
    return TrainedEncoder(
        module=frozen(module),
        build=manifest["build"],
        atlas=_atlas(tensors, manifest["atlas"]),
        backbone=BackboneSpec(**manifest["backbone"]),
        sources=tuple(manifest["sources"]),
        label=manifest["label"],
        hash=manifest["hash"],
        scores=tensors["scores"].numpy(),
        selection=manifest["selection"],
        history=manifest["history"],
        facts=manifest["facts"],
    )


def _refuse_others(found: Mapping[str, Any], folder: str | Path, subject: Subject | None) -> None:
    if found.get("what") != "brain encoder":
        raise CheckpointError(
            message(
                f"a brain encoder in {folder}",
                repr(found.get("what")),
                "give the folder of an encoder",
            )
        )
    if found["build"]["type"] not in KINDS:
        raise CheckpointError(
            message(
                "a known kind of encoder",
                repr(found["build"]["type"]),
                "use the version that wrote it",
            )
        )
    if subject is None:
        return
    whose, n_vertices = found["facts"].get("subject"), found["atlas"].get("n_vertices")
    if whose != subject.name or n_vertices not in (None, subject.atlas.n_vertices):
        wanted = f"an encoder of subject {subject.name!r} with {subject.atlas.n_vertices} vertices"
        got = (
            f"one of {whose!r} with {'an unknown number of' if n_vertices is None else n_vertices}"
        )
        raise CheckpointError(
            message(wanted, got, "give the folder of this subject's encoder, or train one")
        )


def frozen(module: nn.Module) -> nn.Module:
    """Return the module on the CPU in eval mode with no parameter that takes a gradient."""
    return module.cpu().eval().requires_grad_(False)


def _build(build: Mapping[str, Any], state: Mapping[str, Tensor], prefix: str = "") -> nn.Module:
    """Make a module of the right shape; what depends on the data is read off the stored tensors."""
    kind, sizes = (
        build["type"],
        {k: v for k, v in build.items() if k not in ("type", "members", "encoder")},
    )
    if kind == "linear":
        return LinearEncoder(**sizes)
    if kind == "roi_query":
        at = prefix + "readout."
        counts = [state[f"{at}weights.{g}"].shape[0] for g in range(len(state[at + "mixing_GR"]))]
        grouped = state[at + "mixing_GR"].bool().repeat_interleave(torch.tensor(counts), 0)
        return ROIQueryEncoder(masks=grouped[state[at + "inverse_V"]].T.numpy(), **sizes)
    if kind == "retinotopic":
        names = {
            "fields": "fields_C3",
            "choice": "choice_V",
            "projection": "projection_DF",
            "coef": "coef_VF",
        }
        found = {k: state[prefix + v].clone() for k, v in names.items()}
        return RetinotopicEncoder(
            **found, intercept=state[prefix + "intercept_V"].clone(), grid=tuple(build["grid"])
        )
    if kind == "scaled":
        inner = _build(build["encoder"], state, prefix + "encoder.")
        return ScaledEncoder(
            encoder=inner,
            mean=state[prefix + "mean_V"].clone(),
            scale=state[prefix + "scale_V"].clone(),
        )
    members = [_build(b, state, f"{prefix}members.{i}.") for i, b in enumerate(build["members"])]
    return EnsembleEncoder(members=members, weights=state[prefix + "weights_MV"].clone())


def _atlas_tensors(atlas: Atlas) -> tuple[dict[str, Tensor], dict[str, Any]]:
    tensors = {"atlas.hemisphere": torch.from_numpy(np.asarray(atlas.hemisphere, np.int8))}
    if atlas.surface_index is not None:
        tensors["atlas.surface_index"] = torch.from_numpy(np.asarray(atlas.surface_index, np.int64))
    for i, mask in enumerate(atlas.rois.values()):
        tensors[f"atlas.roi.{i}"] = torch.from_numpy(np.asarray(mask, bool))
    for i, values in enumerate(atlas.maps.values()):
        tensors[f"atlas.map.{i}"] = torch.from_numpy(np.asarray(values, np.float32))
    described = {
        "rois": list(atlas.rois),
        "maps": list(atlas.maps),
        "mesh": atlas.mesh,
        "n_vertices": atlas.n_vertices,
        "groups": {k: list(v) for k, v in atlas.groups.items()},
    }
    return tensors, described


def _atlas(tensors: Mapping[str, Tensor], described: Mapping[str, Any]) -> Atlas:
    index = tensors.get("atlas.surface_index")
    return Atlas(
        hemisphere=tensors["atlas.hemisphere"].numpy(),
        rois={name: tensors[f"atlas.roi.{i}"].numpy() for i, name in enumerate(described["rois"])},
        surface_index=None if index is None else index.numpy(),
        mesh=described["mesh"],
        groups={k: tuple(v) for k, v in described["groups"].items()},
        maps={name: tensors[f"atlas.map.{i}"].numpy() for i, name in enumerate(described["maps"])},
    )
