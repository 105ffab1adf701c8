"""Limits on this process: memory by `ulimit -v` and control groups, the largest file by `ulimit -f`."""

from __future__ import annotations

import contextlib
import resource
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

GIVEN_BACK = 1 << 30  # bytes; a training rank's allocator gives blocks of this size back to the system when they are freed
GIVEN_BACK_ONCE = 1 << 23  # bytes; the same while an engine is made, and all along where gradients are in files
LARGE_BLOCK = 1 << 24  # bytes; the same for logits, of which a step has one or two at a time
_CGROUPS = Path("/sys/fs/cgroup")
_OWN_CGROUPS = Path("/proc/self/cgroup")
_UNLIMITED = 1 << 60  # version 1 writes a number near 2^63 where there is no limit


@dataclass(frozen=True, kw_only=True)
class MemoryLimit:
    """A limit in bytes, and who set it; `is_shared` where all processes of a group count together, else it is each process's."""

    n_bytes: int
    what: str
    is_shared: bool


def memory_limit() -> MemoryLimit | None:
    """Return the tightest limit on this process's memory; None where there is none."""
    return min(memory_limits(), key=lambda limit: limit.n_bytes, default=None)


def memory_limits() -> list[MemoryLimit]:
    """Return all limits on this process's memory."""
    return [*_of_process(), *_of_groups(_CGROUPS, _OWN_CGROUPS)]


def largest_file() -> int | None:
    """Return how many bytes a file of this process may have; None where there is no limit."""
    soft, _ = resource.getrlimit(resource.RLIMIT_FSIZE)
    return None if soft == resource.RLIM_INFINITY else soft


def _of_process() -> Iterator[MemoryLimit]:
    soft, _ = resource.getrlimit(resource.RLIMIT_AS)
    if soft != resource.RLIM_INFINITY:
        yield MemoryLimit(n_bytes=soft, what="`ulimit -v`", is_shared=False)


def _of_groups(root: Path, own: Path) -> Iterator[MemoryLimit]:
    """Read the limits of the groups that a process is in, and of those above them."""
    lines = own.read_text(encoding="utf-8").splitlines() if own.is_file() else []
    for line in lines:
        _, controllers, path = line.split(":", 2)
        if controllers and "memory" not in controllers.split(","):
            continue
        top, file = (root / "memory", "memory.limit_in_bytes") if controllers else (root, "memory.max")
        group = top / path.lstrip("/")
        for place in [group, *group.parents]:
            with contextlib.suppress(OSError, ValueError):
                limit = int((place / file).read_text(encoding="utf-8"))
                if limit < _UNLIMITED:
                    yield MemoryLimit(n_bytes=limit, what=f"the control group {place}", is_shared=True)
            if place == top:
                break
