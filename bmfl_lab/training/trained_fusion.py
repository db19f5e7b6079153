"""A trained fusion model: prediction, lesions, attention, and its files."""

from __future__ import annotations

from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from bmfl_lab import config as configs
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.data.stimuli import StimulusSet
from bmfl_lab.errors import ConfigError, DataError, message
from bmfl_lab.models.bmfl import BMFL
from bmfl_lab.models.lesion import Lesion, apply_lesion
from bmfl_lab.training.checkpoint import write_bundle
from bmfl_lab.training.trained_encoder import shared_tokens

_BATCH = 256
_DONORS = 512
_KEEP = 8


def predict_batches(
    module: nn.Module,
    cls: Any,
    patches: Any,
    response: Any = None,
    *,
    weights: bool = False,
    seen: Any = None,
) -> dict[str, np.ndarray]:
    """Run a fusion model over tokens, batch by batch, without gradients.

    Parameters
    ----------
    module : FusionModel
        Any device; its mode is left as it is.
    cls, patches, response : Tensor or ndarray, shapes (n, D), (n, P, D), (n, V)
        Tokens and standardised responses of the vertices the model reads.
    weights : bool, default False
        Return attention weights.
    seen : Seen, optional
        Of all these tokens, which then pass in a single batch.

    Returns
    -------
    dict of str to ndarray of float32
        ``"logits"`` (n, C) and with `weights` ``"vb"``, ``"bv"`` as in `FusionOutput`.

    Raises
    ------
    RuntimeError
        If widths do not agree with the model.
    """
    device = next(module.parameters()).device
    found: dict[str, list[np.ndarray]] = {}
    size = _BATCH if seen is None else max(1, len(cls))
    for start in range(0, len(cls), size):
        rows = [
            None if v is None else _tensor(v[start : start + size]).to(device).float()
            for v in (cls, patches, response)
        ]
        with torch.inference_mode():
            out = (
                module(*rows, weights=weights)
                if seen is None
                else module(*rows, weights=weights, seen=seen)
            )
        for name, value in {"logits": out.logits, **(out.attention or {})}.items():
            found.setdefault(name, []).append(value.float().cpu().numpy())
    if not found:
        return {"logits": np.zeros((0, module.n_classes), dtype=np.float32)}
    return {name: np.concatenate(parts) for name, parts in found.items()}


def _tensor(rows: Any) -> Tensor:
    # the store's maps are read-only, which torch does not know
    return rows if isinstance(rows, Tensor) else torch.from_numpy(np.array(rows))


