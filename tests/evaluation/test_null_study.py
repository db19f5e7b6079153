"""From planted responses to the sentence of a report: help where they carry the class, and none where they do not."""

from __future__ import annotations

import numpy as np
import pandas as pd
import pytest

from bmfl_lab import config as configs
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.evaluation import compare_models, evaluate_ood
from bmfl_lab.evaluation.findings import comparisons, findings
from bmfl_lab.training import Context, LoopConfig, train_fusion
from bmfl_lab.training.recipes import tiny

LOOP = LoopConfig(epochs=8, batch_size=32, lr=5e-3, weight_decay=0.05)


def rows_of_a_study(folder, carries):
    """Compare the fusion with the backbone, three seeds each, the true responses in place of an encoder's."""
    sizes = {"n_encoder": 20, "n_encoder_val": 8, "n_encoder_test": 8, "n_test": 120, "n_ood": 120}
    study = load_study("planted", carries=carries, **sizes)
    respond, atlas = study.subject().truth["respond"], study.subject().atlas

    images = {s.ids[i]: s.image(i) for s in study.sets.values() for i in range(len(s))}

    def truth(tokens, ids):
        return respond(np.stack([images[i] for i in ids]))

    config = tiny(kind="pooled:4", loop=LOOP)
    kinds = {
        "backbone": (configs.replace(config, head="backbone"), None, None),
        "fusion": (config, truth, atlas),
    }
    context = Context.make(FeatureStore(folder), "cpu")
    models = {
        name: [
            train_fusion(c, study, brain=source, atlas=where, context=context, seed=s, name=name)
            for s in (0, 1, 2)
        ]
        for name, (c, source, where) in kinds.items()
    }
    result = evaluate_ood(models, study, sets=("test", "recoloured"), shifts=(), n_boot=50)
    rows = [*result.rows, *compare_models(result, "backbone")]
    return pd.DataFrame([vars(r) for r in rows]).assign(study="planted (simulated)", run="null")


@pytest.mark.parametrize("carries", [False, True])
def test_help_of_the_brain_is_said_where_it_was_planted_and_only_there(tmp_path, carries):
    rows = rows_of_a_study(tmp_path, carries)
    line, pair = findings(rows)
    verdict = set(comparisons(rows)["verdict"])
    if carries:
        assert (
            "Fusion was better than the backbone alone on 1 of 1 out-of-distribution sets" in line
        )
        assert "not compared directly with a control" in line and verdict == {"better"}
    else:
        assert "on none of 1 out-of-distribution sets: no help of the brain was found." in line
        assert "better" not in verdict and "undecided on 2 of 2 sets" in pair
