"""What makes a widget quick stays right: what is sent apart, drawn in one frame, put off or shared out."""

import gc
import inspect
import json
import subprocess
import sys
from pathlib import Path

import numpy as np
import pytest
import torch

import widgets
from bmfl_lab.errors import DataError
from widgets.frame import undisturbed

ROOT = Path(__file__).resolve().parents[2]


def news(frame):
    return [json.loads(figure.news.value) for figure in frame.figures.values()]


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


def test_a_lesion_changes_only_the_values_of_the_cortex(explorer, tmp_path):
    frame = widgets.region_ablation(explorer, folder=tmp_path)
    before = news(frame)[0]
    frame.set(regions=("FFC",))
    after = news(frame)[0]
    assert frame.error == "" and {k for k in after if after[k] != before.get(k)} == {"v3", "change"}
    assert json.loads(after["v3"]).keys() == {"intensity"} and "intensity" not in json.loads(
        after["t3"]
    )


def test_another_map_is_new_values_colours_and_key_without_a_new_layout(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path, region="V1")
    before = news(frame)
    frame.set(show="encoding accuracy")
    (cortex, tuning), (old, old_tuning) = news(frame), before
    assert frame.error == "" and {k for k in cortex if cortex[k] != old.get(k)} == {
        "v3",
        "t3",
        "key",
        "change",
    }
    was, now = json.loads(old["t3"]), json.loads(cortex["t3"])
    assert {k for k in now if now[k] != was.get(k)} <= {
        "colorscale",
        "cmin",
        "cmax",
        "hovertemplate",
    }
    assert {k for k in tuning if tuning[k] != old_tuning.get(k)} == {"change"}
    assert (
        "validation r" in now["hovertemplate"]
        and "validation r" in json.loads(cortex["key"])["bar"]
    )
    assert (
        "encoding accuracy" in json.loads(cortex["key"])["title"]
        and "encoding" not in cortex["look"]
    )


def test_the_library_is_sent_before_the_widget_is_imported():
    code = (
        "import sys, widgets, widgets.shelf as shelf; made = shelf.shelf\n"
        "shelf.shelf = lambda: print('widgets.surface' in sys.modules) or made()\n"
        "widgets.surface_viewer; print('widgets.surface' in sys.modules, len(shelf._shelves[0].source) > 1e6)"
    )
    done = subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, timeout=120, cwd=ROOT
    )
    assert done.stdout.split() == ["False", "True", "True"], done.stdout + done.stderr


def test_the_page_is_told_to_draw_once_all_figures_are_there(explorer, tmp_path):
    frame = widgets.surface_viewer(explorer, folder=tmp_path)
    (cortex, details), heard = frame.figures.values(), []
    assert cortex.beat is details.beat
    cortex.beat.observe(
        lambda change: heard.append([part["change"] for part in news(frame)]), names="value"
    )
    start = news(frame)[0]["change"]
    frame.set(index=3)
    frame.set(show="encoding accuracy")
    assert heard == [[start + 1] * 2, [start + 2] * 2]


def test_garbage_is_collected_again_after_an_answer_and_after_an_error():
    seen = []

    @undisturbed()
    def make(source, /, *, folder="figures"):
        """Say so."""
        seen.append(gc.isenabled())
        raise ValueError(source)

    assert gc.isenabled()
    with pytest.raises(ValueError, match="wrong"):
        make("wrong", folder="here")
    assert seen == [False] and gc.isenabled()
    assert make.__doc__ == "Say so." and list(inspect.signature(make).parameters) == [
        "source",
        "folder",
    ]
    gc.disable()
    try:
        with undisturbed():
            pass
        assert not gc.isenabled(), "somebody else had switched it off"
    finally:
        gc.enable()
