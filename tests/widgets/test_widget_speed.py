"""Short cuts that make a widget quick leave its results as they are."""

import json

import numpy as np
import pytest
import torch

import widgets
from bmfl_lab.errors import DataError


def test_each_image_stands_under_one_of_the_random_lesions(explorer, parts):
    study, models, _, _ = parts
    lesion, stimuli = explorer.lesion(["FFC"]), study.set("test")
    rows, right = explorer.batch_rows("test"), []
    controls = explorer.random_lesions(lesion)
    answers = [models["fusion"].logits(stimuli, control)[rows].argmax(1) for control in controls]
    for i, row in enumerate(rows):
        right.append(answers[i % len(controls)][i] == stimuli.labels[row])
    assert len(controls) > 1
    assert explorer.batch("fusion", ["test"], lesion)["accuracy"][0, 2] == pytest.approx(
        np.mean(right)
    )


def test_the_explorer_works_on_half_of_the_threads_and_gives_them_back(explorer):
    before = torch.get_num_threads()
    torch.set_num_threads(4)
    inner = lambda: explorer._cached(("inner",), torch.get_num_threads)  # noqa: E731
    assert explorer._cached(("outer",), lambda: (torch.get_num_threads(), inner())) == (2, 2)
    assert torch.get_num_threads() == 4
    torch.set_num_threads(before)
    explorer.batch("fusion", ["test"], explorer.lesion(["V2"]))
    assert torch.get_num_threads() == before
    with pytest.raises(DataError, match="nowhere"):
        explorer.batch("fusion", ["nowhere"], explorer.lesion(["V2"]))
    assert torch.get_num_threads() == before


def sent(figure):
    """The texts that the page gets of a figure: the geometry of its meshes, its look and its values."""
    return {"geometry": figure.geometry.value, **json.loads(figure.state.value)}


def test_a_lesion_sends_only_new_values_of_the_cortex(explorer, tmp_path):
    frame = widgets.region_ablation(explorer, folder=tmp_path)
    before = sent(frame.figures[0])
    frame.set(regions=("FFC",))
    after = sent(frame.figures[0])
    assert frame.error == "" and {k for k in after if after[k] != before[k]} == {"values"}
    assert json.loads(after["values"]).keys() == {"0", "4"}
    assert "intensity" not in json.loads(after["look"])["data"][4]


def test_another_map_leaves_the_geometry_and_the_other_figure_as_they_are(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path, region="V1")
    before = [sent(figure) for figure in frame.figures]
    frame.set(show="encoding accuracy")
    cortex, tuning = (sent(figure) for figure in frame.figures)
    assert frame.error == "" and tuning == before[1]
    assert {k for k in cortex if cortex[k] != before[0][k]} == {"values", "look"}
    look = json.loads(cortex["look"])
    assert "validation r" in look["label"] and "encoding accuracy" in look["label"]
    assert look["data"][4]["colorbar"]["title"]["text"] == "validation r"


def test_all_figures_share_one_copy_of_plotly(explorer, tmp_path):
    frames = [widgets.surface_viewer(explorer, folder=tmp_path) for _ in range(2)]
    figures = [figure for frame in frames for figure in frame.figures]
    assert len({figure.library_id for figure in figures}) == 1 and len(figures) == 4
