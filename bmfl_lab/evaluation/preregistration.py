"""Registration of a comparison before its first result, and what a report says about it."""

from __future__ import annotations

import datetime
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import pandas as pd

from bmfl_lab.data.study import Study, load_study
from bmfl_lab.errors import BmflError
from bmfl_lab.evaluation.findings import comparisons
from bmfl_lab.evaluation.ood import power_statement
from bmfl_lab.files import lock, read_json, write_json
from bmfl_lab.metrics.statistics import PRIMARY, SMALLEST_EFFECT
from bmfl_lab.runtime import offline


def planned_study(parameters: Mapping[str, Any], root: Path) -> Study:
    """Return the study that a notebook will load, if that takes no download."""
    place = root / Path(parameters["study"]).expanduser()
    with offline():
        return load_study(str(place) if place.exists() else parameters["study"])


def planned_power(parameters: Mapping[str, Any], root: Path) -> str:
    """Return what a run can detect, or why that is not known.

    Parameters
    ----------
    parameters : mapping of str to object
        Parameters of the notebook, with ``study`` and ``seeds``.
    root : Path
        Folder of the project, from which a relative path of the study is looked up.
    """
    try:
        return power_statement(planned_study(parameters, root), parameters)
    except BmflError as error:
        return f"Power is unknown: {error}"


def register(
    declared: Mapping[str, Any], parameters: Mapping[str, Any], root: Path, log: Path
) -> dict[str, Any]:
    """Return what is declared before a run, and note its hash in a log that is only added to.

    Parameters
    ----------
    declared : mapping of str to object
        ``hash`` of the spec, ``primary`` (pair of models) and ``smallest`` (fraction).
    parameters, root
        Same as in `planned_power`.
    log : Path
        JSON file of the hashes that this spec has had, with the time at which each was noted first.

    Returns
    -------
    dict of str to JSON values
        `declared`, with ``n_seeds``, ``power``, ``n`` (images per image set, if the study can be
        loaded) and ``log``.
    """
    with lock(log.with_suffix(".lock"), what="the log of registrations"):
        known = read_json(log) if log.is_file() else []
        if declared["hash"] not in [entry["hash"] for entry in known]:
            now = datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
            known.append({"hash": declared["hash"], "noted": now})
            write_json(log, known)
    found = {**declared, "n_seeds": len(parameters["seeds"]), "n": {}, "log": known}
    try:
        study = planned_study(parameters, root)
        found["n"] = {name: len(study.set(name)) for name in ("test", *study.ood)}
        return {**found, "power": power_statement(study, parameters)}
    except BmflError as error:
        return {**found, "power": f"Power is unknown: {error}"}


def registered_findings(registered: Sequence[Mapping[str, Any]], rows: pd.DataFrame) -> list[str]:
    """Return what was declared before the runs, whether it was changed, and its result.

    Parameters
    ----------
    registered : sequence of mapping
        Registrations of runs, see `register`.
    rows : DataFrame
        Metric rows of these runs.

    Returns
    -------
    list of str
        One sentence per different registration.
    """
    return list(dict.fromkeys(_registered(one, comparisons(rows)) for one in registered))


def _registered(one: Mapping[str, Any], table: pd.DataFrame) -> str:
    first, second = one["primary"]
    original, now = one["log"][0], one["hash"]
    state = f"unchanged since {original['noted']}"
    if now != original["hash"]:
        before = f"{original['hash'][:8]} on {original['noted']}"
        state = f"**changed**: the spec was first registered as {before}"
    mine = table[(table["first"] == first) & (table["second"] == second)]
    primary = mine[mine["family"] == PRIMARY]
    counts = primary["verdict"].value_counts()
    listed = ", ".join(f"{word} on {n}" for word, n in counts.items())
    result = f"{listed} of {len(primary)} sets" if listed else "not compared as the primary pair"
    if len(primary) and not primary["smallest"].eq(one["smallest"]).all():
        result += "; another smallest effect was tested"
    sizes = ", ".join(f"{name} {n}" for name, n in one["n"].items()) or "unknown"
    return (
        f"Pre-registered (spec {now[:8]}, {state}): `{first}` against `{second}`, smallest effect "
        f"of interest {100 * one['smallest']:g} points, images: {sizes}, {one['n_seeds']} seeds. "
        f"{one['power']} Result: {result}."
    )


def declared_problem(declared: Mapping[str, Any]) -> str:
    """Return what is wrong with the field ``preregistered`` of a spec, or an empty text."""
    pair, smallest = declared.get("primary"), declared.get("smallest", SMALLEST_EFFECT)
    if not (isinstance(pair, list) and len(pair) == 2 and all(isinstance(m, str) for m in pair)):
        return f"primary is {pair!r}, expected two models as in [fusion, backbone]"
    if not isinstance(smallest, float) or not 0 < smallest < 1:
        return f"smallest is {smallest!r}, expected a fraction as 0.02"
    unknown = sorted(set(declared) - {"primary", "smallest"})
    return f"unknown {unknown[0]!r}, expected primary and smallest" if unknown else ""
