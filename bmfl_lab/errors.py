"""Errors whose messages say what was expected, what was found, and what to do."""

from __future__ import annotations

import contextlib
import difflib
import unicodedata
from collections.abc import Collection, Iterable, Iterator


class BmflError(Exception):
    """Base class of all errors that this package raises on purpose."""


class DataError(BmflError, ValueError):
    """Raised when a file, an array or a study does not have the required content."""


class FileError(DataError, OSError):
    """Raised when the operating system refuses a file; `errno` is the number of its reason.

    `bmfl_lab.files.system_errors` makes all of them.
    """

    __str__ = Exception.__str__


class LockedError(DataError):
    """Raised when another process holds a lock and waiting for it was not allowed."""


class ConfigError(BmflError, ValueError):
    """Raised when an option or a name that the user gave is not valid."""


class CheckpointError(BmflError, ValueError):
    """Raised when a checkpoint or weight file is damaged, or belongs to another model or run."""


class NumericsError(BmflError, ArithmeticError):
    """Raised when a computation produces NaN or infinity and must stop."""


class FetchError(BmflError, RuntimeError):
    """Raised when data or weights cannot be fetched."""


class RunError(BmflError, RuntimeError):
    """Raised when a run of a notebook cannot start, or does not finish as required."""


def message(expected: str, got: str, remedy: str) -> str:
    """Join the three parts of an error message.

    Parameters
    ----------
    expected : str
        The required value, shape or name.
    got : str
        The value, shape or name that was found.
    remedy : str
        The step that the user can take, as an imperative without a full stop.

    Returns
    -------
    str
        ``"expected ...; got .... To fix it: ..."``
    """
    end = "" if remedy.endswith("?") else "."
    return f"expected {expected}; got {got}. To fix it: {remedy}{end}"


def normal(name: object) -> str:
    """Return a name in the one form in which names are compared, Unicode's NFC.

    Systems store "é" as one character or as two (NFD). Ids of stimuli, names of classes and names
    of files are compared in this form; `bmfl_lab.data.stimuli.StimulusSet` keeps its own in it.

    Parameters
    ----------
    name : object
        The name.

    Returns
    -------
    str
    """
    return unicodedata.normalize("NFC", str(name))


def nearest(name: str, valid: Iterable[str]) -> str:
    """Return a hint with the valid name that is most similar to a wrong one.

    Parameters
    ----------
    name : str
        The name that the user gave.
    valid : iterable of str
        The valid names.

    Returns
    -------
    str
        ``"did you mean 'x'?"``, or the list of valid names if none is similar.
    """
    options = list(dict.fromkeys(map(str, valid)))
    if not options:
        return "check the spelling and the place, as there is none to choose from"
    same = [option for option in options if normal(option) == normal(name)]
    if same:
        return f"copy {same[0]!r} from the folder: its accents are stored as other characters"
    found = difflib.get_close_matches(str(name), options, n=1, cutoff=0.5)
    return f"did you mean {found[0]!r}?" if found else f"choose one of {', '.join(sorted(options))}"


def require(
    condition: object, error: type[BmflError], expected: str, got: object, remedy: str
) -> None:
    """Raise an error with the three parts of `message` unless a condition holds.

    Parameters
    ----------
    condition : object
        Nothing happens if it is true.
    error : type of BmflError
        Class of the error.
    expected, got, remedy
        See `message`.

    Raises
    ------
    BmflError
        If the condition is false; its class is `error`.
    """
    if not condition:
        raise error(message(expected, str(got), remedy))


def require_known(name: object, valid: Collection, error: type[BmflError], expected: str) -> None:
    """Raise an error with the nearest valid name unless a name is among the valid ones.

    Parameters
    ----------
    name : object
        The name that the user gave.
    valid : collection of str
        The valid names; a mapping counts as its keys.
    error : type of BmflError
        Class of the error.
    expected : str
        See `message`.

    Raises
    ------
    BmflError
        If `name` is not in `valid`; its class is `error`.
    """
    if name not in valid:
        raise error(message(expected, repr(name), nearest(str(name), valid)))


@contextlib.contextmanager
def translated(
    *kinds: type[Exception], expected: str, remedy: str, error: type[BmflError] = DataError
) -> Iterator[None]:
    """Turn errors of Python or of a library in this block into one of this package.

    Parameters
    ----------
    *kinds : type of Exception
        Classes of the errors to turn. Errors of this package pass unchanged.
    expected, remedy : str
        See `message`.
    error : type of BmflError, default DataError
        Class of the new error.

    Raises
    ------
    BmflError
        If the body raises; its class is `error`, and its text reports the kind and the text of the
        original error.
    """
    try:
        yield
    except BmflError:
        raise
    except kinds as cause:
        got = f"{type(cause).__name__}: {str(cause)[:300]}"
        raise error(message(expected, got, remedy)) from cause
