"""Choices of a run as frozen dataclasses: checked, hashed, stored. Modules never see them."""

from __future__ import annotations

import dataclasses
import math
import types
import typing
from collections.abc import Mapping
from typing import Any, TypeVar

from bmfl_lab.errors import ConfigError, message, nearest
from bmfl_lab.files import sha256_json

C = TypeVar("C")


def to_dict(config: Any) -> dict[str, Any]:
    """Return a config as plain JSON values (tuples become lists)."""

    def plain(value: Any) -> Any:
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            return {f.name: plain(getattr(value, f.name)) for f in dataclasses.fields(value)}
        if isinstance(value, (list, tuple)):
            return [plain(v) for v in value]
        if isinstance(value, Mapping):
            return {str(k): plain(v) for k, v in value.items()}
        return value

    return plain(config)


def config_hash(config: Any) -> str:
    """Return 16 hexadecimal digits that name the choices in `config`."""
    return sha256_json(to_dict(config))[:16]


def from_dict(cls: type[C], values: Mapping[str, Any]) -> C:
    """Build a config from plain values.

    Parameters
    ----------
    cls : type
        A frozen dataclass.
    values : mapping
        Field names to values; missing fields keep their defaults.

    Returns
    -------
    cls
        The config.

    Raises
    ------
    ConfigError
        Naming every unknown key (with the nearest valid one) and every value of a wrong type, all
        at once.
    """
    problems = _problems(cls, values, prefix="")
    if problems:
        raise ConfigError(f"{cls.__name__} has {len(problems)} problem(s): " + " | ".join(problems))
    hints = typing.get_type_hints(cls)
    return cls(**{k: _coerce(hints[k], v) for k, v in values.items()})


def replace(config: C, **changes: Any) -> C:
    """Return a copy of `config` with some fields changed, checked as in `from_dict`.

    Raises
    ------
    ConfigError
        As `from_dict`.
    """
    return from_dict(
        type(config),
        {**{f.name: getattr(config, f.name) for f in dataclasses.fields(config)}, **changes},
    )


def _problems(cls: type, values: Mapping[str, Any], prefix: str) -> list[str]:
    hints = typing.get_type_hints(cls)
    names = [f.name for f in dataclasses.fields(cls)]
    found = []
    for key, value in values.items():
        if key not in names:
            found.append(f"unknown key {prefix + str(key)!r}: {nearest(str(key), names)}")
        elif dataclasses.is_dataclass(hints[key]) and isinstance(value, Mapping):
            found += _problems(hints[key], value, prefix=f"{prefix}{key}.")
        elif not _fits(hints[key], value):
            found.append(
                f"{prefix}{key} expected {_name(hints[key])}; "
                f"got {value!r} ({type(value).__name__})"
            )
    return found


def _name(hint: Any) -> str:
    return hint.__name__ if isinstance(hint, type) else str(hint).replace("typing.", "")


def _fits(hint: Any, value: Any) -> bool:
    origin, arguments = typing.get_origin(hint), typing.get_args(hint)
    if hint is Any:
        return True
    if origin is typing.Literal:
        return value in arguments and any(type(value) is type(a) for a in arguments)
    if origin in (typing.Union, types.UnionType):
        return any(_fits(a, value) for a in arguments)
    if hint is type(None):
        return value is None
    if hint is float:
        return (
            isinstance(value, (int, float)) and not isinstance(value, bool) and math.isfinite(value)
        )
    if hint is int:
        return isinstance(value, int) and not isinstance(value, bool)
    if origin is tuple:
        item = arguments[0] if arguments else Any
        if arguments and arguments[-1] is not Ellipsis:
            return (
                isinstance(value, (list, tuple))
                and len(value) == len(arguments)
                and all(map(_fits, arguments, value))
            )
        return isinstance(value, (list, tuple)) and all(_fits(item, v) for v in value)
    if origin in (dict, Mapping) or origin is typing.get_origin(typing.Mapping):
        return isinstance(value, Mapping)
    return isinstance(value, hint) if isinstance(hint, type) else True


def _coerce(hint: Any, value: Any) -> Any:
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
    clip_norm : float, default 1
        Largest gradient norm; 0 never clips. A norm that is not finite always stops the training.
    seed : int, default 0
        Seed of the order of the stimuli and of dropout. The module is initialised before.
    precision : "auto", "float32" or "bfloat16", default "auto"
        "auto": bfloat16 autocast on a GPU where it is fast, else float32.
    checkpoint_every : int, default 0
        Steps between checkpoints; 0 saves at the end of each epoch. Only with a folder.
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
        if wrong:
            got = ", ".join(f"{name}={getattr(self, name)!r}" for name in wrong)
            raise ConfigError(
                message(
                    "epochs, batch_size >= 1, lr > 0, warmup in 0..1, the others >= 0",
                    got,
                    "correct them",
                )
            )
