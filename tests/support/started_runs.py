"""Runs that a test starts and interrupts: their ranks, the states they saved, and waiting for a step."""

from __future__ import annotations

import subprocess
import time
from pathlib import Path

from tests.support.command_line import ROOT, command


def ranks_below(place: Path) -> list[int]:
    """Return the processes that work on a job below a directory.

    What a rank starts has the rank's command line until it has its own, and is not counted.
    """
    parents = {}
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
                stat = (entry / "stat").read_text(encoding="utf-8", errors="replace")
            except OSError:
                continue
            if "pipelines.worker" in line and str(place) in line:
                parents[int(entry.name)] = int(stat.rpartition(")")[2].split()[1])
    return [process for process, parent in parents.items() if parent not in parents]


def started(arguments: list[str], words: str) -> subprocess.Popen[str]:
    """Start a run and wait until it says `words`."""
    process = subprocess.Popen(command("run", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert process.stderr is not None
    for text in process.stderr:
        if words in text:
            return process
    raise AssertionError(f"the run never said {words!r}")


def saved_steps(place: Path) -> list[int]:
    return sorted(int(state.name.removeprefix("step-")) for state in place.glob("store/pretrain/.*.work/step-*"))


def wait_for_step(place: Path, least: int) -> None:
    deadline = time.monotonic() + 120
    while not any(step >= least for step in saved_steps(place)):
        assert time.monotonic() < deadline, f"no state of step {least} or later was saved"
        time.sleep(0.05)
