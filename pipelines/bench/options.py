"""Reading the options of a benchmark's command line."""

from __future__ import annotations

from collections.abc import Mapping

from adapt.core.errors import ConfigError


def only(benchmark: str, options: Mapping[str, str], *known: str, needed: tuple[str, ...] = ()) -> None:
    """Raise ConfigError for an option that is not among `known`, or one of `needed` that is not given."""
    if missing := [name for name in needed if name not in options]:
        raise ConfigError(f"bench {benchmark}: needs {missing[0]}=; options are: {', '.join(known)}")
    if unknown := set(options) - set(known):
        raise ConfigError(f"bench {benchmark}: unknown option '{min(unknown)}'; there are: {', '.join(known)}")


def number(benchmark: str, options: Mapping[str, str], key: str, default: int) -> int:
    """Return an option as a whole number of at least 1.

    Raises:
        ConfigError: it is no such number.
    """
    value = options.get(key, str(default))
    if not value.isdecimal() or int(value) < 1:
        raise ConfigError(f"bench {benchmark}: {key}={value}: give a whole number of at least 1")
    return int(value)
