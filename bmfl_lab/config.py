"""Configurations of runs as frozen dataclasses: checked, hashed and stored as plain values.

Modules never receive a configuration; they get the values that they need as arguments.
"""

from __future__ import annotations

import dataclasses
import math
import sys
import types
import typing
from collections.abc import Callable, Collection, Hashable, Iterable, Mapping, Sequence
from typing import Any, TypeVar

from bmfl_lab.errors import ConfigError, nearest, require
from bmfl_lab.files import sha256_json

C = TypeVar("C")


def to_dict(config: object) -> dict[str, Any]:
    """Return a configuration as plain JSON values.

    Parameters
    ----------
    config : dataclass instance
        The configuration; nested dataclasses become dicts and tuples become lists.

    Returns
    -------
    dict of str to object
    """
    return {f.name: _plain(getattr(config, f.name)) for f in dataclasses.fields(config)}


def _plain(value: object) -> object:
    """Return a value of a configuration as JSON values."""
    if dataclasses.is_dataclass(value):
        return to_dict(value)
    if isinstance(value, (list, tuple)):
        return [_plain(v) for v in value]
    if isinstance(value, Mapping):
        return {str(k): _plain(v) for k, v in value.items()}
    return value


def config_hash(config: object) -> str:
    """Return 16 hexadecimal digits that change with any value of a configuration.

    Parameters
    ----------
    config : dataclass instance
        The configuration.
    """
    return sha256_json(to_dict(config))[:16]


def from_dict(cls: type[C], values: Mapping[str, object]) -> C:
    """Build a configuration from plain values.

    Parameters
    ----------
    cls : type
        A frozen dataclass.
    values : mapping of str to object
        Field names to values; missing fields keep their defaults.

    Returns
    -------
    cls
        The configuration.

    Raises
    ------
    ConfigError
        If keys are unknown or values have a wrong type. The message lists all of them, with the
        nearest valid name of each unknown key.
    """
    problems = _problems(cls, values, prefix="")
    if problems:
        raise ConfigError(f"{cls.__name__} has {len(problems)} problem(s): " + " | ".join(problems))
    hints = typing.get_type_hints(cls)
    return cls(**{k: _coerce(hints[k], v) for k, v in values.items()})


def replace(config: C, **changes: object) -> C:
    """Return a copy of a configuration with some fields changed.

    Parameters
    ----------
    config : dataclass instance
        The configuration.
    **changes
        New values by field name.

    Returns
    -------
    dataclass instance
        A configuration of the same type.

    Raises
    ------
    ConfigError
        If a field is unknown or a value has a wrong type, see `from_dict`.
    """
    values = {f.name: getattr(config, f.name) for f in dataclasses.fields(config)}
    return from_dict(type(config), {**values, **changes})


def _problems(cls: type, values: Mapping[str, object], prefix: str) -> list[str]:
    """Return one sentence per unknown key or value of a wrong type, nested dataclasses included."""
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    found = []
    for key, value in values.items():
        if key not in names:
            inside = [n for n in names if key in getattr(hints[n], "__dataclass_fields__", ())]
            advice = f"it belongs to {inside[0]!r}" if inside else nearest(str(key), names)
            found.append(f"unknown key {prefix + str(key)!r}: {advice}")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            found += _problems(hints[key], value, prefix=f"{prefix}{key}.")
        elif not _fits(hints[key], value):
            found.append(prefix + _type_problem(key, hints[key], value))
    return found


def _type_problem(name: str, hint: object, value: object) -> str:
    wanted = hint.__name__ if isinstance(hint, type) else str(hint)
    for module in ("typing.", "collections.abc.", "pathlib._local.", "pathlib."):
        wanted = wanted.replace(module, "")
    return f"{name} expected {wanted}; got {value!r} ({type(value).__name__})"


def type_problems(function: Callable[..., object], values: Mapping[str, object]) -> list[str]:
    """Return one sentence per value that does not have the annotated type of its parameter.

    Parameters
    ----------
    function : callable
        Function, or dataclass, with annotated parameters.
    values : mapping of str to object
        Name to value. NumPy arrays and numbers count as lists and numbers. Names without an
        annotation are not checked.

    Returns
    -------
    list of str
        ``"seed expected int; got 'x' (str)"``; empty if all values fit.
    """
    hints = typing.get_type_hints(function)
    found = []
    for name, value in values.items():
        plain = value.tolist() if hasattr(value, "tolist") else value
        if name in hints and not _fits(hints[name], value) and not _fits(hints[name], plain):
            found.append(_type_problem(name, hints[name], value))
    return found


def list_problem(name: str, values: Sequence[object], known: Collection[str] = ()) -> str:
    """Return why a list of options cannot be used, or an empty text.

    Parameters
    ----------
    name : str
        Name of the option.
    values : sequence
        Must hold at least one value, and none twice.
    known : collection of str, optional
        Names that may be given; any value by default.
    """
    if not values:
        return f"{name} expected at least one value; got {values!r}"
    seen: set[object] = set()
    for value in values:
        key = value if isinstance(value, Hashable) else repr(value)
        if key in seen:
            return f"{name} expected each value once; got {value!r} again in {values!r}"
        seen.add(key)
    unknown = [value for value in values if known and value not in known]
    return f"{name} got {unknown[0]!r}: {nearest(str(unknown[0]), known)}" if unknown else ""


