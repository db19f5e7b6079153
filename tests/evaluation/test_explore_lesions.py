"""Live accuracy under a lesion: images with NaN logits are wrong, whatever `argmax` makes of them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.evaluation import Explorer
from bmfl_lab.training import LoopConfig, train_fusion
from bmfl_lab.training.recipes import tiny


@pytest.fixture(scope="module")
def study():
    return load_study(
        "planted",
        n_encoder=8,
        n_encoder_val=4,
        n_encoder_test=4,
        n_train=32,
        n_val=16,
        n_test=20,
        n_ood=4,
    )


class Half:
    """A model without a brain, right on every image; the first logit of images of class 0 is NaN."""

    def logits(self, stimuli):
        out = np.eye(len(stimuli.class_names))[np.asarray(stimuli.labels)]
        out[np.asarray(stimuli.labels) == 0, 0] = np.nan
        return out


def test_a_model_without_a_brain(study):
    labels = np.asarray(study.set("test").labels)
    table = Explorer(study, {"half": Half()}).batch("half", ["test"])
    assert 0 < (labels == 0).sum() < len(labels)
    assert table["accuracy"][0, 0] == pytest.approx((labels != 0).mean())


def test_a_fusion_intact_and_lesioned(study, tmp_path):
    respond = study.subject().truth["respond"]
    images = {s.ids[i]: s.image(i) for s in study.sets.values() for i in range(len(s))}
    model = train_fusion(
        configs.replace(tiny(kind="pooled:4"), loop=LoopConfig(epochs=1, batch_size=16, lr=1e-3)),
        study,
        brain=lambda tokens, ids: respond(np.stack([images[i] for i in ids])),
        atlas=study.subject().atlas,
        store=FeatureStore(tmp_path),
        device="cpu",
    )
    explorer = Explorer(study, {"fusion": model}, store=model.store)
    assert explorer.batch("fusion", ["test"])["accuracy"][0, 0] > 0
    (bias,) = [p for p in model.module.parameters() if p.shape == (len(study.class_names),)]
    with torch.no_grad():
        bias[0] = torch.nan
    logits = model.logits(study.set("test"))
    assert (
        np.isnan(logits[:, 0]).all() and (logits.argmax(1) == study.set("test").labels).any()
    )  # NaN wins an argmax
    table = Explorer(study, {"fusion": model}, store=model.store)
    found = table.batch("fusion", ["test"], table.lesion(["LO"]))
    assert (found["accuracy"] == 0).all() and (found["changed"] == 0).all()
