"""``python -m bmfl_lab.data STUDY`` makes or fetches a study once and says what it is.

``python -m bmfl_lab.data check STUDY`` looks at a study of your own before anything is computed.
``python -m bmfl_lab.data shards STUDY OUT`` writes its images as tar shards.
``python -m bmfl_lab.data nod --help`` lists the parts of NOD that can be fetched.
"""

from __future__ import annotations

import argparse
import sys
from collections.abc import Sequence
from pathlib import Path

from bmfl_lab import runs, training  # their names are imported when they are used
from bmfl_lab.data import nod_fetch, shards
from bmfl_lab.data.check import check_study, examples
from bmfl_lab.data.demo import fetch_parts
from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import BmflError, FetchError
from bmfl_lab.files import printable, system_errors, write_bytes
from bmfl_lab.runtime import offline
from bmfl_lab.viz.charts import contact_sheet
from bmfl_lab.viz.saving import png_bytes


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line; return 0, or 2 after printing why the study cannot be loaded."""
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.data", description="make or fetch a study once"
    )
    parser.add_argument(
        "study", nargs="?", default="demo", help="planted, demo, nod, or a folder (demo)"
    )
    given = list(sys.argv[1:] if arguments is None else arguments)
    try:
        if given[:1] == ["nod"]:
            return nod_fetch.main(given[1:])
        if given[:1] == ["shards"]:
            return shards.main(given[1:])
        if given[:1] == ["check"]:
            return _check(given[1:])
        options = parser.parse_args(given)
        if options.study == "demo":
            with system_errors():
                fetch_parts()
        print(load_study(options.study).description)
    except BmflError as error:
        print(f"error: {error}", file=sys.stderr)
        return 2
    return 0


def _check(arguments: Sequence[str]) -> int:
    """Describe a study and draw images of it; whatever is wrong with the study raises an error."""
    parser = argparse.ArgumentParser(
        prog="python -m bmfl_lab.data check",
        description="say what a study holds, and refuse what a training would refuse",
    )
    parser.add_argument("study", help="study file, folder, or name of a study")
    parser.add_argument("--sheet", help="PNG file of the contact sheet (STUDY_check.png)")
    options = parser.parse_args(arguments)
    study = load_study(options.study)
    print(_backbone(study))
    print("\n".join(check_study(study)))
    if {"train", "val", "test"} <= set(study.sets):
        print("\n".join(runs.study_stages(study)))
    sheet = Path(options.sheet or f"{Path(options.study).stem}_check.png")
    figure = contact_sheet(examples(study), title=f"Images of {study.name}")
    write_bytes(sheet, png_bytes(figure))
    print(f"contact sheet: {printable(sheet.resolve())}")
    return 0


def _backbone(study: Study) -> str:
    """Load the backbone as a training does, which refuses what does not fit; fetch nothing."""
    try:
        with offline():
            backbone = training.study_backbone(study.backbone, "cpu")
    except FetchError as error:
        return f"backbone {study.backbone.name}: its weights are not here yet ({error})"
    return f"backbone {backbone.name} at {backbone.image_size} px: {backbone.weights_label}"


if __name__ == "__main__":
    raise SystemExit(main())
