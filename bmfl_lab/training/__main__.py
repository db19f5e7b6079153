"""``torchrun --nproc_per_node N -m bmfl_lab.training SPEC``: train a spec's models in N processes.

The models are kept in the cache folder. Notebooks with the same parameters read them and train
nothing again, and a training that was stopped goes on, with any number of processes.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence

from bmfl_lab.backbones import FeatureStore
from bmfl_lab.data.study import load_study
from bmfl_lab.errors import BmflError, RunError, require
from bmfl_lab.files import system_errors
from bmfl_lab.runs.spec import load_spec, spec_path
from bmfl_lab.training.compare import (
    presets,
    train_attribute_encoder,
    train_baselines,
    train_comparison,
)
from bmfl_lab.training.encoder import train_brain_encoder
from bmfl_lab.training.names import COMPARED

NOTEBOOKS = ("03_fusion_training", "04_ood_evaluation")


def main(arguments: Sequence[str] | None = None) -> int:
    """Train the models of every run of a spec that is a run of notebook 03 or 04.

    Returns
    -------
    int
        The exit code: 0, or 2 after an error, which is printed by the main process.
    """
    parser = argparse.ArgumentParser(prog="python -m bmfl_lab.training", description=main.__doc__)
    parser.add_argument("spec", help="a YAML file, or its stem in papermill_runs/specs")
    parser.add_argument("--cwd", help="folder that a relative study is found from (the project's)")
    options = parser.parse_args(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        with system_errors(options.spec):
            runs = [r for r in load_spec(spec_path(options.spec)) if r.notebook.stem in NOTEBOOKS]
            require(
                runs,
                RunError,
                f"a run of {' or '.join(NOTEBOOKS)} in {options.spec}",
                "none",
                "give a spec of one of these notebooks",
            )
            for run in runs:
                os.chdir(options.cwd or run.root)
                names = train_models(run.parameters)
                if is_main:
                    print(f"{run.run_id}: trained and kept: {', '.join(names)}", flush=True)
    except BmflError as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def train_models(parameters: Mapping[str, object]) -> list[str]:
    """Train the encoders and fusions of notebook 03 or 04, and return the names of the fusions.

    Parameters
    ----------
    parameters : mapping
        All parameters of one of the notebooks. The linear probe is left to the notebook.
    """
    given = dict(parameters)
    study = load_study(given["study"])
    subject = study.subject(given["subject"] or None)
    changes = {k: given[k] for k in ("epochs", "alpha", "query", "augment") if k in given}
    if "regions" in given:
        changes["regions"] = tuple(given["regions"])
    fusion_config, encoder_config = presets(given["preset"], **changes)
    options = {"store": FeatureStore(), "device": given["device"]}
    encoder = train_brain_encoder(encoder_config, study, subject=subject.name, **options)
    attributes = None
    if "attributes" in given["models"]:
        attributes = train_attribute_encoder(encoder_config, study, subject=subject.name, **options)
    options |= {"encoder": encoder, "seeds": given["seeds"]}
    trained = train_comparison(
        fusion_config,
        study,
        attribute_encoder=attributes,
        models=[m for m in given["models"] if m in COMPARED],
        **options,
    )
    if given.get("shorter"):
        trained |= train_baselines(fusion_config, study, epochs=given["shorter"], **options)
    return list(trained)


if __name__ == "__main__":
    sys.exit(main())
