"""Launching ranks on this machine: one process each, told who they are by environment variables alone.

The parent freezes a job into one YAML file; ranks read nothing else and never import Hydra. If a rank fails, the others
are stopped at once and the first failure's reason is raised here; if the parent dies, so do its ranks. A parent that is asked to
stop (Ctrl-C or SIGTERM) asks its ranks, and waits until they have saved their state; asked again, it ends them at once.
"""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from types import FrameType
from typing import Any

import yaml

from adapt.core.artifacts import write_atomically
from adapt.core.errors import AdaptError, TrainingError
from adapt.train.stopping import STOPPED_CODE

logger = logging.getLogger("pipelines")
_POLL_S = 0.05
_GRACE_S = 5.0
USER_ERROR_CODE = 2
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(1 << 33), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}  # glibc, bytes


class Terminated(KeyboardInterrupt):
    """SIGTERM, which this project's commands take as they take Ctrl-C."""


def terminate(number: int, frame: FrameType | None) -> None:
    """Handle SIGTERM by raising `Terminated`."""
    raise Terminated


def launch(job: dict[str, Any], work: Path, world_size: int, threads: int | None) -> None:
    """Run a job on `world_size` ranks and wait for all of them.

    Raises:
        AdaptError: a rank reported a user error (its own line).
        TrainingError: a rank died otherwise; its last lines are in `<work>/rank-<n>.log`.
        Terminated: the ranks were asked to stop, and have saved their state.
    """
    frozen = work / "job.yaml"
    write_atomically(frozen, yaml.safe_dump(job, allow_unicode=True, sort_keys=False))
    port = free_port()
    threads = threads or max((os.cpu_count() or 1) // world_size, 1)
    ranks: list[subprocess.Popen[bytes]] = []
    with _logs(work, world_size) as logs, _stopped_in_the_end(ranks):
        for rank in range(world_size):
            environment = rank_environment(rank, world_size, port, threads)
            command = [sys.executable, "-m", "pipelines.worker", str(frozen)]
            ranks.append(subprocess.Popen(command, env=environment, stderr=None if rank == 0 else logs[rank]))
        try:
            _wait(ranks, work)
        except KeyboardInterrupt:
            _stop(ranks)
            raise


def rank_environment(rank: int, world_size: int, port: int, threads: int) -> dict[str, str]:
    """Return a rank's environment: its place among the ranks, where they meet, its threads, and who its parent is.

    Large blocks are kept by the allocator instead of going back to the kernel after every use: a training step on a CPU
    spends a quarter of its time on page faults otherwise. What the user has set stays.
    """
    return {
        **_KEEP_FREED_MEMORY,
        **os.environ,
        "RANK": str(rank),
        "LOCAL_RANK": str(rank),
        "WORLD_SIZE": str(world_size),
        "MASTER_ADDR": "127.0.0.1",
        "MASTER_PORT": str(port),
        "OMP_NUM_THREADS": str(threads),
        "MOE_ADAPT_PARENT": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[1]), os.environ.get("PYTHONPATH", "")]),
    }


def _wait(ranks: list[subprocess.Popen[bytes]], work: Path) -> None:
    while True:
        codes = [rank.poll() for rank in ranks]
        failed = [index for index, code in enumerate(codes) if code not in (None, 0, STOPPED_CODE)]
        if failed:
            # Give the rank that caused it a moment to be told apart from those that lost their peer.
            time.sleep(_POLL_S)
            raise _reason(failed[0], codes[failed[0]], work)
        if None not in codes:
            if STOPPED_CODE in codes:
                raise Terminated
            return
        time.sleep(_POLL_S)


def _stop(ranks: list[subprocess.Popen[bytes]]) -> None:
    """Ask ranks to stop and wait until they have: at the next step boundary, behind their saved state.

    A rank that was not in its training loop ends at once, and then the others, which wait for it, are not waited for.
    """
    logger.info("stopping at the next step boundary; the same again stops at once")
    for rank in ranks:
        if rank.poll() is None:
            rank.send_signal(signal.SIGTERM)
    while any(rank.poll() is None for rank in ranks):
        if any(rank.poll() not in (None, 0, STOPPED_CODE) for rank in ranks):
            return
        time.sleep(_POLL_S)


def _reason(rank: int, code: int | None, work: Path) -> AdaptError:
    for file in sorted(work.glob("rank-*.error"), key=lambda path: path.stat().st_mtime):
        return AdaptError(file.read_text(encoding="utf-8").strip())
    how = f"signal {-code}" if code is not None and code < 0 else f"exit code {code}"
    log = work / f"rank-{rank}.log"
    place = f"; see {log}" if rank else ""
    return TrainingError(f"rank {rank} died ({how}){place}; the same command goes on from the last saved state")


@contextlib.contextmanager
def _logs(work: Path, world_size: int) -> Iterator[dict[int, Any]]:
    for stale in work.glob("rank-*"):
        stale.unlink()
    with contextlib.ExitStack() as stack:
        yield {rank: stack.enter_context((work / f"rank-{rank}.log").open("wb")) for rank in range(1, world_size)}


@contextlib.contextmanager
def _stopped_in_the_end(ranks: list[subprocess.Popen[bytes]]) -> Iterator[None]:
    try:
        yield
    finally:
        for rank in ranks:
            if rank.poll() is None:
                rank.terminate()
        deadline = time.monotonic() + _GRACE_S
        for rank in ranks:
            try:
                rank.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                rank.kill()
                rank.wait()


def free_port() -> int:
    """Return a port of the loopback interface that nothing listens on."""
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])
