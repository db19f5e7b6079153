"""Figures for papers: their size, their text, and their numbers."""

import io
import re
import zlib

import numpy as np
import pandas as pd
import pytest
from matplotlib.backends.backend_agg import FigureCanvasAgg
from PIL import Image

from bmfl_lab import runtime
from bmfl_lab.data.atlas import Atlas
from bmfl_lab.viz.ablation import effect_figure
from bmfl_lab.viz.charts import contact_sheet, panels
from bmfl_lab.viz.saving import save_figure, show
from bmfl_lab.viz.similarity import heat_map_figure
from bmfl_lab.viz.surface import surface_panel


@pytest.fixture(autouse=True)
def no_backbone(monkeypatch):
    monkeypatch.setattr(runtime, "_LOADED_BACKBONES", {})


@pytest.fixture
def figure():
    numbers = pd.DataFrame({"epoch": [0, 1], "accuracy": [0.0, 1.0]})
    with panels(2, 2, cell=(3, 2.5), title="Two panels", numbers=numbers) as drawn:
        for k, ax in enumerate(drawn):
            ax.errorbar([0, 1], [k, k + 1], yerr=[[0.5, 0.5], [1, 1]], fmt="o-", label="model")
            ax.axhline(0.5, ls="--", label="chance")
            ax.set_title(f"panel {'ab'[k]}")
        drawn.label("epoch", "accuracy")
        drawn.legend()
    return drawn.figure


def pages(path):
    """Return the size of the page of a PDF in points, and the operators of its content."""
    data = path.read_bytes()
    box = re.search(rb"/MediaBox \[ 0 0 ([\d.]+) ([\d.]+) \]", data)
    streams = re.findall(rb"/FlateDecode >>\s+stream\r?\n(.*?)\r?\nendstream", data, re.DOTALL)
    return tuple(map(float, box.groups())), zlib.decompress(streams[0])


@pytest.mark.parametrize(("columns", "inches"), [("one", 3.5), ("two", 7.2), (None, 7.2)])
def test_each_format_is_as_wide_as_its_columns(figure, tmp_path, columns, inches):
    size = tuple(figure.get_size_inches())
    paths = save_figure(figure, tmp_path, "curves", columns)
    assert sorted(paths) == ["csv", "pdf", "png", "svg"]
    picture = Image.open(paths["png"])
    assert picture.width == pytest.approx(300 * inches, abs=1)
    assert picture.info["dpi"][0] == pytest.approx(300, abs=0.1)
    (width, height), _ = pages(paths["pdf"])
    assert width == pytest.approx(72 * inches)
    assert height / width == pytest.approx(picture.height / picture.width, abs=0.01)
    svg = paths["svg"].read_text("utf-8")
    assert f'width="{72 * inches:.2f}pt"' in svg
    assert tuple(figure.get_size_inches()) == size and figure.dpi == 110


def test_text_stays_text(figure, tmp_path):
    paths = save_figure(figure, tmp_path, "curves")
    assert re.search("<text[^>]*>Two panels</text>", paths["svg"].read_text("utf-8"))
    pdf = paths["pdf"].read_bytes()
    assert b"/FontFile2" in pdf and b"/Type3" not in pdf


def test_a_figure_says_which_weights_its_backbone_had(figure, tmp_path):
    plain = Image.open(save_figure(figure, tmp_path, "plain")["png"])
    n_texts = len(figure.texts)
    label = "stand-in weights of another training, that must never be taken for the original ones"
    runtime.note_backbone("dinov2_vits14", label, "0" * 64)
    paths = save_figure(figure, tmp_path, "curves", "one")
    svg = paths["svg"].read_text("utf-8")
    shown = " ".join(re.findall("<text[^>]*>([^<]*)</text>", svg))
    assert f"dinov2_vits14, {label}" in shown
    noted = Image.open(paths["png"])
    assert noted.height / noted.width > plain.height / plain.width
    assert noted.info["Description"] == f"backbone dinov2_vits14, {label}"
    assert len(figure.texts) == n_texts


def written(path):
    """Return all words of an SVG file, in order."""
    return " ".join(re.findall("<text[^>]*>([^<]*)</text>", path.read_text("utf-8")))


def test_weights_of_a_control_are_named_as_such(figure, tmp_path):
    runtime.note_backbone("net", "trained weights", "0" * 64)
    with runtime.as_control():
        runtime.note_backbone("net", "random weights", "1" * 64)
        runtime.note_backbone("net", "trained weights", "0" * 64)
    said = written(save_figure(figure, tmp_path, "curves")["svg"])
    assert "net, trained weights; as a control: net, random weights" in said
    assert said.count("trained weights") == 1


