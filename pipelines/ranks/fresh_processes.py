"""Functions called in fresh processes, by themselves or as the ranks of a training, whose environment is set before they start.

What glibc does with freed memory is read from the environment when a process begins, so it can only be chosen for a child.
"""

from __future__ import annotations

import contextlib
import multiprocessing
import os
import sys
import warnings
from collections.abc import Callable, Iterator, Mapping
from concurrent.futures import ProcessPoolExecutor
from concurrent.futures.process import BrokenProcessPool
from types import MappingProxyType
from typing import Any, TypeVar

import torch

from adapt.core.errors import AdaptError
from pipelines.ranks.local import LOOPBACK, Meeting, free_port, rank_environment

T = TypeVar("T")

GIVE_BACK = MappingProxyType({"MALLOC_MMAP_THRESHOLD_": "131072", "MALLOC_TRIM_THRESHOLD_": "131072"})  # glibc, bytes


def as_a_rank(threads: int) -> dict[str, str]:
    """Return the environment of a training run's only rank: freed memory is kept, so many threads."""
    return rank_environment(0, 0, Meeting(address=LOOPBACK, port=free_port(), world_size=1), threads)


def in_child(environment: Mapping[str, str], threads: int, function: Callable[..., T], *arguments: Any) -> T:
    """Call a module's function in a fresh process with these additions to the environment, and return what it returns.

    Raises:
        AdaptError: the process died, or the function raised it.
    """
    with _environment(environment), ProcessPoolExecutor(1, mp_context=multiprocessing.get_context("spawn")) as pool:
        try:
            return pool.submit(_quietly, threads, function, *arguments).result()
        except BrokenProcessPool as error:
            raise AdaptError("the measuring process died, perhaps for want of memory; ask for smaller cases") from error


def on_ranks(n_ranks: int, threads: int, function: Callable[..., T], *arguments: Any) -> list[T]:
    """Call a module's function in as many fresh processes at once as a training run has ranks; return what each returns.

    Raises:
        AdaptError: a process died, or the function raised it.
    """
    meeting = Meeting(address=LOOPBACK, port=free_port(), world_size=n_ranks)
    context = multiprocessing.get_context("spawn")
    with contextlib.ExitStack() as stack:
        futures = []
        for rank in range(n_ranks):
            pool = stack.enter_context(ProcessPoolExecutor(1, mp_context=context))
            with _environment(rank_environment(rank, rank, meeting, threads)):
                futures.append(pool.submit(_quietly, threads, function, *arguments))
        try:
            return [future.result() for future in futures]
        except BrokenProcessPool as error:
            raise AdaptError("a measuring rank died, perhaps for want of memory; ask for smaller cases") from error


def _quietly(threads: int, function: Callable[..., T], *arguments: Any) -> T:
    torch.set_num_threads(threads)
    warnings.filterwarnings("ignore", category=FutureWarning)  # of the packages measured, nothing a user can mend
    with contextlib.redirect_stdout(sys.stderr):  # standard output is the table's
        return function(*arguments)


@contextlib.contextmanager
def _environment(settings: Mapping[str, str]) -> Iterator[None]:
    before = {key: os.environ.get(key) for key in settings}
    os.environ.update(settings)
    try:
        yield
    finally:
        for key, value in before.items():
            if value is None:
                del os.environ[key]
            else:
                os.environ[key] = value
