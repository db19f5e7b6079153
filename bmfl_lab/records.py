"""The record of a run: metric rows, and everything that is needed to judge and repeat them."""

from __future__ import annotations

import dataclasses
import datetime
import math
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any

from bmfl_lab.errors import DataError, require, translated
from bmfl_lab.files import read_json, read_sealed_json, write_sealed_json
from bmfl_lab.runtime import code_revision, loaded_backbones, peak_memory_mb, versions

if TYPE_CHECKING:
    import pandas

SCHEMA = 2
READABLE = (1, 2)
"""Schema versions that `read_record` reads; schema 1 has no fields after `layer`."""
REGISTERED = "preregistered.json"
"""File beside a record with what was declared before the run."""
METRICS = frozenset(
    """
    accuracy balanced_accuracy accuracy_difference accuracy_over_shifts
    accuracy_over_shifts_difference agreement ece nll error_consistency id_ood_gap
    robustness_slope robustness_intercept robustness_r2 effective_robustness corruption_error mce
    mce_difference region_effect difference p_holm p_family n_better n_worse n_alike n_open
    pearson_r pearson_r_median noise_normalised noise_normalised_median noise_ceiling ceiling_r
    truth_r truth_r_median block_r control_r val_r encoding_r n_undefined n_near_constant n_stimuli
    n_vertices shared_stimuli n_records n_unreadable field_error field_r_x field_r_y
    field_r_eccentricity field_r_polar_angle field_error_degrees field_error_shuffled tuning_error
    attention_weights attention_labels attention_deletion attention_insertion
    attention_completeness attention_planted_region consulted rsa rsa_mean rsa_difference
    rsa_mean_difference rsa_mean_gain rsa_transfer rsa_transfer_gain rsa_ceiling_low
    rsa_ceiling_high cka_debiased spatial_score spatial_score_p temporal_score temporal_score_p
    identification_top1 identification_two_way eeg_encoding_r eeg_encoding_gain
    brain_robust_correlation synthesis_start synthesis_activity synthesis_judged purity_found
    purity_made similarity_gain swept_similarity swept_accuracy names_top1 network_effect
    new_subject_r accuracy_gain_trend gain_of_encoder decoding_peak time_two_way best_blur
    search_asymmetry convergence_trend motion_tuning_r decoding_cosine decoding_two_way
    decoding_retrieval_2 decoding_retrieval_10 decoding_retrieval_50 decoding_r decoding_r_ceiling
    nan_logits skipped_images shape_bias feature_correlation far_accuracy sensor_two_way
    convergence_encoding reconstruction
    """.split()
)
"""Names of the metrics that the notebooks record."""
_CHOSEN = ("notebook", "parameters", "study", "config")


