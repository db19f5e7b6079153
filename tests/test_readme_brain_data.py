"""The page on data: its section on Algonauts folders runs as it is printed, on small folders."""

import re
from pathlib import Path

import numpy as np
import pytest
import torch

from bmfl_lab import load_study
from bmfl_lab.backbones import load_backbone
from bmfl_lab.data import algonauts

PAGE = Path(__file__).resolve().parents[1] / "bmfl_lab" / "data" / "README.md"


def blocks():
    """Return the Python blocks of the section."""
    section = PAGE.read_text(encoding="utf-8").split("## Algonauts 2023", 1)[1].split("\n## ", 1)[0]
    return re.findall(r"```python\n(.*?)```", section, flags=re.DOTALL)


@pytest.fixture
def place(tmp_path, monkeypatch):
    """A working folder as the section assumes it: a subject, NSD's table, and weights under their original name."""
    subject = load_study(
        "planted", n_encoder=24, n_encoder_val=4, n_encoder_test=4, n_train=4, n_val=4, n_test=4
    ).subject()
    folder = algonauts.write_subject(tmp_path / "algonauts_2023" / "subj01", subject)
    left = subject.atlas.n_left
    monkeypatch.setitem(algonauts.VERTEX_COUNTS, "subj01", (left, subject.n_vertices - left))
    monkeypatch.setitem(algonauts.IMAGE_COUNTS, "subj01", len(subject.stimuli))
    numbers = [
        int(p.stem.split("-")[-1]) for p in (folder / "training_split/training_images").iterdir()
    ]
    rows = [f"{n},{n < 5}" for n in numbers]
    (tmp_path / "nsd_stim_info_merged.csv").write_text("\n".join(["nsdId,shared1000", *rows]))
    monkeypatch.setenv("BMFL_HOME", str(tmp_path / "home"))
    (tmp_path / "home" / "weights").mkdir(parents=True)
    untrained = load_backbone("dinov2_vits14_reg", "random:0").state_dict()
    torch.save(untrained, tmp_path / "home" / "weights" / "dinov2_vits14_reg4_pretrain.pth")
    monkeypatch.chdir(tmp_path)
    return subject


@pytest.mark.filterwarnings("ignore:expected at most 5%")
def test_the_algonauts_blocks_run_as_printed(place, capsys):
    first, second, *_ = blocks()
    names = {}
    exec(compile(first, "README.md", "exec"), names)
    read = names["subject"]
    assert read.responses.shape == place.responses.shape and read.simulated
    np.testing.assert_allclose(np.sort(read.responses[7]), np.sort(place.responses[7]))
    assert len(read.splits["test"]) == 5 and Path("cache/subj01.npy").is_file()
    exec(compile(second, "README.md", "exec"), names)
    assert "all" in capsys.readouterr().out and names["encoder"].facts["subject"] == "subj01"
