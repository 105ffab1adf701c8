"""Ranks on this machine: a process each, told who they are only by environment variables; watched, stopped, and ended.

A rank tells its starter a user error through a pipe, which takes no disk. None outlives the process that started it.
"""

from __future__ import annotations

import contextlib
import os
import re
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.limits import GIVEN_BACK
from adapt.train.stopping import STOPPED_CODE

POLL_S = 0.05
_GRACE_S = 5.0
_KEEP_FREED_MEMORY = {"MALLOC_MMAP_THRESHOLD_": str(GIVEN_BACK), "MALLOC_TRIM_THRESHOLD_": str(1 << 33)}  # glibc, bytes
# DeepSpeed compiles an optimizer that is not in use here, and importing torch's compiler takes as long as importing torch.
_COMPILES_NOTHING = {"TORCHDYNAMO_DISABLE": "1"}
TELL = "MOE_ADAPT_TELL"  # in a rank's environment: the pipe's number
_MOST_TOLD = 60_000  # bytes, less than a pipe holds
_PEAK = re.compile(r"VmHWM:\s*(\d+) kB")
LOOPBACK = "127.0.0.1"


@dataclass(frozen=True, kw_only=True)
class Meeting:
    """Where ranks find each other, and how many of them there are."""

    address: str
    port: int
    world_size: int


