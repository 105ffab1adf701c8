"""Blocks that are given back are mapped by themselves, and only inside the block that asks for it."""

from __future__ import annotations

import ctypes
import multiprocessing
import os
from collections.abc import Callable

import pytest
import torch

from adapt.core import allocator
from adapt.core.allocator import give_back, given_back

KEPT, LARGE = 1 << 30, 1 << 24


class _Counts(ctypes.Structure):
    _fields_ = (("values", ctypes.c_size_t * 10),)


def in_a_rank(check: Callable[[], None]) -> None:
    """Call `check` in a new process with the threshold of a rank, whose heap has no holes of other tests."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("this system has another allocator than glibc 2.33 or newer")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("MALLOC_MMAP_THRESHOLD_", str(KEPT))
        process = multiprocessing.get_context("spawn").Process(target=check)
        process.start()
    process.join()
    assert process.exitcode == 0


def is_mapped(n_bytes: int) -> bool:
    """Say whether a new tensor of so many bytes is mapped by itself."""
    before = mapped_bytes()
    tensor = torch.empty(n_bytes, dtype=torch.uint8)
    return mapped_bytes() - before >= tensor.numel()


def mapped_bytes() -> int:
    """Return the bytes of all blocks that are mapped by themselves (`hblkhd` of glibc's mallinfo2)."""
    library = ctypes.CDLL(None)
    library.mallinfo2.restype = _Counts
    return int(library.mallinfo2().values[4])


def check_inside_and_outside() -> None:
    assert os.environ["MALLOC_MMAP_THRESHOLD_"] == str(KEPT)
    assert not is_mapped(LARGE)
    with given_back(LARGE):
        assert is_mapped(LARGE) and not is_mapped(LARGE // 2)
        with given_back(LARGE // 2):
            assert is_mapped(LARGE // 2)
        with given_back(2 * LARGE):
            assert is_mapped(LARGE), "an inner block takes nothing back"
        assert is_mapped(LARGE) and not is_mapped(LARGE // 2)
    assert not is_mapped(LARGE)
    give_back(LARGE)
    with given_back(2 * LARGE):
        assert is_mapped(LARGE)
    assert is_mapped(LARGE)


def test_large_blocks_are_given_back_inside_and_kept_outside() -> None:
    in_a_rank(check_inside_and_outside)


def test_an_allocator_that_was_not_set_is_left_as_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv("MALLOC_MMAP_THRESHOLD_", raising=False)
    allocator._allocator.cache_clear()
    monkeypatch.setattr(allocator._Allocator, "set", lambda self, least: pytest.fail("it was set"))
    with given_back(1):
        give_back(1)
    allocator._allocator.cache_clear()
