"""Reading a trained fusion model back from its files."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.errors import CheckpointError, message
from bmfl_lab.runtime import pick_device
from bmfl_lab.training.checkpoint import read_bundle
from bmfl_lab.training.fusion_parts import encoder_source
from bmfl_lab.training.recipes import FusionConfig, build_fusion
from bmfl_lab.training.trained_encoder import load_encoder
from bmfl_lab.training.trained_fusion import TrainedFusion


def load_fusion(
    folder: str | Path,
    backbone: Any,
    *,
    encoder: Any = None,
    brain: Any = None,
    store: Any = None,
    device: str = "auto",
) -> TrainedFusion:
    """Read what `TrainedFusion.save` wrote.

    Parameters
    ----------
    folder : str or Path
        Where it was saved.
    backbone : Backbone
        The one it was trained on, loaded.
    encoder : TrainedEncoder, optional
        Read from the folder when not given.
    brain : callable, optional
        Response source, where the model was trained with one.
    store, device
        As `train_fusion`.

    Raises
    ------
    CheckpointError
        If the files are damaged or the response source is missing. From the manifest, before any
        tensor is read: if it is of another kind, or was trained on other backbone weights or
        another number of vertices.
    """
    tensors, found = read_bundle(
        folder, "fusion", lambda manifest: _refuse_others(manifest, backbone, encoder)
    )
    if encoder is None and found["encoder"]:
        encoder = load_encoder(Path(folder) / "encoder")
    if found["needs_source"] and encoder is None and brain is None:
        raise CheckpointError(
            message("the response source of this model", "none", "pass encoder=... or brain=...")
        )
    config, arrays = (
        configs.from_dict(FusionConfig, found["config"]),
        {k: v.numpy() for k, v in tensors.items()},
    )
    atlas = None
    if "atlas.hemisphere" in arrays:
        rois = {
            k.removeprefix("atlas.roi."): v for k, v in arrays.items() if k.startswith("atlas.roi.")
        }
        atlas = getattr(encoder, "atlas", None) or Atlas(arrays["atlas.hemisphere"], rois)
    store, device = store if store is not None else FeatureStore(), pick_device(device)
    source = None
    if found["needs_source"]:
        source = brain if brain is not None else encoder_source(encoder, store, backbone, device)
    trained = TrainedFusion(
        name=found["name"],
        config=config,
        seed=found["seed"],
        class_names=tuple(found["class_names"]),
        backbone=backbone,
        encoder=encoder,
        source=source,
        atlas=atlas,
        store=store,
        device=device,
        **{name: arrays.get(name) for name in ("selected", "mean", "scale", "donors")},
        **{name: found[name] for name in ("history", "selection", "epoch")},
        notes=tuple(found["notes"]),
    )
    trained.module, _ = build_fusion(
        config,
        visual_width=found["visual_width"],
        n_classes=len(trained.class_names),
        atlas=atlas,
        n_vertices=None if trained.mean is None else len(trained.mean),
        seed=trained.seed,
    )
    trained.module.load_state_dict(
        {k[7:]: v for k, v in tensors.items() if k.startswith("module.")}
    )
    trained.module.to(trained.device).eval()
    return trained


def _refuse_others(found: dict[str, Any], backbone: Any, encoder: Any) -> None:
    if found.get("kind") != "fusion":
        raise CheckpointError(
            message("a saved fusion model", repr(found.get("kind")), "choose another folder")
        )
    size, made = found["backbone"]["image_size"], found["backbone"].get("preprocess")
    if size != backbone.image_size or made not in (None, backbone.preprocess.describe()):
        got = f"{backbone.image_size} px, {backbone.preprocess.describe()['resize']}"
        said = f"images of {size} px" + (
            "" if made is None else f", resized by the rule {made['resize']!r}"
        )
        raise CheckpointError(
            message(said, got, "load the backbone with the image_size and resize of the training")
        )
    if found["backbone"]["weights_hash"] != backbone.weights_hash:
        raise CheckpointError(
            message(
                f"{found['backbone']['name']} with weights {found['backbone']['weights_hash'][:12]}",
                f"{backbone.name} with weights {backbone.weights_hash[:12]}",
                "load the backbone that the model was trained on",
            )
        )
    n_vertices = found.get("n_vertices")
    if encoder is not None and n_vertices not in (None, encoder.atlas.n_vertices):
        got = f"one of {encoder.atlas.n_vertices}"
        raise CheckpointError(
            message(
                f"an encoder of {n_vertices} vertices",
                got,
                "pass the encoder that the model was trained on",
            )
        )