def share_of_cores(n_ranks: int) -> int:
    """Return how many CPU threads a rank gets where nobody says, of so many ranks on this machine."""
    return max((os.cpu_count() or 1) // n_ranks, 1)


def rank_environment(rank: int, local_rank: int, meeting: Meeting, threads: int) -> dict[str, str]:
    """Return a rank's environment: its place among the ranks, where they meet, its threads, and who its parent is.

    The allocator keeps what is freed instead of giving it back to the kernel after every use: a training step on a CPU spends a
    quarter of its time on page faults otherwise. Only the largest blocks go back, and those that `adapt.core.allocator` is told of
    (a bucket of gradients, their flat copy, logits of a large vocabulary): smaller ones settle in the gaps that they leave, and the
    peak would be their sum. What is under
    `torch.compile` runs as it is written. What the user has set stays, but what torchrun's agent says to those that it starts:
    they would meet at its port.
    """
    inherited = {name: value for name, value in os.environ.items() if not name.startswith("TORCHELASTIC_")}
    return {
        **_KEEP_FREED_MEMORY,
        **_COMPILES_NOTHING,
        **inherited,
        "RANK": str(rank),
        "LOCAL_RANK": str(local_rank),
        "WORLD_SIZE": str(meeting.world_size),
        "MASTER_ADDR": meeting.address,
        "MASTER_PORT": str(meeting.port),
        "OMP_NUM_THREADS": str(threads),
        "MOE_ADAPT_PARENT": str(os.getpid()),
        "PYTHONPATH": os.pathsep.join([str(Path(__file__).resolve().parents[2]), os.environ.get("PYTHONPATH", "")]),
    }


@dataclass(frozen=True, kw_only=True)
class Death:
    """How a rank failed: its message if it left one, and its exit code (negative: a signal).

    `peak_bytes` is the most memory that it was seen to hold.
    """

    rank: int
    code: int
    said: str | None = None
    host: str | None = None
    peak_bytes: int | None = None

    @property
    def urgency(self) -> int:
        """Order deaths by how likely they are the cause: what was said, then signals; ranks that lost a peer exit by themselves."""
        return 0 if self.said is not None else 1 if self.code < 0 else 2


class LocalRanks:
    """The ranks `first`, `first + 1`, ... of a job that run here; used as a context, which ends those that are left.

    Others may run on this host too, started by other processes: then these are number `first_local` and on of `on_host`.
    """

    def __init__(
        self,
        frozen: Path,
        first: int,
        count: int,
        meeting: Meeting,
        threads: int | None,
        *,
        first_local: int = 0,
        on_host: int | None = None,
    ) -> None:
        self._frozen, self._work = frozen, frozen.parent
        self._meeting = meeting
        self._first_local = first_local
        self._threads = threads or share_of_cores(on_host or count)
        self._numbers = range(first, first + count)
        self._processes: list[subprocess.Popen[bytes]] = []
        self._told: list[int] = []
        self._dead: dict[int, Death] = {}
        self._peaks: dict[int, int] = {}
        self._stack = contextlib.ExitStack()

    @property
    def are_running(self) -> bool:
        return any(process.poll() is None for process in self._processes)

    @property
    def were_stopped(self) -> bool:
        return any(process.poll() == STOPPED_CODE for process in self._processes)

    @property
    def wish(self) -> int | None:
        """Return a signal that another process passes on: there is none that would."""
        return None

    def deaths(self) -> list[Death]:
        """Return those that failed so far."""
        for rank, process, told in zip(self._numbers, self._processes, self._told, strict=True):
            code = process.poll()
            if code is None:
                self._peaks[rank] = max(self._peaks.get(rank, 0), _peak_bytes(process.pid))
            if code not in (None, 0, STOPPED_CODE) and rank not in self._dead:
                self._dead[rank] = Death(rank=rank, code=code, said=_heard(told), peak_bytes=self._peaks.get(rank) or None)
        return list(self._dead.values())

    def ask_to_stop(self) -> None:
        """Ask all to leave at the next step boundary, behind their saved state."""
        for process in self._processes:
            if process.poll() is None:
                process.send_signal(signal.SIGTERM)

    def kill(self) -> None:
        """End all at once."""
        for process in self._processes:
            if process.poll() is None:
                process.kill()

    def __enter__(self) -> LocalRanks:
        with ended_on_failure(self):
            for local_rank, rank in enumerate(self._numbers, start=self._first_local):
                self._start(rank, rank_environment(rank, local_rank, self._meeting, self._threads))
        return self

    def __exit__(self, *_: object) -> None:
        for process in self._processes:
            if process.poll() is None:
                process.terminate()
        deadline = time.monotonic() + _GRACE_S
        for process in self._processes:
            try:
                process.wait(max(deadline - time.monotonic(), 0.1))
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        self._stack.close()

    def _start(self, rank: int, environment: dict[str, str]) -> None:
        log = None if rank == 0 else self._stack.enter_context(log_of(self._work, rank).open("wb"))
        told, tell = os.pipe()
        self._stack.callback(os.close, told)
        os.set_blocking(told, False)
        try:
            process = subprocess.Popen(
                [sys.executable, "-m", "pipelines.worker", str(self._frozen)],
                env={**environment, TELL: str(tell)},
                stdin=subprocess.DEVNULL,
                stderr=log,
                pass_fds=[tell],
            )
        finally:
            os.close(tell)
        self._told.append(told)
        self._processes.append(process)


@contextlib.contextmanager
def ended_on_failure(ranks: contextlib.AbstractContextManager[Any]) -> Iterator[None]:
    """End ranks where the rest of them cannot be started."""
    try:
        yield
    except BaseException:
        ranks.__exit__(None, None, None)
        raise


def log_of(work: Path, rank: int) -> Path:
    """Return where a rank other than 0 writes its log."""
    return work / f"rank-{rank}.log"


def tell_starter(message: str) -> None:
    """Say, as a rank, why this process ends."""
    os.write(int(os.environ[TELL]), message.encode()[:_MOST_TOLD])


def remove_stale(work: Path) -> None:
    """Remove what ranks of an earlier attempt left."""
    for stale in work.glob("rank-*"):
        stale.unlink()


def free_port(address: str = LOOPBACK) -> int:
    """Return a port of this machine that nothing listens on at an address."""
    with socket.socket() as probe:
        probe.bind((address, 0))
        return int(probe.getsockname()[1])


def _peak_bytes(process: int) -> int:
    """Return the most memory that a running process has held; 0 where that cannot be read."""
    try:
        found = _PEAK.search(Path(f"/proc/{process}/status").read_text(encoding="utf-8"))
    except OSError:
        return 0
    return 0 if found is None else 1024 * int(found[1])


def _heard(told: int) -> str | None:
    """Read what an ended rank has said; nothing is in a pipe that nobody has written to."""
    try:
        return os.read(told, _MOST_TOLD).decode(errors="replace") or None
    except BlockingIOError:  # something that the rank has left behind holds the pipe open
        return None