def require_list(
    name: str, values: object, item: type, known: Collection[str] = ()
) -> list[object]:
    """Return a list of options after checking it, before anything is computed.

    Parameters
    ----------
    name : str
        Name of the option.
    values : iterable of `item`
        A text is refused, as are an empty list and a repeated value.
    item : type
        int, float or str.
    known : collection of str, optional
        Names that may be given; any value by default.

    Raises
    ------
    ConfigError
        If the list does not fit.
    """
    listed = [] if isinstance(values, str) or not isinstance(values, Iterable) else list(values)
    plain = [v.item() if hasattr(v, "item") else v for v in listed]
    example = {int: "[0, 1]", float: "[0.1, 1.0]"}.get(item, repr(list(known)[:2] or ["LVC"]))
    fits = isinstance(values, Iterable) and not isinstance(values, str)
    require(
        fits and all(_fits(item, v) for v in plain),
        ConfigError,
        f"a list of {item.__name__} for {name}",
        f"{values!r} ({type(values).__name__})",
        f"write {name}={example}",
    )
    problem = list_problem(name, plain, known)
    require(
        not problem,
        ConfigError,
        f"a list of different {name}" + (f" among {', '.join(known)}" if known else ""),
        problem,
        f"write each of them once, for example {name}={example}",
    )
    return plain


def _fits(hint: object, value: object) -> bool:
    """Return whether a value has the type of a field; floats must be finite, bools do not count."""
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if origin is typing.Literal:
        return value in arguments and any(type(value) is type(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(a, value) for a in arguments)
    if origin is tuple:
        return isinstance(value, (list, tuple)) and all(_fits(arguments[0], v) for v in value)
    if isinstance(origin, type):  # Sequence[int] or Mapping[str, str]: a text is its own elements
        parts = value.values() if isinstance(value, Mapping) else value
        loose = isinstance(value, str) or not isinstance(value, (Mapping, list, tuple))
        return isinstance(value, origin) and (
            loose or not arguments or all(_fits(arguments[-1], part) for part in parts)
        )
    if hint is typing.Any:  # a class since Python 3.11
        return True
    if hint in (int, float) and isinstance(value, bool):
        return False
    if hint is float:
        return isinstance(value, (int, float)) and abs(value) <= sys.float_info.max
    return isinstance(value, hint) if isinstance(hint, type) else True


def _coerce(hint: object, value: object) -> object:
    """Return a checked JSON value as the type of its field."""
    if dataclasses.is_dataclass(hint) and isinstance(value, Mapping):
        return from_dict(hint, value)
    if typing.get_origin(hint) is tuple and isinstance(value, list):
        return tuple(value)
    if hint is float and isinstance(value, int):
        return float(value)
    return value


@dataclasses.dataclass(frozen=True)
class LoopConfig:
    """Choose how a module is trained.

    Parameters
    ----------
    epochs : int, default 20
        Number of passes over the training data.
    batch_size : int, default 128
        Largest number of stimuli per step, over all processes; an epoch is cut into batches of
        nearly equal size.
    lr : float, default 1e-3
        Peak learning rate.
    weight_decay : float, default 0.01
        Decay of weights with two or more dimensions.
    warmup : float from 0 to 1, default 0.05
        Share of all steps over which the learning rate rises linearly.
    clip_norm : float, default 1.0
        Largest gradient norm; 0 never clips. A norm that is not finite always stops the training.
    seed : int, default 0
        Seed of the order of the stimuli and of dropout. The module is initialised before.
    precision : "auto", "float32" or "bfloat16", default "auto"
        "auto": bfloat16 autocast on a GPU where it is fast, else float32.
    checkpoint_every : int, default 0
        Steps between checkpoints; 0 saves at the ends of epochs, as long as this takes at most 5 %
        of the time. Only with a folder.
    optimiser : "adamw", "adam" or "sgd", default "adamw"
        "sgd" has momentum 0.9.
    schedule : "cosine" or "constant", default "cosine"
        Course of the learning rate after the warm-up: down to 0, or unchanged.

    Raises
    ------
    ConfigError
        If a value lies outside its range.
    """

    epochs: int = 20
    batch_size: int = 128
    lr: float = 1e-3
    weight_decay: float = 0.01
    warmup: float = 0.05
    clip_norm: float = 1.0
    seed: int = 0
    precision: typing.Literal["auto", "float32", "bfloat16"] = "auto"
    checkpoint_every: int = 0
    optimiser: typing.Literal["adamw", "adam", "sgd"] = "adamw"
    schedule: typing.Literal["cosine", "constant"] = "cosine"

    def __post_init__(self) -> None:
        bounds = {
            "epochs": self.epochs >= 1,
            "batch_size": self.batch_size >= 1,
            "lr": 0 < self.lr < math.inf,
            "weight_decay": 0 <= self.weight_decay < math.inf,
            "warmup": 0 <= self.warmup <= 1,
            "clip_norm": 0 <= self.clip_norm < math.inf,
            "checkpoint_every": self.checkpoint_every >= 0,
        }
        wrong = [name for name, fine in bounds.items() if not fine]
        require(
            not wrong,
            ConfigError,
            "epochs, batch_size >= 1, lr > 0, warmup in 0..1, the others >= 0",
            ", ".join(f"{name}={getattr(self, name)!r}" for name in wrong),
            "pass values in these ranges to LoopConfig",
        )
