"""Scripts of `tests.support.ranks` on real ranks: processes forked from one that has imported torch and DeepSpeed already.

A process that imports both by itself takes some seven seconds of a CPU before its first step. They compute on the CPU everywhere.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import sys
import time
from collections.abc import Collection
from pathlib import Path
from typing import Any
from unittest import mock

import pytest
import torch

from pipelines.ranks.local import LOOPBACK, Meeting, free_port, rank_environment

_SERVED = multiprocessing.get_context("forkserver")
_PREPARED = "tests.support.ranks.prepared"
_SERVED.set_forkserver_preload([_PREPARED])
_ON_THE_CPU = {"CUDA_VISIBLE_DEVICES": "", "DS_ACCELERATOR": "cpu"}


def launch_ranks(script: str, place: Path, world_size: int, *arguments: str, timeout_s: float = 400) -> dict[str, Any]:
    """Run a script of `tests.support.ranks` on so many ranks and return what it saved; no rank outlives the call."""
    meeting = Meeting(address=LOOPBACK, port=free_port(), world_size=world_size)
    environments = [{**rank_environment(rank, rank, meeting, threads=1), **_ON_THE_CPU} for rank in range(world_size)]
    ranks = [_SERVED.Process(target=_run, args=(script, place, arguments, environment)) for environment in environments]
    deadline = time.monotonic() + timeout_s
    try:
        with mock.patch.dict(os.environ, environments[0]):  # the first one starts the process that all are forked from
            for rank in ranks:
                rank.start()
        for rank in ranks:
            rank.join(max(deadline - time.monotonic(), 0.0))
        assert [rank.exitcode for rank in ranks] == [0] * world_size, f"{script}: a rank failed, or took longer than {timeout_s} s"
    finally:
        for rank in ranks:
            if rank.pid is not None:
                rank.kill()
                rank.join()
    return dict(torch.load(place / "results.pt", weights_only=True))


class Launched:
    """Results of a script by name: the fast ones are launched together when a test asks for one of them, the others likewise."""

    def __init__(
        self, script: str, place: Path, world_size: int, names: Collection[str], fast: Collection[str], timeout_s: float = 400
    ) -> None:
        self._script, self._place, self._world_size, self._timeout_s = script, place, world_size, timeout_s
        self._groups = [list(fast), [name for name in names if name not in fast]]
        self._found: dict[str, Any] = {}

    def __getitem__(self, name: str) -> Any:
        if name not in self._found:
            group = next(group for group in self._groups if name in group)
            place = self._place / f"with {group[0]}"
            place.mkdir()
            self._found |= launch_ranks(self._script, place, self._world_size, *group, timeout_s=self._timeout_s)
        return self._found[name]


def slow_unless(is_fast: bool) -> list[pytest.MarkDecorator]:
    """Return the marks of a parameter."""
    return [] if is_fast else [pytest.mark.slow]


def _run(script: str, place: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Be a rank."""
    assert _PREPARED in sys.modules, "nothing was imported before the fork"
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module(f"tests.support.ranks.{script}").main(place, *arguments)
