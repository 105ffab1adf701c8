"""Which freed blocks a training rank's allocator gives back to the system at once (glibc; elsewhere nothing happens).

Ranks are started with an allocator that keeps what is freed, so that a step finds its memory again without page faults. Blocks that
come once a step and are as large as many others do harm there: smaller ones settle in the hole that they leave, they find no other,
and the heap grows by all of them. In a block of `given_back` such allocations are mapped by themselves.
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
    """Give blocks of at least so many bytes back when they are freed, from now on; what gives back smaller ones stays as it is."""
    allocator = _allocator()
    if least < allocator.least:
        allocator.set(least)


@contextmanager
def given_back(least: int = LARGE_BLOCK) -> Iterator[None]:
    """Give what is allocated in the block back when it is freed, if it has at least so many bytes."""
    before = _allocator().least
    give_back(least)
    try:
        yield
    finally:
        if _allocator().least != before:
            _allocator().set(before)