def test_a_figure_of_records_names_the_weights_of_the_records(figure, tmp_path):
    runtime.note_backbone("net", "weights of this process", "0" * 64)
    show(figure, tmp_path, "records", weights="net, weights of the records")
    said = written(tmp_path / "figures" / "records.svg")
    assert "net, weights of the records" in said and "of this process" not in said


def test_the_note_on_weights_stands_below_the_legend(figure, tmp_path):
    runtime.note_backbone("net", "a label", "0" * 64)
    svg = save_figure(figure, tmp_path, "curves")["svg"].read_text("utf-8")
    height = {}
    for y, words in re.findall(r'<text[^>]* y="([\d.]+)"[^>]*>([^<]*)</text>', svg):
        height[words] = float(y)
    assert height["net, a label"] > height["chance"] + 5  # SVG counts from the top


def test_the_scaled_pdf_draws_all_lines_of_matplotlibs_own(figure, tmp_path):
    _, scaled = pages(save_figure(figure, tmp_path, "curves", "one")["pdf"])
    figure.savefig(tmp_path / "own.pdf", bbox_inches="tight")
    _, own = pages(tmp_path / "own.pdf")
    for operator in (rb" l\b", rb" m\b", rb"\bTj\b", rb"\bDo\b"):
        assert len(re.findall(operator, scaled)) == len(re.findall(operator, own))
    assert re.search(rb"^0\.\d+ 0 0 0\.\d+ -?[\d.]+ -?[\d.]+ cm", scaled, re.MULTILINE)


def test_the_numbers_of_a_figure_are_written_as_it_was_given_them(tmp_path):
    values = pd.DataFrame([[0.1, 0.2], [0.3, np.nan]], ["block 0", "block 1"], ["V1", "LO"])
    path = save_figure(heat_map_figure({"r": values, "rho": -values}), tmp_path, "heat")["csv"]
    read = pd.read_csv(path, index_col=[0, 1])
    pd.testing.assert_frame_equal(read.loc["r"], values, check_names=False)
    pd.testing.assert_frame_equal(read.loc["rho"], -values, check_names=False)
    rows = {"mode": "lesioned", "control": "c", "region": ["V1", "LO"], "split": "test"}
    table = pd.DataFrame({**rows, "shift": "", "effect": [0.1, -0.2], "p_holm": [0.01, 0.5]})
    table = table.assign(low=-0.3, high=0.3)
    path = save_figure(effect_figure(table, control="c"), tmp_path, "effects")["csv"]
    read = pd.read_csv(path, keep_default_na=False)
    pd.testing.assert_frame_equal(read[list(table)], table, check_dtype=False)


def test_a_brain_map_writes_one_row_per_vertex(tmp_path):
    atlas = Atlas(np.array([0, 0, 1]), {}, np.array([7, 9, 7]), "fsaverage5")
    values = np.array([0.5, np.nan, -0.25])
    figure = surface_panel(values, atlas, title="t", unit="r", views=("posterior",))
    read = pd.read_csv(save_figure(figure, tmp_path, "map")["csv"])
    assert read["hemisphere"].tolist() == ["left", "left", "right"]
    assert read["vertex"].tolist() == [7, 9, 7]
    np.testing.assert_array_equal(read["r"], values)


def test_a_legend_is_no_wider_than_its_figure():
    with panels(cell=(4, 3)) as drawn:
        for k in range(6):
            next(iter(drawn)).plot([0, 1], [k, k], label=f"a model with a long name, {k}")
        drawn.legend()
    canvas = FigureCanvasAgg(drawn.figure)
    canvas.print_png(io.BytesIO())
    box = drawn.figure.legends[0].get_window_extent(canvas.get_renderer())
    assert box.width <= drawn.figure.bbox.width


def test_a_shown_figure_is_saved_in_all_formats(figure, tmp_path, capsys):
    assert show(figure, tmp_path, "curves") is None
    names = sorted(path.name for path in (tmp_path / "figures").iterdir())
    assert pd.read_csv(tmp_path / "figures" / "curves.csv").equals(figure.numbers)
    assert names == ["curves.csv", "curves.pdf", "curves.png", "curves.svg"]
    assert "Image" in capsys.readouterr().out


def test_a_figure_of_photographs_has_no_numbers(tmp_path):
    photograph = np.zeros((8, 8, 3), np.uint8)
    paths = save_figure(contact_sheet({"test": [photograph]}), tmp_path, "sheet")
    assert sorted(paths) == ["pdf", "png", "svg"] and all(p.is_file() for p in paths.values())
