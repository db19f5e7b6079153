"""Parameters are checked in the notebook's own kernel, before anything is computed."""

import re

import pytest
from IPython.core.interactiveshell import InteractiveShell

from bmfl_lab.errors import RunError
from bmfl_lab.runs import start_notebook

CELL = """study: str = "planted"  # which study
seeds: list[int] = [0, 1]  # one model per seed
regions: list[str] = ["all"]  # what is read
alpha: float = 0.1  # weight [0..100]
preset: str = "tiny"  # size {tiny, small}
quick: bool = False  # fewer steps
out: str = ""  # folder"""


def started(injected, folder):
    """Run the parameters cell and an injected cell in a real IPython; return what start gives."""
    shell = InteractiveShell()
    for cell in (CELL, f"# Parameters\n{injected}\nout = {str(folder)!r}"):
        assert shell.run_cell(cell, store_history=True).success
    made, parameters = start_notebook(shell.user_ns, "03_fusion_training")
    assert made == folder and (made / "figures").is_dir()
    assert all(shell.user_ns[name] == value for name, value in parameters.items())
    return parameters


def test_untouched_parameters_are_the_defaults(tmp_path):
    assert started("", tmp_path) == {
        "study": "planted",
        "seeds": [0, 1],
        "regions": ["all"],
        "alpha": 0.1,
        "preset": "tiny",
        "quick": False,
    }


@pytest.mark.parametrize(
    ("injected", "name", "value"),
    [
        ('seeds = "[0, 1, 5]"', "seeds", [0, 1, 5]),
        ('seeds = " [7]"', "seeds", [7]),
        ("""regions = '["LVC", "HVC"]'""", "regions", ["LVC", "HVC"]),
        ('alpha = "0.5"', "alpha", 0.5),
        ('quick = "True"', "quick", True),
        ('study = "[0, 1]"', "study", "[0, 1]"),  # a text stays a text
    ],
)
def test_values_given_as_text_are_read_by_their_annotation(injected, name, value, tmp_path):
    assert started(injected, tmp_path)[name] == value


@pytest.mark.parametrize(
    ("injected", "named"),
    [
        ('regions = "LVC"', "regions expected list[str]; got 'LVC' (str)"),
        ('seeds = "0, 1"', "seeds expected list[int]"),
        ('seeds = "[0, true]"', "seeds expected list[int]"),
        ("seeds = [0.5]", "seeds expected list[int]; got 0.5 (float)"),
        ('alpha = "much"', "alpha expected float; got 'much' (str)"),
        ("alpha = 200.0", "alpha expected a value from 0 to 100"),
        ('alpha = float("nan")', "alpha expected a finite number"),
        ('preset = "tinny"', "preset expected one of tiny, small"),
        ('quick = "yes"', "quick expected bool"),
    ],
)
def test_values_that_do_not_fit_are_named_with_a_remedy(injected, named, tmp_path):
    with pytest.raises(RunError, match=re.escape(named)) as caught:
        started(injected, tmp_path)
    is_list = named.startswith(("regions", "seeds"))
    remedy = 'write a list as papermill -p seeds "[0, 1]"' if is_list else "write such a value in"
    assert remedy in str(caught.value)
