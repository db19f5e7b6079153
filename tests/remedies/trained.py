"""A small planted study with a brain encoder and fusion models, made once per process."""

import functools
import tempfile
import warnings
from pathlib import Path

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data import load_study
from bmfl_lab.training import encoder as encoders
from bmfl_lab.training import train_brain_encoder, train_fusion
from bmfl_lab.training.context import Context
from bmfl_lab.training.loop import LoopConfig
from bmfl_lab.training.recipes import tiny

FOLDER = tempfile.TemporaryDirectory(prefix="bmfl-remedies-")
SIZES = {
    **{"n_encoder": 24, "n_encoder_val": 8, "n_encoder_test": 8},
    **{"n_train": 16, "n_val": 8, "n_test": 8, "n_ood": 8},
}
RIDGE = configs.replace(
    encoders.tiny("ridge"), tokens="pooled:2", n_folds=2, alphas=(1.0, 1e2, 1e4)
)
LOOP = LoopConfig(epochs=1, batch_size=16)


def fusion_config(**changes):
    """Return the choices of a fusion that is trained for one step."""
    return tiny(**{"kind": "pooled:4", "loop": LOOP, **changes})


@functools.cache
def study(**changes):
    """Return the study; its one subject is simulated."""
    return load_study("planted", **{**SIZES, **changes})


@functools.cache
def context():
    """Return the device and the store of tokens of all trainings."""
    return Context.make(FeatureStore(Path(FOLDER.name) / "features"), "cpu")


@functools.cache
def backbone():
    """Return the backbone of the study."""
    return context().backbone(study().backbone)


def train_encoder(config=RIDGE, trained_on=None, folder=None, **options):
    """Train an encoder in a folder of its own; penalties at the end of the grid are no matter."""
    folder = tempfile.mkdtemp(dir=FOLDER.name) if folder is None else folder
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", message="expected at most 5%")
        return train_brain_encoder(
            config,
            study() if trained_on is None else trained_on,
            store=context().store,
            folder=folder,
            device="cpu",
            **options,
        )


@functools.cache
def encoder():
    """Return a ridge from pooled patches to the responses of the subject."""
    return train_encoder()


@functools.cache
def model(head="fusion"):
    """Return a model that was trained for one step."""
    return train_fusion(fusion_config(head=head), study(), encoder=encoder(), context=context())


def configured(config, **changes):
    """Return a configuration with other fields."""
    return configs.replace(config, **changes)
