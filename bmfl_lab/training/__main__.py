"""``torchrun --nproc_per_node N -m bmfl_lab.training SPEC``: train and evaluate in N processes.

The models are kept in the cache folder. Notebooks with the same parameters read them and train
nothing again, and a training that was stopped goes on, with any number of processes. Images are
divided over the processes in training and evaluation, and the main process writes the record.
"""

from __future__ import annotations

import argparse
import os
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

from bmfl_lab import evaluation
from bmfl_lab.backbones import FeatureStore
from bmfl_lab.config import to_dict
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import BmflError, RunError, require
from bmfl_lab.evaluation.ood import OODResult
from bmfl_lab.files import system_errors
from bmfl_lab.records import Record
from bmfl_lab.runs.paths import out_root
from bmfl_lab.runs.spec import ON_NODES, Run, load_spec, spec_path
from bmfl_lab.runtime import timed
from bmfl_lab.training.compare import presets
from bmfl_lab.training.study_models import StudyModels, runnable_models, train_models


def main(arguments: Sequence[str] | None = None) -> int:
    """Train and evaluate the models of every run of a spec that is a run of notebook 03 or 04.

    Returns
    -------
    int
        The exit code: 0, or 2 after an error, which is printed by the main process.
    """
    parser = argparse.ArgumentParser(prog="python -m bmfl_lab.training", description=main.__doc__)
    parser.add_argument("spec", help="a YAML file, or its stem in papermill_runs/specs")
    parser.add_argument("--cwd", help="folder that a relative study is found from (the project's)")
    parser.add_argument(
        "--out", help="folder of the records, one folder per run (papermill_runs/out/torchrun)"
    )
    parser.add_argument("--train-only", action="store_true", help="evaluate nothing")
    options = parser.parse_args(arguments)
    is_main = os.environ.get("RANK", "0") == "0"
    try:
        with system_errors(options.spec):
            out = Path(options.out).expanduser() if options.out else out_root() / "torchrun"
            out = out.absolute()
            for run in _trained(load_spec(spec_path(options.spec)), options.spec):
                os.chdir(options.cwd or run.root)
                record, names = compute(run, evaluates=not options.train_only)
                if is_main:
                    print(f"{run.run_id}: trained and kept: {', '.join(names)}", flush=True)
                if is_main and record.rows:
                    (out / run.run_id).mkdir(parents=True, exist_ok=True)
                    print(f"record: {record.finish(out / run.run_id)}", flush=True)
    except BmflError as error:
        if is_main:
            print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _trained(runs: Sequence[Run], spec: str) -> list[Run]:
    """Return those runs of a spec that are runs of notebook 03 or 04."""
    found = [run for run in runs if run.notebook.stem in ON_NODES]
    require(
        found,
        RunError,
        f"a run of {' or '.join(ON_NODES)} in {spec}",
        "none",
        "give a spec of one of these notebooks",
    )
    return found


def compute(run: Run, *, evaluates: bool) -> tuple[Record, list[str]]:
    """Train the models of a run and evaluate them; return the record and the models' names.

    Parameters
    ----------
    run : Run
        A run of notebook 03 or 04. Figures, single images and the mean corruption error are left to
        the notebook.
    evaluates : bool
        Whether to evaluate the models; else the record has no rows.
    """
    given, times = dict(run.parameters), {}
    study = load_study(given["study"])
    models = runnable_models(given["models"], study)
    subject = study.subject(given["subject"] or None) if study.subjects else None
    changes = {k: given[k] for k in ("epochs", "alpha", "query", "augment") if k in given}
    if "regions" in given:
        changes["regions"] = tuple(given["regions"])
    configs = presets(given["preset"], **changes)
    options = {"store": FeatureStore(), "device": given["device"]}
    made = train_models(
        study,
        models,
        configs,
        subject=subject,
        seeds=given["seeds"],
        shorter=given.get("shorter", ()),
        times=times,
        **options,
    )
    described = {"fusion": to_dict(configs[0]), "encoder": to_dict(configs[1])}
    record = Record(run.notebook.stem, given, study.summary(), described, times=times)
    if evaluates:
        if "shifts" not in given and subject is not None and subject.kind != "predicted":
            options |= {"subject": subject.name, "n_boot": given["n_boot"]}
            with timed(times, "evaluate encoder"):
                judged = evaluation.evaluate_encoder(made.encoder, study, **options)
            record.extend(judged.rows)
        with timed(times, "evaluate"):
            tested = _evaluate(given, made, study)
        record.extend(tested.rows)
        record.extend(evaluation.main_comparisons(tested, models, smallest=given["smallest"]))
    return record, [*made.models, *made.baselines]


def _evaluate(given: Mapping[str, object], made: StudyModels, study: Study) -> OODResult:
    """Evaluate models on the sets of notebook 03, or on the suite of notebook 04."""
    groups = {**made.models, **made.baselines}
    if "shifts" not in given:
        return evaluation.evaluate_ood(groups, study, n_boot=given["n_boot"])
    baselines = [*(name for name in made.models if name == "backbone"), *made.baselines]
    return evaluation.evaluate_suite(
        groups,
        study,
        shifts=given["shifts"],
        severities=given["severities"],
        baselines=baselines,
        n_boot=given["n_boot"],
    )


if __name__ == "__main__":
    sys.exit(main())