@dataclass(frozen=True)
class MetricRow:
    """Hold one number of a run, with everything that a reader needs to judge it.

    Parameters
    ----------
    name : str
        Metric ("accuracy", "balanced_accuracy", "pearson_r").
    value : float or None
        The number; None if the metric is undefined, never NaN.
    unit : str
        Unit of the value ("fraction", "r", "nats", "images/s").
    split : str
        Name of the images or responses on which it was computed.
    n : int
        Number of stimuli (or vertices, as `unit` says) from which it was computed.
    selection : str
        Rule by which the model was selected ("best validation accuracy", "last epoch", "none").
    model, subject, roi, shift : str, default ""
        Names; empty if they do not apply.
    severity : int, optional
        1 to 5 for made shifts.
    seed : int, optional
        Training seed; None for a value over several seeds.
    ci_low, ci_high : float, optional
        Limits of the interval.
    interval : str, default ""
        Kind of the interval ("95 % bootstrap over stimuli").
    n_seeds : int, optional
        Number of seeds of a value over several seeds.
    notes : str, default ""
        Anything else that a reader must know ("simulated fMRI").
    layer : str, default ""
        Layer or block of the model; empty if it does not apply.
    reference : str, default ""
        Model with which `model` is compared; the value is then a difference, `model` minus
        `reference`. Empty for a value that is not a comparison.
    p, p_adjusted : float, optional
        p value of the comparison, unadjusted and adjusted for its family.
    family : str, default ""
        Name of the comparisons for which `p_adjusted` is adjusted ("the OOD sets").
    n_compared : int, optional
        Number of comparisons in that family.
    smallest, p_equivalence : float, optional
        Smallest effect of interest, and the adjusted p value of the test that the difference is
        smaller.
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
    smallest: float | None = None
    p_equivalence: float | None = None


_NUMBERS = ("value", "ci_low", "ci_high", "p", "p_adjusted", "smallest", "p_equivalence")


def _finite(value: float | None) -> float | None:
    """Return a number as a Python float, and None for None, NaN and infinity."""
    return None if value is None or not math.isfinite(value) else float(value)


@dataclass
class Record:
    """Collect the rows of one run, and write ``record.json`` at its end.

    Parameters
    ----------
    notebook : str
        Name of the notebook without its ending ("03_fusion_training").
    parameters : mapping of str to JSON values
        Parameters of the run.
    study : mapping of str to JSON values
        At least ``name``, ``fingerprint`` and ``simulated`` of the study.
    config : mapping of str to JSON values, optional
        Full configuration.
    rows : list of MetricRow, optional
        Rows so far.
    times : dict of str to float, optional
        Name of a stage to its seconds.
    extra : dict of str to JSON values, optional
        Further values by name.
    """

    notebook: str
    parameters: Mapping[str, Any]
    study: Mapping[str, Any]
    config: Mapping[str, Any] = field(default_factory=dict)
    rows: list[MetricRow] = field(default_factory=list)
    times: dict[str, float] = field(default_factory=dict)
    extra: dict[str, Any] = field(default_factory=dict)

    def add(self, name: str, value: float | None, **fields: Any) -> MetricRow:
        """Append a row and return it.

        Parameters
        ----------
        name : str
            Metric.
        value : float or None
            The number. NaN and infinity become None (undefined), also in the fields.
        **fields
            Other fields of `MetricRow`.

        Returns
        -------
        MetricRow

        Raises
        ------
        TypeError
            If a required field of `MetricRow` is missing, or a field is unknown.
        """
        fields["value"] = value
        row = MetricRow(name, **{k: _finite(v) if k in _NUMBERS else v for k, v in fields.items()})
        self.rows.append(row)
        return row

    def extend(self, rows: Iterable[MetricRow]) -> None:
        """Append rows that were made elsewhere.

        Parameters
        ----------
        rows : iterable of MetricRow
            The rows.
        """
        for row in rows:
            self.add(**dataclasses.asdict(row))

    def to_frame(self) -> pandas.DataFrame:
        """Return the rows as a DataFrame with one column per field of `MetricRow`."""
        import pandas

        columns = [f.name for f in dataclasses.fields(MetricRow)]
        return pandas.DataFrame([dataclasses.asdict(r) for r in self.rows], columns=columns)

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
            "extra": {**self.extra, "backbones": loaded_backbones()},
        }

    def finish(self, folder: str | Path) -> Path:
        """Write ``record.json`` with a checksum of itself, atomically.

        Parameters
        ----------
        folder : str or Path
            Folder of the run.

        Returns
        -------
        Path
            The file. If the run was pre-registered, its ``extra`` holds what was declared.

        Raises
        ------
        DataError
            If the record has no row.
        """
        require(
            self.rows,
            DataError,
            "at least one metric row",
            "none",
            "add rows before finishing the record",
        )
        path = Path(folder) / "record.json"
        if (declared := path.with_name(REGISTERED)).is_file():
            self.extra["preregistered"] = read_json(declared)
        write_sealed_json(path, self.to_dict())
        return path


def read_record(path: str | Path) -> Record:
    """Read a ``record.json``.

    Parameters
    ----------
    path : str or Path
        The file.

    Returns
    -------
    Record
        Versions, code revision, peak memory and time of the run are in its ``extra``.

    Raises
    ------
    DataError
        If the file is missing, was changed after it was written, or has another schema version.
    """
    data = read_sealed_json(path)
    schema = data.get("schema") if isinstance(data, dict) else None
    newer = isinstance(schema, int) and schema > SCHEMA
    require(
        schema in READABLE,
        DataError,
        f"a record of schema {' or '.join(map(str, READABLE))} in {path}",
        repr(schema),
        "update bmfl_lab, which wrote this record in a newer version"
        if newer
        else "give the path of a record.json that a run wrote",
    )
    with translated(
        *(KeyError, TypeError, ValueError),
        expected=f"the fields of a record in {path}",
        remedy="run the notebook again",
    ):
        record = Record(*(dict(data[k]) if k != "notebook" else str(data[k]) for k in _CHOSEN))
        record.rows = [MetricRow(**row) for row in data["rows"]]
        if data["schema"] == 1:
            record.rows = _comparisons_of_schema_1(record.rows)
        record.times = dict(data.get("times_s", {}))
        extra = dict(data.get("extra", {}))
    machine = ("code_revision", "finished", "peak_memory_mb", "versions")
    record.extra = {**extra, **{k: data.get(k) for k in machine}}
    return record


_JOINED = {
    "accuracy_difference": " - ",
    "accuracy_over_shifts_difference": " - ",
    "mce_difference": " - ",
    "rsa_mean_gain": " - ",
    "region_effect": " beyond ",
}
"""Text with which schema 1 joined model and reference in the field `model`, by metric."""
_P_IN_NOTES = re.compile(r"p = ([0-9.e+-]*[0-9])")


def study_label(record: Record) -> str:
    """Return the study's name, and whether its responses are simulated or measured."""
    # records of earlier versions say only whether responses are simulated
    kind = record.study.get("responses") or ("simulated" if record.study.get("simulated") else "")
    # the demo's stand-in is the rule; results from the original weights never share its rows
    if original_weights(record):
        kind += f"{', ' if kind else ''}original backbone weights"
    return str(record.study.get("name", "")) + (f" ({kind})" if kind else "")


