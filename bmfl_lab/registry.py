"""Registries: public names that users choose from, mapped to functions."""

from __future__ import annotations

from collections.abc import Callable, Iterator

from bmfl_lab.errors import ConfigError, require, require_known


class Registry:
    """A mapping from public names to functions.

    The error for an unknown name states the nearest valid name.

    Parameters
    ----------
    kind : str
        Singular noun for an entry in error messages, such as "shift" or "backbone".
    """

    def __init__(self, kind: str):
        self.kind = kind
        self._entries: dict[str, Callable] = {}

    def register(self, name: str) -> Callable[[Callable], Callable]:
        """Return a decorator that registers a function under `name`.

        Parameters
        ----------
        name : str
            Public name.

        Returns
        -------
        callable
            Takes the function and returns it unchanged.

        Raises
        ------
        ConfigError
            If the name is taken already.
        """
        require(
            name not in self._entries,
            ConfigError,
            f"a new {self.kind} name",
            f"{name!r}, which is taken",
            "choose another name",
        )

        def enter(function: Callable) -> Callable:
            self._entries[name] = function
            return function

        return enter

    def __getitem__(self, name: str) -> Callable:
        require_known(name, self._entries, ConfigError, f"a known {self.kind}")
        return self._entries[name]

    def __contains__(self, name: object) -> bool:
        return name in self._entries

    def __iter__(self) -> Iterator[str]:
        return iter(self._entries)

    def __len__(self) -> int:
        return len(self._entries)

    def names(self) -> tuple[str, ...]:
        """Return the registered names in order of registration."""
        return tuple(self._entries)
