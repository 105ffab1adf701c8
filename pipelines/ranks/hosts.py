"""Hosts that train together: a file in DeepSpeed's form (`name slots=n`, a line each) to which ranks start where.

Ranks are numbered host by host in the file's order, so that neighbours, who share experts, are on one host as far as it goes.
"""

from __future__ import annotations

import re
from dataclasses import dataclass
from pathlib import Path

from adapt.core.errors import ConfigError
from adapt.train.engine_config import EngineConfig

_LINE = re.compile(r"(?P<name>[^\s#]+)\s+slots=(?P<slots>\d+)")


@dataclass(frozen=True, kw_only=True)
class Host:
    """A host, and how many ranks it takes."""

    name: str
    slots: int


@dataclass(frozen=True, kw_only=True)
class HostRanks:
    """The ranks that one host runs: `count` of them from `first` on."""

    host: str
    first: int
    count: int


def read_hosts(path: Path) -> list[Host]:
    """Read a hostfile; `#` begins a comment.

    Raises:
        ConfigError: the file cannot be read, names no host or one twice, or a line says something else.
    """
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"engine.hostfile: {path} cannot be read ({error}); give a file of lines `host slots=n`") from error
    hosts: list[Host] = []
    for number, line in enumerate(lines, start=1):
        text = line.partition("#")[0].strip()
        if not text:
            continue
        found = _LINE.fullmatch(text)
        if found is None or not int(found["slots"]):
            raise ConfigError(f"engine.hostfile: {path}:{number}: '{text}' is not `host slots=n` with n at least 1")
        if found["name"] in [host.name for host in hosts]:
            raise ConfigError(f"engine.hostfile: {path}:{number}: host {found['name']} stands twice; add its slots up in one line")
        hosts.append(Host(name=found["name"], slots=int(found["slots"])))
    if not hosts:
        raise ConfigError(f"engine.hostfile: {path} names no host; give lines `host slots=n`")
    return hosts


def check_hosts(engine: EngineConfig) -> None:
    """Raise ConfigError where the hosts do not have as many slots as there are ranks."""
    if engine.hostfile is None:
        return
    slots = sum(host.slots for host in read_hosts(Path(engine.hostfile)))
    if slots != engine.world_size:
        raise ConfigError(
            f"engine.hostfile: {engine.hostfile} has {slots} slots, and engine.world_size is {engine.world_size}; set "
            f"engine.world_size={slots}, or change the slots"
        )


def spread(hosts: list[Host], n_ranks: int) -> list[HostRanks]:
    """Fill the hosts' slots with ranks, in order; hosts that none is left for take no part."""
    found, first = [], 0
    for host in hosts:
        count = min(host.slots, n_ranks - first)
        if count > 0:
            found.append(HostRanks(host=host.name, first=first, count=count))
            first += count
    return found