def original_weights(record: Record) -> bool:
    """Return whether original weights of a backbone served in a run."""
    return any(label.startswith("original weights") for label in _served(record).values())


def _served(record: Record) -> dict[tuple[str, str], str]:
    """Return the label of all weights but random ones, by name of the backbone and SHA-256."""
    found = record.extra.get("backbones") or []
    served = {
        (str(one.get("name")), str(one.get("sha256"))): str(one.get("weights", "")) for one in found
    }
    return {key: label for key, label in served.items() if not label.startswith("random")}


def check_same_weights(records: Mapping[str, Record]) -> None:
    """Refuse runs that are to be compared and whose backbones have different weights.

    Random weights, which are controls, do not count.

    Parameters
    ----------
    records : mapping of str to Record
        Records by name of the run.

    Raises
    ------
    DataError
        If two runs used a backbone of the same name with different weights.
    """
    known: dict[str, tuple[str, dict[str, str]]] = {}
    for run, record in records.items():
        by_name: dict[str, dict[str, str]] = {}
        for (name, digest), label in _served(record).items():
            by_name.setdefault(name, {})[digest] = label
        for name, weights in by_name.items():
            first, expected = known.setdefault(name, (run, weights))
            require(
                set(weights) == set(expected),
                DataError,
                f"runs with the same weights of {name}, {' and '.join(expected.values())} as in "
                f"{first}",
                f"{' and '.join(weights.values())} in {run}",
                "execute the older runs again (run --force): results of original weights and of a "
                "stand-in are not compared",
            )


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
