"""Points side by side on this machine: each has a slot, which is a share of the cores and GPUs, and a process of its own.

Slots are files that a point locks while it runs, so that a slot is free again however its point ends. A point's process is forked
from the launcher's: when it is killed the launcher's lives, and the next point takes the slot.
"""

from __future__ import annotations

import contextlib
import ctypes
import json
import os
import signal
import sys
import time
import traceback
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass
from multiprocessing import util as multiprocessing_util
from pathlib import Path
from typing import TypeVar

from adapt.core.json_files import read_json
from adapt.core.store_locks import tried

_FILE = "slots.json"
_POLL_S = 0.2
_PR_SET_PDEATHSIG = 1
_VISIBLE = "CUDA_VISIBLE_DEVICES"
T = TypeVar("T")


@dataclass(frozen=True, kw_only=True)
class Slot:
    """A slot's number, how many there are, its cores (several slots have one where there are too few), and its GPUs."""

    number: int
    of: int
    cores: tuple[int, ...]
    gpus: tuple[str, ...]

    @property
    def words(self) -> str:
        """The slot and what it has."""
        cores = _listed("core", [str(core) for core in self.cores])
        gpus = f", {_listed('GPU', self.gpus)}" if self.gpus else ""
        return f" (slot {self.number + 1} of {self.of}: {cores}{gpus})"

    def threads(self, ranks: int) -> int:
        """Return how many threads each of a point's ranks may have."""
        return max(len(self.cores) // ranks, 1)

    def take(self) -> None:
        """Keep this process, and those it starts, to the slot's cores and GPUs."""
        os.sched_setaffinity(0, self.cores)
        os.environ["OMP_NUM_THREADS"] = str(len(self.cores))
        if self.gpus:
            os.environ[_VISIBLE] = ",".join(self.gpus)


def share_out(place: Path, n_slots: int) -> None:
    """Make the slots of a sweep: this process's cores and GPUs, divided evenly."""
    cores, gpus = sorted(os.sched_getaffinity(0)), visible_gpus(os.environ)
    shares = [[_share(cores, number, n_slots), _share(gpus, number, n_slots)] for number in range(n_slots)]
    (place / _FILE).write_text(json.dumps(shares), encoding="utf-8")
    for number in range(n_slots):
        _lock(place, number).touch()


def has_slots(place: Path | None) -> bool:
    """Say whether the points of a sweep run in slots."""
    return place is not None and (place / _FILE).is_file()


@contextlib.contextmanager
def free_slot(place: Path) -> Iterator[Slot]:
    """Have a slot that no other point has; wait for one where all are taken."""
    shares = read_json(place / _FILE)
    while True:
        for number, (cores, gpus) in enumerate(shares):
            with tried(_lock(place, number)) as is_mine:
                if is_mine:
                    yield Slot(number=number, of=len(shares), cores=tuple(cores), gpus=tuple(gpus))
                    return
        time.sleep(_POLL_S)


def visible_gpus(environment: Mapping[str, str]) -> list[str]:
    """Return the GPUs that this process may use, as CUDA_VISIBLE_DEVICES names them; torch is not asked, which would open them."""
    if _VISIBLE in environment:
        return [name for name in environment[_VISIBLE].split(",") if name.strip()]
    return [str(number) for number, _ in enumerate(Path("/dev").glob("nvidia[0-9]*"))]


def in_own_process(work: Callable[[], None], sweep: Path | None = None) -> str | None:
    """Do some work in a forked process that ends with this one; return how it died, None where it ended by itself.

    An error of the work is printed there, as it would be here. `sweep` is a file that the sweep's process has locked: when that
    was killed, both processes end too, since a launcher's process would go on with the next point for nobody.
    """
    _flush()
    parent = os.getpid()
    child = os.fork()
    if child:
        return _end_of(child, sweep)
    code = 1
    try:
        if sys.platform == "linux":
            ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() == parent:
            work()
            code = 0
    except KeyboardInterrupt:
        pass
    except BaseException:
        traceback.print_exc()
    finally:
        _flush()
        multiprocessing_util._run_finalizers()  # type: ignore[attr-defined] # else its named semaphores are reported as leaked
        os._exit(code)


def _end_of(child: int, sweep: Path | None) -> str | None:
    """Wait until a process ends; return how it died. End it and this one where the sweep's process is gone."""
    while True:
        ended, status = os.waitpid(child, os.WNOHANG)
        if ended:
            code = os.waitstatus_to_exitcode(status)
            return f"its process was killed (signal {-code})" if code < 0 else None
        if sweep is not None:
            with tried(sweep) as is_gone:
                if is_gone:
                    os.kill(child, signal.SIGKILL)
                    os._exit(1)
        time.sleep(_POLL_S)


def _flush() -> None:
    for stream in (sys.stdout, sys.stderr):
        stream.flush()


def _share(things: Sequence[T], number: int, n_slots: int) -> list[T]:
    """Return a slot's even share; where there are fewer things than slots, one that others have too; of nothing, nothing."""
    each = len(things) // n_slots
    return list(things[number * each : (number + 1) * each]) if each else [things[number % len(things)]] if things else []


def _lock(place: Path, number: int) -> Path:
    return place / f"slot-{number}"


def _listed(name: str, things: Sequence[str]) -> str:
    return f"{name}{'s' if len(things) > 1 else ''} {','.join(things)}"
