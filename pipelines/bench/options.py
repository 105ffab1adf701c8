"""Reading the options of a benchmark's command line."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import torch

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


def some_of(benchmark: str, options: Mapping[str, str], key: str, known: Sequence[str], default: Sequence[str]) -> list[str]:
    """Return a comma-separated option's names, or none of them where it says `none`.

    Raises:
        ConfigError: a name is not among `known`.
    """
    value = options.get(key, ",".join(default))
    names = [] if value == "none" else value.split(",")
    if strange := [name for name in names if name not in known]:
        raise ConfigError(f"bench {benchmark}: {key}={value}: no '{strange[0]}'; give none, or some of: {','.join(known)}")
    return names


def one_of(benchmark: str, options: Mapping[str, str], key: str, known: Sequence[str]) -> str:
    """Return an option that is one of `known`, of which the first is its default.

    Raises:
        ConfigError: it is none of them.
    """
    value = options.get(key, known[0])
    if value not in known:
        raise ConfigError(f"bench {benchmark}: {key}={value}: give one of: {', '.join(known)}")
    return value


def device_of(benchmark: str, options: Mapping[str, str]) -> str:
    """Return the device asked for: cuda where there is one, else cpu."""
    return one_of(benchmark, options, "device", ("cuda", "cpu") if torch.cuda.is_available() else ("cpu",))


def is_cpu_time(benchmark: str, options: Mapping[str, str], threads: int, device: str) -> bool:
    """Return whether `clock=` asks for the processor's time instead of the wall's.

    Raises:
        ConfigError: several threads, or a CUDA device, would make that time mean something else.
    """
    is_asked = one_of(benchmark, options, "clock", ("wall", "cpu")) == "cpu"
    if is_asked and (threads > 1 or device != "cpu"):
        raise ConfigError(f"bench {benchmark}: clock=cpu counts one thread's work; leave it out, or take threads=1 device=cpu")
    return is_asked
