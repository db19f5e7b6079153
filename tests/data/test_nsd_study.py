"""NSD's own folders as a study, and the lines of the page on data as they are printed."""

import re
from pathlib import Path

import numpy as np
import pytest
from nsd_example import PER_SESSION, damage_vertex, make_root

from bmfl_lab import load_study
from bmfl_lab.data import algonauts, nsd, nsd_files
from bmfl_lab.errors import DataError

PAGE = Path(__file__).resolve().parents[2] / "bmfl_lab" / "data" / "README.md"


@pytest.fixture
def root(tmp_path, monkeypatch):
    monkeypatch.setattr(nsd_files, "TRIALS_PER_SESSION", PER_SESSION)
    monkeypatch.chdir(tmp_path)
    return make_root(tmp_path / "nsd")


def test_the_lines_of_the_readme_run_as_printed(root):
    (block,) = [
        b
        for b in re.findall(r"```python\n(.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)
        if "import nsd" in b
    ]
    names = {}
    exec(compile(block, "README.md", "exec"), names)
    subject, study = names["subject"], names["study"]
    mapped = study.subject("subj01")
    assert isinstance(mapped.responses, np.memmap) and Path("cache/subj01.npy").is_file()
    np.testing.assert_array_equal(mapped.responses, subject.responses)
    np.testing.assert_array_equal(mapped.noise_ceiling, subject.noise_ceiling)
    assert len(subject.stimuli) == 10 and not study.simulated and not study.sets


def test_options_reach_the_reader(root):
    damage_vertex(root, "lh", 1, 2, np.nan)
    with pytest.raises(DataError, match="finite betas in session 1"):
        load_study(root)
    whole = load_study(root, nan_policy="drop", seed=4)
    assert list(whole.subjects) == ["subj01"] and whole.extra["split"]["subj01"]["seed"] == 4
    assert (
        whole.subject().info["dropped_vertices"] == {"left": 1, "right": 0} and whole.fingerprint()
    )
    with pytest.raises(DataError, match=r"a subject in .*nsd; got 'subj02'"):
        load_study(root, subject="subj02")
    base = root / f"nsddata_betas/ppdata/subj01/fsaverage/{nsd.BETAS}"
    base.rename(base.with_name("betas_assumehrf"))
    with pytest.raises(
        DataError,
        match=r"subj01/fsaverage/betas_fithrf_GLMdenoise_RR or another subject's; got none",
    ):
        load_study(root)


def test_a_subject_is_written_in_the_algonauts_layout_and_read_back(root, tmp_path):
    subject = nsd.read_subject(root, 1)
    back = algonauts.read_subject(algonauts.write_subject(tmp_path / "own", subject))
    np.testing.assert_array_equal(back.responses, subject.responses)
    np.testing.assert_array_equal(back.atlas.surface_index, subject.atlas.surface_index)
    assert list(back.stimuli.ids) == list(subject.stimuli.ids)
    volume = nsd.read_subject(root, 1, space="func1pt8mm")
    again = algonauts.read_subject(algonauts.write_subject(tmp_path / "voxels", volume))
    assert again.atlas.surface_index is None
    np.testing.assert_array_equal(again.responses, volume.responses)
