"""``python -m bmfl_lab.runs plan|run|status|report SPEC`` and ``export SPEC|NOTEBOOK``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmfl_lab import evaluation
from bmfl_lab import runs as lazy
from bmfl_lab.errors import BmflError, RunError, require
from bmfl_lab.files import system_errors
from bmfl_lab.runs.cluster import CLUSTERS, execute_as_jobs, job_of
from bmfl_lab.runs.collect import write_report
from bmfl_lab.runs.execute import execute, folder_of, state_of
from bmfl_lab.runs.export import export_html
from bmfl_lab.runs.spec import Run, load_spec, spec_path

VERBS = {
    "plan": "print runs, states, what they can detect, and sizes of stages; start nothing",
    "run": "execute every run that is not ok",
    "status": "print states; the exit code is 1 unless all are ok",
    "report": "write papermill_runs/reports/<spec>.md from the records of ok runs",
    "export": "write executed notebooks as single HTML files to mail: figures inside, no script",
}


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 if all is ok, 1 if not, 2 on an error."""
    options = _parser().parse_args(arguments)
    try:
        with system_errors(options.spec):
            if options.verb == "export":
                return _export(options.spec, options.out, options.to, not options.no_code)
            runs = load_spec(spec_path(options.spec))
            if options.verb in ("plan", "status"):
                states = [_print_state(run, options.out) for run in runs]
                if options.verb == "plan":
                    _print_power(runs)
                    _print_stages(runs)
                return 0 if options.verb == "plan" or all(s == "ok" for s in states) else 1
            if options.verb == "report":
                ending = ".html" if options.html else ".pdf" if options.pdf else ".md"
                print(f"wrote {write_report(runs, options.out, options.to, ending)}")
                return 0
            how = {"out": options.out, "jobs": options.jobs, "force": options.force}
            if options.executor:
                states = execute_as_jobs(runs, options.executor, **how)
            else:
                states = execute(runs, **how)
    except BmflError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    print(f"{sum(s == 'ok' for s in states)} of {len(states)} runs ok")
    return 0 if all(s == "ok" for s in states) else 1


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.runs", description="Run notebooks headless, from specs."
    )
    verbs = parser.add_subparsers(dest="verb", required=True)
    for verb, text in VERBS.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        what = "; or one executed notebook" if verb == "export" else ""
        sub.add_argument("spec", help=f"a YAML file, or its stem in papermill_runs/specs{what}")
        sub.add_argument("--out", help="folder of all runs (papermill_runs/out)")
        if verb == "run":
            sub.add_argument("--jobs", type=int, default=1, help="notebooks at a time (1)")
            sub.add_argument("--executor", choices=CLUSTERS, help="submit jobs (this machine)")
            sub.add_argument("--force", action="store_true", help="execute runs that are ok, too")
        if verb in ("report", "export"):
            sub.add_argument("--to", help="file to write")
        if verb == "report":
            kind = sub.add_mutually_exclusive_group()
            kind.add_argument("--html", action="store_true", help="one page that holds its figures")
            kind.add_argument("--pdf", action="store_true", help="the same page, printed")
        if verb == "export":
            sub.add_argument("--no-code", action="store_true", help="leave the code out")
    return parser


def _print_state(run: Run, out: str | None) -> str:
    state, reason = state_of(run, out)
    defaults = {k: p.default for k, p in run.notebook.parameters().items()}
    chosen = {k: v for k, v in run.parameters.items() if v != defaults[k]}
    print(f"{state:<10} {run.run_id}  {chosen or 'defaults'}  {folder_of(run, out)}")
    for more in (reason, job_of(run, out) if state != "ok" else ""):
        if more:
            print(f"           {more}")
    return state


def _print_power(runs: Sequence[Run]) -> None:
    """Print what the runs that compare models can detect."""
    comparing = [r for r in runs if "power_statement(" in str(r.notebook.cells)]
    for said in dict.fromkeys(
        evaluation.planned_power(run.parameters, run.root) for run in comparing
    ):
        print(said)


def _print_stages(runs: Sequence[Run]) -> None:
    """Print what the runs will download, and what those that train read, store and compute."""
    for line in lazy.downloads(runs):
        print(line)
    for run in runs:
        for line in lazy.stages(run):
            print(line)


def _export(source: str, out: str | None, to: str | None, code: bool) -> int:
    if source.endswith(".ipynb"):
        notebooks = [Path(source)]
    else:
        runs = [r for r in load_spec(spec_path(source)) if state_of(r, out)[0] in ("ok", "stale")]
        notebooks = [folder_of(run, out) / "executed.ipynb" for run in runs]
        require(
            runs and not (to and len(runs) > 1),
            RunError,
            f"finished runs of {source}",
            f"{len(runs)} of them" + (" for one file" if to else ""),
            "leave --to out, as it names one file" if runs else "run the spec first",
        )
    for notebook in notebooks:
        print(f"wrote {export_html(notebook, to, code=code)}")
    return 0


if __name__ == "__main__":
    for stream in (sys.stdout, sys.stderr):
        stream.reconfigure(errors="backslashreplace")  # the terminal may not be UTF-8
    sys.exit(main())
