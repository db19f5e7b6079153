"""Errors with one shape: what was expected, what was got, what to do."""

from __future__ import annotations

import difflib
from collections.abc import Iterable


class BmflError(Exception):
    """Base class of every error this package raises on purpose."""


class DataError(BmflError, ValueError):
    """A file, an array or a study does not hold what it must hold."""


class LockedError(DataError):
    """Another process holds a lock that must not be waited for."""


class ConfigError(BmflError, ValueError):
    """A choice made by the user is not valid."""


class CheckpointError(BmflError, ValueError):
    """A checkpoint or weight file is damaged, or belongs to something else."""


class NumericsError(BmflError, ArithmeticError):
    """A computation produced NaN or infinity where that must stop the run."""


class FetchError(BmflError, RuntimeError):
    """Data or weights could not be fetched."""


class RunError(BmflError, RuntimeError):
    """A notebook run could not start, or did not finish as it must."""


def message(expected: str, got: str, do: str) -> str:
    """Join the three parts of an error message.

    Parameters
    ----------
    expected, got, do : str
        What was expected, what was found (value, shape, name), what the user can do.

    Returns
    -------
    str
        ``"expected ...; got .... To fix it: ..."``
    """
    end = "" if do.endswith("?") else "."
    return f"expected {expected}; got {got}. To fix it: {do}{end}"


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint that names the valid spelling nearest to `name`.

    Parameters
    ----------
    name : str
        What the user wrote.
    valid : iterable of str
        What would have been accepted.

    Returns
    -------
    str
        ``"did you mean 'x'?"``, or the list of valid names when none is near.
    """
    options = [str(v) for v in valid]
    if not options:
        return "check the spelling"
    found = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else "choose one of " + ", ".join(sorted(options))
