"""The record of a run: tidy metric rows plus everything needed to judge and repeat them."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from bmfl_lab.errors import DataError, message
from bmfl_lab.files import read_sealed_json, write_sealed_json
from bmfl_lab.runtime import code_revision, peak_memory_mb, versions

SCHEMA = 2
READABLE = (1, 2)
"""Schema versions that `read_record` reads; schema 1 lacks the fields after `layer`."""
_CHOSEN = ("notebook", "parameters", "study", "config")


@dataclass(frozen=True)
class MetricRow:
    """One number of a run, with all that a reader needs to judge it.

    Parameters
    ----------
    name : str
        Metric ("accuracy", "balanced_accuracy", "pearson_r").
    value : float or None
        None when the metric is undefined; never NaN.
    unit : str
        "fraction", "r", "nats", "images/s", ...
    split : str
        Which images or responses it was computed on.
    n : int
        Number of stimuli (or vertices, as `unit` says) behind the value.
    selection : str
        How the model behind the value was selected ("best validation accuracy", "last epoch",
        "none").
    model, subject, roi, shift : str
        Empty where it does not apply.
    severity : int or None
        1-5 for made shifts.
    seed : int or None
        Training seed; None for a value over seeds.
    ci_low, ci_high : float or None
        Interval of `interval` kind.
    interval : str
        How the interval was made ("95 % bootstrap over stimuli").
    n_seeds : int or None
        Number of seeds behind a value over seeds.
    notes : str
        Anything a reader must know ("simulated fMRI").
    layer : str
        Layer or block of the model; empty where it does not apply.
    reference : str
        What `model` is compared with; the value is then a difference, `model` minus `reference`.
        Empty for a value that is no comparison.
    p, p_adjusted : float or None
        p value of the comparison, alone and adjusted over its family.
    family : str
        Comparisons over which `p_adjusted` is adjusted ("the OOD sets").
    n_compared : int or None
        Number of comparisons in that family.
    """

    name: str
    value: float | None
    unit: str
    split: str
    n: int
    selection: str
    model: str = ""
    subject: str = ""
    roi: str = ""
    shift: str = ""
    severity: int | None = None
    seed: int | None = None
    ci_low: float | None = None
    ci_high: float | None = None
    interval: str = ""
    n_seeds: int | None = None
    notes: str = ""
    layer: str = ""
    reference: str = ""
    p: float | None = None
    p_adjusted: float | None = None
    family: str = ""
    n_compared: int | None = None


def _finite(value: Any) -> Any:
    if isinstance(value, float) and not math.isfinite(value):
        return None
    return value


@dataclass
class Record:
    """Collects the rows of one run and writes ``record.json`` once, at the end.

    Parameters
    ----------
    notebook : str
        Stem of the notebook ("03_fusion_training").
    parameters : mapping
        The run's parameters, as JSON values.
    study : mapping
        ``name``, ``fingerprint`` and ``simulated`` of the study.
    config : mapping
        Full configuration.
    """

    notebook: str
    parameters: Mapping[str, Any]
    study: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: list[MetricRow] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float | None, **fields: Any) -> MetricRow:
        """Append a row and return it; NaN becomes None (undefined).

        Raises
        ------
        TypeError
            If a required field of `MetricRow` is missing or unknown.
        """
        numbers = {
            k: _finite(float(v))
            if k in ("ci_low", "ci_high", "p", "p_adjusted") and v is not None
            else v
            for k, v in fields.items()
        }
        row = MetricRow(
            name=name, value=None if value is None else _finite(float(value)), **numbers
        )
        self.rows.append(row)
        return row

    def extend(self, rows: Iterable[MetricRow]) -> None:
        """Append rows made elsewhere."""
        for row in rows:
            self.add(**dataclasses.asdict(row))

    def to_frame(self):
        """Return the rows as a pandas DataFrame, one row a number."""
        import pandas as pd

        return pd.DataFrame(
            [dataclasses.asdict(r) for r in self.rows],
            columns=[f.name for f in dataclasses.fields(MetricRow)],
        )

    def to_dict(self) -> dict[str, Any]:
        """Return the record as JSON values."""
        return {
            "schema": SCHEMA,
            "notebook": self.notebook,
            "parameters": dict(self.parameters),
            "study": dict(self.study),
            "config": dict(self.config),
            "rows": [dataclasses.asdict(r) for r in self.rows],
            "times_s": {k: round(v, 3) for k, v in self.times.items()},
            "peak_memory_mb": round(peak_memory_mb(), 1),
            "versions": versions(),
            "code_revision": code_revision(),
            "finished": datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds"),
            "extra": self.extra,
        }

    def finish(self, folder: str | Path) -> Path:
        """Write ``record.json`` into `folder`, atomically and with a checksum of itself, and return its path.

        Raises
        ------
        DataError
            If there is no row: a run without a number proves nothing.
        """
        if not self.rows:
            raise DataError(
                message("at least one metric row", "none", "add rows before finishing the record")
            )
        path = Path(folder) / "record.json"
        write_sealed_json(path, self.to_dict())
        return path


def read_record(path: str | Path) -> Record:
    """Read a ``record.json``.

    Raises
    ------
    DataError
        If the file is missing, changed by a single bit, or of another schema version.
    """
    data = read_sealed_json(path)
    if not isinstance(data, dict) or data.get("schema") not in READABLE:
        got = data.get("schema") if isinstance(data, dict) else type(data).__name__
        raise DataError(
            message(
                f"a record of schema {' or '.join(map(str, READABLE))} in {path}",
                repr(got),
                "run the notebook again with this version",
            )
        )
    try:
        record = Record(*(dict(data[k]) if k != "notebook" else str(data[k]) for k in _CHOSEN))
        record.rows = [MetricRow(**row) for row in data["rows"]]
        if data["schema"] == 1:
            record.rows = _comparisons_of_schema_1(record.rows)
        record.times = dict(data.get("times_s", {}))
        extra = dict(data.get("extra", {}))
    except (KeyError, TypeError, ValueError) as error:
        raise DataError(
            message(
                f"the fields of a record in {path}",
                f"{type(error).__name__}: {error}",
                "run the notebook again",
            )
        ) from error
    record.extra = {
        **extra,
        "code_revision": data.get("code_revision"),
        "finished": data.get("finished"),
        "peak_memory_mb": data.get("peak_memory_mb"),
        "versions": data.get("versions"),
    }
    return record


_JOINED = {
    "accuracy_difference": " - ",
    "accuracy_over_shifts_difference": " - ",
    "mce_difference": " - ",
    "rsa_mean_gain": " - ",
    "region_effect": " beyond ",
}
"""How schema 1 joined the names of model and reference in the field `model`."""
_P_IN_NOTES = re.compile(r"p = ([0-9.e+-]*[0-9])")


def comparison_label(name: str, model: str, reference: str, roi: str = "") -> str:
    """Return the model of a row as reports and figures show it, such as "fusion - backbone".

    Parameters
    ----------
    name, model, reference, roi : str
        Fields of a `MetricRow`.
    """
    joint = _JOINED.get(name, "")
    if name == "p_holm":
        joint = " beyond " if roi else " - "
    return f"{model}{joint}{reference}" if joint and reference else model


def _comparisons_of_schema_1(rows: list[MetricRow]) -> list[MetricRow]:
    """Fill the fields of comparisons, which schema 1 wrote into `model`, `notes` and other rows."""

    def place(row: MetricRow) -> tuple:
        return row.model, row.split, row.shift, row.severity, row.subject, row.roi, row.layer

    p_of = {place(r): r.value for r in rows if r.name == "p_holm"}
    found = []
    for row in rows:
        fields: dict[str, Any] = {}
        joint = _JOINED.get(row.name) or (" beyond " if " beyond " in row.model else " - ")
        if row.name in (*_JOINED, "p_holm") and joint in row.model:
            fields["model"], _, fields["reference"] = row.model.partition(joint)
        if row.name in (*_JOINED, "p_holm") or row.name.endswith("_gain"):
            in_notes = _P_IN_NOTES.search(row.notes) if row.name.endswith("_gain") else None
            fields["p_adjusted"] = float(in_notes[1]) if in_notes else p_of.get(place(row))
        found.append(dataclasses.replace(row, **fields))
    return found
