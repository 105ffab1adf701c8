"""Which freed blocks a training rank's allocator gives back to the system at once (glibc; elsewhere nothing happens).

A rank's allocator keeps freed memory, so that the next step needs no page faults. That is harmful for very large blocks of which a
step has only one or two: smaller blocks fill their place once they are freed, and the heap grows by as much at the next step.
Large allocations inside `given_back` get mappings of their own.
"""

from __future__ import annotations

import ctypes
import functools
import os
from collections.abc import Iterator
from contextlib import contextmanager

from adapt.core.limits import LARGE_BLOCK

_MMAP_THRESHOLD = -3  # glibc's number for it
_MOST = (1 << 31) - 1  # it takes an int


class _Allocator:
    """This process's allocator; `least` are the bytes from which on blocks are given back, 0 where that cannot be chosen."""

    def __init__(self) -> None:
        library, said = ctypes.CDLL(None), os.environ.get("MALLOC_MMAP_THRESHOLD_", "")
        self._mallopt = getattr(library, "mallopt", None)
        self.least = int(said) if said.isdecimal() and self._mallopt is not None else 0

    def set(self, least: int) -> None:
        assert self._mallopt is not None
        self._mallopt(_MMAP_THRESHOLD, min(least, _MOST))
        self.least = least


@functools.cache
def _allocator() -> _Allocator:
    return _Allocator()


def give_back(least: int) -> None:
    """Give blocks of at least `least` bytes back when they are freed, from now on; a smaller limit that is set already stays."""
    allocator = _allocator()
    if least < allocator.least:
        allocator.set(least)


@contextmanager
def given_back(least: int = LARGE_BLOCK) -> Iterator[None]:
    """Give allocations of at least `least` bytes, made inside this context, back when they are freed."""
    before = _allocator().least
    give_back(least)
    try:
        yield
    finally:
        if _allocator().least != before:
            _allocator().set(before)
