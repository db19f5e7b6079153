"""A shown figure is a PNG on disk and in the notebook."""

import pytest
from matplotlib.figure import Figure
from PIL import Image

from bmfl_lab.errors import ConfigError
from bmfl_lab.viz import show


def test_the_picture_is_saved_and_displayed(tmp_path, capsys):
    figure = Figure(figsize=(2, 1))
    figure.add_subplot().plot([0, 1])
    assert show(figure, tmp_path, "line") is None
    assert Image.open(tmp_path / "figures" / "line.png").format == "PNG"
    assert "Image" in capsys.readouterr().out


def test_names_stay_in_the_folder(tmp_path):
    with pytest.raises(ConfigError, match="a plain file name for the figure"):
        show(Figure(), tmp_path, "../line")
