"""What a report says about brain encoders follows from the rows alone."""

import pandas as pd

from bmfl_lab.evaluation.findings import encoder_findings
from bmfl_lab.records import MetricRow

LABEL = "encoder of s (simulated responses), some backbone"


def row(name, value, model, roi="all", **fields):
    given = {
        "unit": "r",
        "split": "test",
        "n": 150,
        "selection": "none",
        "subject": "s",
        "roi": roi,
        **fields,
    }
    return vars(MetricRow(name=name, value=value, model=model, **given))


def frame(rows):
    return pd.DataFrame(rows).assign(study="made (simulated)", run_id="run")


ROWS = [
    row("pearson_r", 0.5, f"ridge {LABEL}", ci_low=0.4, ci_high=0.6),
    row("pearson_r", 0.6, f"roi_query {LABEL}", ci_low=0.5, ci_high=0.7),
    row("pearson_r", 0.9, f"ridge {LABEL}", roi="V1"),
    row("ceiling_r", 0.75, ""),
    *(
        row("val_r", v, m, roi=r, split="val")
        for m, r, v in [("ridge", "V1", 0.5), ("roi_query", "V1", 0.4)]
    ),
    *(
        row("val_r", v, m, roi=r, split="val")
        for m, r, v in [("ridge", "FFC", 0.3), ("roi_query", "FFC", 0.45)]
    ),
    *(row("val_r", v, "ensemble", roi=r, split="val") for r, v in [("V1", 0.55), ("FFC", 0.44)]),
    row("truth_r", 0.8, f"ridge {LABEL}"),
    row("truth_r", 0.6, f"ridge {LABEL}", shift="low_light", severity=3),
    row("truth_r", 0.7, f"ridge {LABEL}", split="clipart"),
    row("block_r", 0.4, "ridge", split="val", layer="block 00"),
    row("block_r", 0.5, "ridge", split="val", layer="block 07"),
    row("block_r", None, "ridge", split="val", layer="block 11"),
    row("control_r", 0.02, "shuffled pairing"),
    row("control_r", None, "position only"),
    row("field_error", 0.45, f"retinotopic {LABEL}", roi="", unit="degrees"),
]


def test_each_sentence_names_the_values_of_its_rows():
    said = "\n".join(encoder_findings(frame(ROWS)))
    assert (
        "n = 150 images: `ridge` 0.500 [0.400, 0.600], `roi_query` 0.600 [0.500, 0.700]; the noise allows 0.750"
        in said
    )
    assert (
        "`ridge` in V1; `roi_query` in FFC; the ensemble is ahead of all in 1 of 2 regions" in said
    )
    assert "`ridge`: test 0.800, low light 0.600, clipart 0.700" in said
    assert "best block of a ridge by validation r: all 07" in said
    assert "shuffled pairing 0.020, position only undefined" in said
    assert "receptive fields lie 0.45 degrees from the truth (median, `retinotopic`)" in said
    assert said.count("made (simulated), s: ") == 6


def test_rows_that_are_not_there_give_no_sentence():
    assert encoder_findings(frame([row("accuracy", 0.5, "fusion")])) == []
    only = frame([r for r in ROWS if r["name"] == "val_r"])
    assert len(encoder_findings(only)) == 1
    assert encoder_findings(frame(ROWS)[:0]) == []
