"""Tests that do what the remedy of an error says, and expect the same call to work then."""

from __future__ import annotations

import re
import warnings
from collections.abc import Callable, Generator
from pathlib import Path

import pytest

import bmfl_lab
from bmfl_lab.errors import BmflError

PACKAGE = Path(bmfl_lab.__file__).parent
Followed = Generator[Callable[[], object], str, None]


def pattern(template: str) -> re.Pattern:
    """Return what matches a remedy written with ``{}`` where the code fills something in."""
    return re.compile(".*?".join(map(re.escape, template.split("{}"))), re.DOTALL)


def remedy_of(error: BaseException) -> str:
    """Return the last part of a message of three parts, without the full stop behind it."""
    text = str(error).rpartition("To fix it: ")[2]
    return text.removesuffix(".")


def passed_through(error: BaseException, place: str) -> bool:
    """Return whether a file of the package, given from its folder, had a part in an error."""
    files, step = set(), error.__traceback__
    while step is not None:
        files.add(Path(step.tb_frame.f_code.co_filename))
        step = step.tb_next
    path = PACKAGE / place if not place.startswith("widgets/") else PACKAGE.parent / place
    return path in files


def follows(*remedies: tuple[str, str]):
    """Make a test of a generator that follows remedies.

    The generator takes a temporary folder and pytest's monkeypatch, and yields a call that fails.
    It receives the remedy, does what it says, and ends (the same call must then work) or yields the
    next call that fails. `remedies` holds, for each call in turn, the file of the package and the
    remedy as its source writes it, with ``{}`` where something is filled in.
    `test_every_remedy.py` reads them from the source of the tests.
    """

    def decorate(generator: Callable[..., Followed]):
        def test(tmp_path, monkeypatch):
            steps = generator(tmp_path, monkeypatch)
            call = next(steps)
            for i, (place, template) in enumerate(remedies):
                with warnings.catch_warnings():
                    warnings.simplefilter("error", UserWarning)
                    with pytest.raises((BmflError, UserWarning)) as caught:
                        call()
                remedy = remedy_of(caught.value)
                assert pattern(template).fullmatch(remedy), f"{remedy!r} is not {template!r}"
                assert passed_through(caught.value, place), f"{place} had no part in the error"
                try:
                    call = steps.send(remedy)
                except StopIteration:
                    assert i == len(remedies) - 1, f"{len(remedies)} remedies, {i + 1} followed"
                    with warnings.catch_warnings():
                        if issubclass(caught.type, Warning):
                            warnings.simplefilter("error", UserWarning)
                        call()
                    return
            pytest.fail("more calls than remedies")

        test.__name__, test.__doc__ = generator.__name__, generator.__doc__
        return test

    return decorate
