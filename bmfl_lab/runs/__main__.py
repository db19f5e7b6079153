"""``python -m bmfl_lab.runs plan|run|status|report SPEC``, ``export SPEC|NOTEBOOK`` and ``tidy [--check] [NOTEBOOK ...]``."""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmfl_lab.errors import BmflError, RunError, message
from bmfl_lab.runs.execute import execute, folder_of, state_of
from bmfl_lab.runs.export import export_html
from bmfl_lab.runs.hygiene import problems, tidy
from bmfl_lab.runs.notebook import read_notebook
from bmfl_lab.runs.paths import project_root
from bmfl_lab.runs.report import write_report
from bmfl_lab.runs.spec import Run, load_spec


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line and return its exit code: 0 only if everything asked for is ok."""
    options = _parser().parse_args(arguments)
    try:
        if options.verb == "tidy":
            return _tidy(options.notebooks, options.check)
        if options.verb == "export":
            return _export(options.source, options.out, options.to, not options.no_code)
        runs = load_spec(_spec_path(options.spec))
        if options.verb in ("plan", "status"):
            states = [_line(run, options.out) for run in runs]
            return 0 if options.verb == "plan" or all(s == "ok" for s in states) else 1
        if options.verb == "report":
            print(f"wrote {write_report(runs, options.out, options.to)}")
            return 0
        states = execute(runs, out=options.out, jobs=options.jobs, force=options.force)
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
    about = {
        "plan": "print the runs of a spec and their states; start nothing",
        "run": "execute every run that is not ok",
        "status": "print states; exit code 1 unless all are ok",
        "report": "write papermill_runs/reports/<spec>.md from the records of ok runs",
    }
    for verb, text in about.items():
        sub = verbs.add_parser(verb, help=text, description=text)
        sub.add_argument("spec", help="a YAML file, or its stem in papermill_runs/specs")
        sub.add_argument("--out", help="folder of all runs (papermill_runs/out)")
        if verb == "run":
            sub.add_argument("--jobs", type=int, default=1, help="notebooks at a time (1)")
            sub.add_argument("--force", action="store_true", help="execute also what is ok")
        if verb == "report":
            sub.add_argument("--to", help="file to write")
    about_export = (
        "write executed notebooks as single HTML files to mail: figures inside, no script"
    )
    sub = verbs.add_parser("export", help=about_export, description=about_export)
    sub.add_argument("source", help="an executed notebook, or a spec, whose ok runs are exported")
    sub.add_argument("--out", help="folder of all runs (papermill_runs/out)")
    sub.add_argument("--to", help="file to write, for one notebook (beside it)")
    sub.add_argument("--no-code", action="store_true", help="leave the code out")
    sub = verbs.add_parser("tidy", help="strip outputs from notebooks and check them")
    sub.add_argument("notebooks", nargs="*", help="files (all of notebooks/)")
    sub.add_argument(
        "--check", action="store_true", help="change nothing; fail if something is untidy"
    )
    return parser


def _spec_path(name: str) -> Path:
    path = Path(name)
    if path.suffix in (".yaml", ".yml") or path.is_file():
        return path
    return project_root() / "papermill_runs" / "specs" / f"{name}.yaml"


def _line(run: Run, out: str | None) -> str:
    state, reason = state_of(run, out)
    chosen = {k: v for k, v in run.parameters.items() if v != run.notebook.parameters()[k].default}
    print(
        f"{state:<10} {run.run_id}  {chosen or 'defaults'}  {folder_of(run, out)}"
        + (f"\n           {reason}" if reason else "")
    )
    return state


def _export(source: str, out: str | None, to: str | None, code: bool) -> int:
    if source.endswith(".ipynb"):
        print(f"wrote {export_html(source, to, code=code)}")
        return 0
    runs = [r for r in load_spec(_spec_path(source)) if state_of(r, out)[0] in ("ok", "stale")]
    if not runs or (to and len(runs) > 1):
        got = f"{len(runs)} of them" + (" for one file" if to else "")
        raise RunError(
            message(
                f"finished runs of {source}", got, "run the spec first; --to is for one notebook"
            )
        )
    for run in runs:
        print(f"wrote {export_html(folder_of(run, out) / 'executed.ipynb', to, code=code)}")
    return 0


def _tidy(names: Sequence[str], check: bool) -> int:
    paths = [Path(n) for n in names] or sorted((project_root() / "notebooks").glob("*.ipynb"))
    if not paths:
        raise RunError(
            message("notebooks to tidy", "none", "name them, or start in the project's folder")
        )
    bad = 0
    for path in paths:
        changed = False if check else tidy(path)
        found = problems(read_notebook(path))
        bad += bool(found)
        print(f"{path.name}: {'stripped' if changed else 'unchanged'}, {len(found)} problems")
        for problem in found:
            print(f"  {problem}")
    return 1 if bad else 0


if __name__ == "__main__":
    sys.exit(main())