@dataclass
class TrainedFusion:
    """A fusion model or baseline with all it needs to classify new images.

    Parameters
    ----------
    name : str
        Name in tables.
    config : FusionConfig
        What was chosen.
    seed : int
        Training seed.
    class_names : tuple of str
        Classes of the logits.
    backbone, encoder, store
        Frozen parts and the store of their tokens; `encoder` is None for baselines without it.
    source : callable or None
        ``source(stimuli, tokens) -> (n, V)`` responses; None for "backbone".
    atlas : Atlas or None
        Of the V vertices.
    device : str
        Where the module runs.
    history, selection, epoch, notes
        As `FitResult`; `selection` in words for records.
    """

    name: str
    config: Any
    seed: int
    class_names: tuple[str, ...]
    backbone: Any
    encoder: Any
    source: Any
    atlas: Atlas | None
    store: Any
    device: str
    module: Any = None
    selected: np.ndarray | None = None
    mean: np.ndarray | None = None
    scale: np.ndarray | None = None
    donors: np.ndarray | None = None
    history: list[dict[str, Any]] = field(default_factory=list)
    selection: str = "none"
    epoch: int = 0
    notes: tuple[str, ...] = ()
    _cache: list[tuple[StimulusSet, Any, Any]] = field(default_factory=list, repr=False)

    def __repr__(self) -> str:
        reads = "" if self.source is None or self.encoder is None else f", encoder={self.encoder!r}"
        n = len(self.class_names)
        return f"TrainedFusion({self.name!r}, head={self.config.head!r}, n_classes={n}, seed={self.seed}{reads})"

    def prepare(self, data: dict[str, Tensor], n_vertices: int | None) -> None:
        """Build the module for the training data, and keep their means and standard deviations.

        Raises
        ------
        ConfigError
            As `build_fusion`.
        """
        from bmfl_lab.training.recipes import build_fusion

        if (
            n_vertices is not None
            and self.atlas is not None
            and n_vertices != self.atlas.n_vertices
        ):
            self.atlas = None  # a source of another size lies on no atlas
        self.module, selected = build_fusion(
            self.config,
            visual_width=data["cls"].shape[1],
            n_classes=len(self.class_names),
            atlas=self.atlas,
            n_vertices=n_vertices,
            seed=self.seed,
        )
        self.module.standardise_tokens(data["cls"], data["patches"])
        if "response" in data:
            response = data["response"].numpy()
            self.selected, self.mean = selected, response.mean(0)
            spread = response.std(0)
            # a vertex that is predicted the same for every image says nothing: it stays at zero
            self.scale = np.where(spread > 1e-6, spread, 1).astype(np.float32)
            self.donors = response[:_DONORS].copy()

    def silence(self, silent: np.ndarray) -> None:
        """Keep vertices at their mean for good.

        Raises
        ------
        ConfigError
            If `silent` does not hold one value a vertex, or the model has no brain.
        """
        if self.scale is None or np.shape(silent) != self.scale.shape:
            wanted = (
                "a model with a brain"
                if self.scale is None
                else f"silent of shape {self.scale.shape}"
            )
            raise ConfigError(
                message(
                    wanted, f"shape {np.shape(silent)}", "make the mask with the encoder's atlas"
                )
            )
        self.scale = np.where(silent, np.float32(np.inf), self.scale)

    def standardise(self, response: Tensor) -> Tensor:
        """Return responses (n, V) as the module reads them: standardised, selected vertices only."""
        return ((response - torch.from_numpy(self.mean)) / torch.from_numpy(self.scale))[
            :, self.selected
        ]

    def reads(self) -> list[tuple[str, int]]:
        """Return kind and block of all tokens that this model reads from its backbone, its own first."""
        return [(self.config.kind, self.config.block), *shared_tokens(self.backbone, self.encoder)]

    def inputs(self, stimuli: StimulusSet) -> tuple[Any, np.ndarray | None]:
        """Return tokens and raw responses (n, V) of `stimuli`; the last few sets are remembered.

        Raises
        ------
        DataError
            If an image cannot be read, or the response source gives another shape or values that
            are not finite.
        """
        for known, tokens, response in self._cache:
            if known is stimuli:
                return tokens, response
        tokens = self.store.get_many(self.backbone, stimuli, self.reads())[0]
        response = None
        if self.source is not None:
            response = np.asarray(self.source(stimuli, tokens), dtype=np.float32)
            wanted = "n_vertices" if self.mean is None else len(self.mean)
            if (
                response.ndim != 2
                or len(response) != len(stimuli)
                or (self.mean is not None and response.shape[1] != wanted)
            ):
                raise DataError(
                    message(
                        f"responses of shape ({len(stimuli)}, {wanted})",
                        f"shape {response.shape}",
                        "let the response source return one row a stimulus",
                    )
                )
            if not np.isfinite(response).all():
                bad = int(np.flatnonzero(~np.isfinite(response).all(1))[0])
                raise DataError(
                    message(
                        "finite responses",
                        f"NaN or infinity for {stimuli.ids[bad]!r}",
                        "check the response source",
                    )
                )
        self._cache = [*self._cache[-_KEEP + 1 :], (stimuli, tokens, response)]
        return tokens, response

    def _forward(
        self, stimuli: StimulusSet, lesion: Lesion | None, weights: bool = False
    ) -> dict[str, np.ndarray]:
        if len(stimuli) == 0:
            return {"logits": np.zeros((0, len(self.class_names)), dtype=np.float32)}
        tokens, response = self.inputs(stimuli)
        return self.answer(tokens.cls, tokens.patches, response, lesion, weights=weights)

    def answer(
        self,
        cls: Any,
        patches: Any,
        response: np.ndarray | None = None,
        lesion: Lesion | None = None,
        *,
        weights: bool = False,
        seen: Any = None,
    ) -> dict[str, np.ndarray]:
        """Classify from tokens and raw responses at hand, as `predict_batches`, with a lesion.

        `seen`, if given, is what `see` returned for these tokens: many lesions of the same images
        cost less with it.

        Raises
        ------
        ConfigError
            If a lesion does not fit the responses, or the model has no brain.
        """
        if response is None:
            if lesion is not None:
                raise ConfigError(
                    message(
                        f"a model with a brain to lesion, not {self.name!r}",
                        "a lesion",
                        "lesion a fusion model",
                    )
                )
            return predict_batches(self.module, cls, patches, weights=weights)
        lesioned = apply_lesion(
            torch.from_numpy(response),
            lesion,
            mean_V=torch.from_numpy(self.mean),
            donors_NV=torch.from_numpy(self.donors),
        )
        response = self.standardise(lesioned).numpy()
        return predict_batches(self.module, cls, patches, response, weights=weights, seen=seen)

    def see(self, cls: Any, patches: Any) -> Any:
        """Return the image's side of the fusion for `answer`; None for a model without cross-attention."""
        device = next(self.module.parameters()).device
        with torch.inference_mode():
            return self.module.see(*(_tensor(v).to(device).float() for v in (cls, patches)))

    def logits(self, stimuli: StimulusSet, lesion: Lesion | None = None) -> np.ndarray:
        """Return class scores, float32 (n_stimuli, n_classes).

        Raises
        ------
        ConfigError
            If a lesion does not fit the responses, or the model has no brain.
        DataError
            As `inputs`.
        """
        return self._forward(stimuli, lesion)["logits"]

    def attention(
        self, stimuli: StimulusSet, lesion: Lesion | None = None
    ) -> dict[str, np.ndarray]:
        """Return attention weights, their tokens and the patch grid.

        Returns
        -------
        dict
            ``"vb"`` (n, H, Q, R) and ``"bv"`` (n, H, Q, P) float32, ``"brain_tokens"`` R names,
            ``"grid"`` (h, w) with P = h * w.

        Raises
        ------
        ConfigError
            If the model has no cross-attention.
        """
        if self.config.head != "fusion":
            raise ConfigError(
                message(
                    "a model with cross-attention",
                    f"head {self.config.head!r}",
                    "use head='fusion'",
                )
            )
        found = self._forward(stimuli, lesion, weights=True)
        tokens, _ = self.inputs(stimuli)
        return {
            "vb": found["vb"],
            "bv": found["bv"],
            "brain_tokens": self.module.brain.tokeniser.names,
            "grid": tuple(tokens.grid),
        }

    def predict_responses(self, stimuli: StimulusSet) -> np.ndarray:
        """Return the raw responses that stand for the brain, float32 (n_stimuli, V).

        Raises
        ------
        ConfigError
            If the model has no brain.
        """
        if self.source is None:
            raise ConfigError(
                message("a model with a brain", f"{self.name!r}", "use head='fusion' or 'concat'")
            )
        return self.inputs(stimuli)[1].copy()

    def assemble(self) -> BMFL:
        """Return the whole path from images as one module, with the encoder's own network.

        Raises
        ------
        ConfigError
            If the responses do not come from an encoder that reads tokens of this model's backbone.
        """
        network, reads = getattr(self.encoder, "module", None), (("patches", -1),)
        if self.source is not None:
            reads = tuple(shared_tokens(self.backbone, self.encoder))
            if not reads or len(reads) != len(self.encoder.sources):
                got = (
                    "no encoder"
                    if network is None
                    else "one with another backbone, or with projections"
                )
                raise ConfigError(
                    message(
                        "an encoder that reads tokens of the same backbone",
                        got,
                        "predict by `logits` instead",
                    )
                )
        pool = (
            int(self.config.kind.split(":")[1]) if self.config.kind.startswith("pooled:") else None
        )
        return BMFL(
            backbone=self.backbone,
            encoder=None if self.source is None else network,
            fusion=self.module,
            selected=self.selected,
            mean=self.mean,
            scale=self.scale,
            pool=pool,
            block=self.config.block,
            reads=reads,
        )

    def save(self, folder: str | Path) -> Path:
        """Write the model, and its encoder beside it; return the manifest's path.

        Raises
        ------
        CheckpointError
            If the folder cannot be written.
        """
        folder = Path(folder)
        tensors = {f"module.{k}": v for k, v in self.module.state_dict().items()}
        for name in ("selected", "mean", "scale", "donors"):
            if getattr(self, name) is not None:
                tensors[name] = torch.as_tensor(getattr(self, name))
        if self.atlas is not None:
            tensors["atlas.hemisphere"] = torch.as_tensor(
                np.asarray(self.atlas.hemisphere, dtype=np.int8)
            )
            tensors |= {
                f"atlas.roi.{k}": torch.as_tensor(np.asarray(v, dtype=bool))
                for k, v in self.atlas.rois.items()
            }
        own_source = (
            self.source is not None and self.encoder is not None and hasattr(self.encoder, "save")
        )
        if own_source:
            self.encoder.save(folder / "encoder")
        b = self.backbone
        manifest = {
            "kind": "fusion",
            "name": self.name,
            "config": configs.to_dict(self.config),
            "seed": self.seed,
            "class_names": list(self.class_names),
            "backbone": {
                "name": b.name,
                "image_size": b.image_size,
                "weights_hash": b.weights_hash,
                "preprocess": b.preprocess.describe(),
            },
            "visual_width": self.module.visual_width,
            "n_vertices": None if self.mean is None else len(self.mean),
            "encoder": own_source,
            "needs_source": self.source is not None,
            "history": self.history,
            "selection": self.selection,
            "epoch": self.epoch,
            "notes": list(self.notes),
        }
        return write_bundle(folder, "fusion", tensors, manifest)
