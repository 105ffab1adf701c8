"""A named set of plug-ins, filled by importing every module of a folder; unknown names get a suggestion."""

from __future__ import annotations

import difflib
import importlib
import pkgutil
from collections.abc import Callable, Collection, Iterator
from typing import Generic, TypeVar

from adapt.core.errors import ConfigError

T = TypeVar("T")


def suggest(name: str, known: list[str]) -> str:
    """Return ' (did you mean ...?)' for the closest known name, or an empty string."""
    close = difflib.get_close_matches(name, known, n=1)
    return f" (did you mean '{close[0]}'?)" if close else ""


class Registry(Generic[T]):
    """Maps a name to a plug-in of one kind."""

    def __init__(self, kind: str) -> None:
        self.kind = kind
        self._entries: dict[str, T] = {}

    def register(self, name: str) -> Callable[[T], T]:
        """Register the decorated object under `name`.

        Raises:
            ConfigError: the name is taken.
        """

        def add(entry: T) -> T:
            if name in self._entries:
                raise ConfigError(f"{self.kind} '{name}' is registered twice; rename one of them")
            self._entries[name] = entry
            return entry

        return add

    def get(self, name: str) -> T:
        """Return the entry called `name`.

        Raises:
            ConfigError: there is none; the message lists what there is.
        """
        if name not in self._entries:
            names = self.names()
            raise ConfigError(f"unknown {self.kind} '{name}'{suggest(name, names)}; there are: {', '.join(names)}")
        return self._entries[name]

    def names(self) -> list[str]:
        return sorted(self._entries)

    def __iter__(self) -> Iterator[str]:
        return iter(self.names())


def import_folder(package: str, paths: list[str], leaving_out: Collection[str] = ()) -> None:
    """Import every module of a package, so that each registers itself; errors in them are raised, never hidden."""
    for module in pkgutil.iter_modules(paths):
        if module.name not in leaving_out:
            importlib.import_module(f"{package}.{module.name}")
