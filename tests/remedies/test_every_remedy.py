"""Every remedy of the package is followed by a test."""

import ast
from pathlib import Path

from test_names import remedies


def followed():
    """Return the file and the remedy of each line of `follows` in the tests."""
    found = set()
    for path in sorted(Path(__file__).parent.glob("test_*.py")):
        for node in ast.walk(ast.parse(path.read_text(encoding="utf-8"))):
            if isinstance(node, ast.Call) and getattr(node.func, "id", "") == "follows":
                found |= {ast.literal_eval(argument) for argument in node.args}
    return found


def written():
    """Return the file and the text of each remedy, without those that are filled in whole."""
    places = {(place.rpartition(":")[0], text) for place, text in remedies()}
    return {
        (place.removeprefix("bmfl_lab/"), text)
        for place, text in places
        if " " in text.strip() and any(map(str.isalpha, text.replace("{}", "")))
    }


def test_every_remedy_is_followed():
    missing = written() - followed()
    assert not missing, "\n".join(f"{place} | {text}" for place, text in sorted(missing))


def test_what_is_followed_is_a_remedy_of_the_package():
    assert followed() <= written()
