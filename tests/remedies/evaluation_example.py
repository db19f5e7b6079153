"""A planted study of a few images, and models that were trained on it for one epoch."""

import functools
import tempfile
import warnings

from bmfl_lab import config as configs
from bmfl_lab import training
from bmfl_lab.backbones import FeatureStore, load_backbone
from bmfl_lab.config import LoopConfig
from bmfl_lab.data.study import load_study

FOLDER = tempfile.TemporaryDirectory()
STORE = FeatureStore(FOLDER.name)
LOOP = LoopConfig(epochs=1, batch_size=16, lr=1e-3)


@functools.cache
def study():
    few = {"n_encoder": 40, "n_encoder_val": 12, "n_encoder_test": 12, "n_train": 12}
    return load_study("planted", n_val=8, n_test=12, n_ood=4, **few)


@functools.cache
def backbone():
    return load_backbone(
        "vit_tiny14", weights="random:0", image_size=28, resize="direct", device="cpu"
    )


@functools.cache
def encoder(kind="roi_query"):
    _, config = training.presets("tiny", encoder=kind)
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", UserWarning)
        return training.train_brain_encoder(
            configs.replace(config, loop=LOOP), study(), store=STORE, device="cpu"
        )


@functools.cache
def fusion(**changes):
    config, _ = training.presets("tiny", **changes)
    brain = {"encoder": encoder()} if config.head == "fusion" else {}
    return training.train_fusion(
        configs.replace(config, loop=LOOP), study(), store=STORE, device="cpu", **brain
    )


def images(name="test", n=4):
    return study().set(name).subset(range(n))
