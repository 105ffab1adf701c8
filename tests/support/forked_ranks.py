"""Ranks forked from a process that has imported torch and DeepSpeed: scripts of `tests.support.ranks`, and a command's own ranks.

A process that imports both by itself takes some seven seconds of a CPU before its first step. Forked ranks compute on the CPU.
"""

from __future__ import annotations

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Collection
from multiprocessing import reduction
from pathlib import Path
from typing import IO, Any
from unittest import mock

import pytest
import torch

from pipelines.ranks import local
from pipelines.ranks.local import LOOPBACK, TELL, Meeting, free_port, rank_environment

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


def fork_ranks(patch: pytest.MonkeyPatch) -> None:
    """Let the ranks that this process launches be forked; where there is a GPU, ranks stay processes of their own, and use it."""
    if not torch.cuda.is_available():
        patch.setattr(local, "subprocess", _Forking)


class _Forking:
    """What `pipelines.ranks.local` uses of `subprocess`."""

    DEVNULL, TimeoutExpired = subprocess.DEVNULL, subprocess.TimeoutExpired

    class Popen:
        def __init__(
            self, command: list[str], *, env: dict[str, str], stdin: int, stderr: IO[bytes] | None, pass_fds: list[int]
        ) -> None:
            assert command[1:-1] == ["-m", "pipelines.worker"]
            (tell,), errors = pass_fds, 2 if stderr is None else stderr.fileno()
            arguments = (Path(command[-1]), env, _Descriptor(tell), _Descriptor(errors))
            self._rank = _SERVED.Process(target=_work, args=arguments)
            with mock.patch.dict(os.environ, {**env, **_ON_THE_CPU}):
                self._rank.start()

        @property
        def pid(self) -> int:
            assert self._rank.pid is not None
            return self._rank.pid

        def poll(self) -> int | None:
            return self._rank.exitcode

        def wait(self, timeout: float | None = None) -> int:
            self._rank.join(timeout)
            if self._rank.exitcode is None:
                raise subprocess.TimeoutExpired("a forked rank", timeout or 0.0)
            return self._rank.exitcode

        def send_signal(self, number: int) -> None:
            if self.poll() is None and self._rank.pid is not None:
                os.kill(self._rank.pid, number)

        def terminate(self) -> None:
            self.send_signal(signal.SIGTERM)

        def kill(self) -> None:
            self.send_signal(signal.SIGKILL)


class _Descriptor:
    """An open file that goes along to the forked process."""

    def __init__(self, number: int) -> None:
        self._number = number

    def __getstate__(self) -> Any:
        return reduction.DupFd(self._number)

    def __setstate__(self, sent: Any) -> None:
        self._number = sent.detach()

    def fileno(self) -> int:
        return self._number


def _work(job: Path, environment: dict[str, str], tell: _Descriptor, errors: _Descriptor) -> None:
    """Be a command's rank."""
    from pipelines.worker import main

    assert _PREPARED in sys.modules, "nothing was imported before the fork"
    os.environ.clear()
    os.environ.update({**environment, TELL: str(tell.fileno())})
    os.dup2(errors.fileno(), 2)
    code = main(job)
    sys.stderr.flush()
    os._exit(code)


def _run(script: str, place: Path, arguments: tuple[str, ...], environment: dict[str, str]) -> None:
    """Be a rank."""
    assert _PREPARED in sys.modules, "nothing was imported before the fork"
    os.environ.clear()
    os.environ.update(environment)
    importlib.import_module(f"tests.support.ranks.{script}").main(place, *arguments)
