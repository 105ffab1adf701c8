"""Slots: points side by side have cores and GPUs of their own, and one that is killed gives its slot back."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapt.core.store_locks import locked
from pipelines.command_line.slots import Slot, free_slot, has_slots, in_own_process, share_out, visible_gpus
from tests.support.command_line import ROOT

WORK = """
import os, time
from pathlib import Path
from pipelines.command_line.slots import in_own_process
def work():
    Path("{pid}").write_text(str(os.getpid()))
    time.sleep(600)
in_own_process(work, {sweep})
"""
HAVE_A_SLOT = """
import sys
from pathlib import Path
from pipelines.command_line.slots import free_slot
with free_slot(Path(sys.argv[1])) as slot:
    print(slot.number, flush=True)
    input()
"""


def slots_of(place: Path, n_slots: int) -> list[Slot]:
    """Return all slots, each taken while the others are."""
    share_out(place, n_slots)
    found, taken = [], []
    for _ in range(n_slots):
        taken.append(free_slot(place))
        found.append(taken[-1].__enter__())
    for one in taken:
        one.__exit__(None, None, None)
    return found


def test_cores_and_gpus_are_shared_out_evenly_and_to_one_slot_each(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {3, 1, 2, 7, 9})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "4,5,GPU-abc,7")
    assert not has_slots(tmp_path)
    one, two = slots_of(tmp_path, 2)
    assert has_slots(tmp_path) and not has_slots(None)
    assert (one.number, one.of, one.cores, one.gpus) == (0, 2, (1, 2), ("4", "5"))
    assert (two.number, two.of, two.cores, two.gpus) == (1, 2, (3, 7), ("GPU-abc", "7"))
    assert [one.threads(ranks) for ranks in (1, 2, 4)] == [2, 1, 1]
    assert one.words == " (slot 1 of 2: cores 1,2, GPUs 4,5)"


def test_slots_without_enough_cores_share_them(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(os, "sched_getaffinity", lambda _: {0, 1})
    monkeypatch.setenv("CUDA_VISIBLE_DEVICES", "")
    assert [slot.cores for slot in slots_of(tmp_path, 3)] == [(0,), (1,), (0,)]
    assert [slot.gpus for slot in slots_of(tmp_path, 3)] == [()] * 3


def test_gpus_are_those_that_the_environment_names() -> None:
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": "2,3"}) == ["2", "3"]
    assert visible_gpus({"CUDA_VISIBLE_DEVICES": ""}) == []


def test_a_slot_is_free_again_when_its_process_is_killed(tmp_path: Path) -> None:
    share_out(tmp_path, 2)
    have = [sys.executable, "-c", HAVE_A_SLOT, str(tmp_path)]
    with subprocess.Popen(have, cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as other:
        assert other.stdout is not None
        assert other.stdout.readline() == "0\n"
        with free_slot(tmp_path) as slot:
            assert slot.number == 1
        other.kill()
    with free_slot(tmp_path) as slot:
        assert slot.number == 0


def test_a_slot_keeps_a_process_to_its_cores_and_gpus(tmp_path: Path) -> None:
    core = min(os.sched_getaffinity(0))
    said = tmp_path / "said"

    def work() -> None:
        Slot(number=0, of=2, cores=(core,), gpus=("5",)).take()
        code = "import os; print(os.sched_getaffinity(0), os.environ['OMP_NUM_THREADS'], os.environ['CUDA_VISIBLE_DEVICES'])"
        said.write_text(subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout)

    before = os.sched_getaffinity(0)
    assert in_own_process(work) is None
    assert said.read_text() == f"{{{core}}} 1 5\n", "what it starts has no more"
    assert os.sched_getaffinity(0) == before, "and the one it was forked from has all it had"


def test_work_that_is_killed_is_said_and_work_that_fails_is_printed(capfd: pytest.CaptureFixture[str]) -> None:
    assert in_own_process(lambda: os.kill(os.getpid(), signal.SIGKILL)) == "its process was killed (signal 9)"

    def fail() -> None:
        raise ValueError("a fault of the program")

    assert in_own_process(fail) is None
    assert "ValueError: a fault of the program" in capfd.readouterr().err


def is_running(process: Path) -> bool:
    return process.exists() and "\nState:\tZ" not in (process / "status").read_text()


def test_a_point_and_its_launchers_process_end_when_the_sweeps_was_killed(tmp_path: Path) -> None:
    lock = tmp_path / "lock"
    lock.touch()
    code = WORK.format(pid=tmp_path / "pid", sweep=f"Path({str(lock)!r})")
    held = contextlib.ExitStack()
    held.enter_context(locked(lock))
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as launcher:
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        point = Path("/proc") / (tmp_path / "pid").read_text()
        with pytest.raises(subprocess.TimeoutExpired):
            launcher.wait(0.5)
        assert is_running(point), "as long as the sweep's process has its lock"
        held.close()
        assert launcher.wait(20) == 1
        assert not is_running(point)


def test_a_points_process_ends_with_the_one_that_forked_it(tmp_path: Path) -> None:
    code = WORK.format(pid=tmp_path / "pid", sweep=None)
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT) as starter:
        while not (tmp_path / "pid").is_file() or not (tmp_path / "pid").read_text():
            time.sleep(0.05)
        child = Path("/proc") / (tmp_path / "pid").read_text()
        assert child.exists()
        starter.kill()
        starter.wait()
        for _ in range(200):
            if not is_running(child):
                return
            time.sleep(0.05)
    raise AssertionError("it runs on")
