"""Killed by SIGKILL at random moments and started again by the same command, a run ends with the same bits."""

from __future__ import annotations

import os
import random
import signal
import subprocess
import time
from pathlib import Path

from command_line import ROOT, SMALLEST, command, digests, run

KILLS = 3


def ranks_below(place: Path) -> list[int]:
    """Return the processes that work on a job below a directory."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit():
            try:
                line = (entry / "cmdline").read_bytes().decode(errors="replace")
            except OSError:
                continue
            if "pipelines.worker" in line and str(place) in line:
                found.append(int(entry.name))
    return found


def test_a_run_killed_three_times_ends_with_the_same_bits(smallest_run: Path, tmp_path: Path) -> None:
    moments = random.Random(7)
    line = command("run", *SMALLEST, f"run.dir={tmp_path}")
    for _ in range(KILLS):
        process = subprocess.Popen(line, cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
        time.sleep(moments.uniform(4.0, 14.0))
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.5)
    assert ranks_below(tmp_path) == [], "ranks outlived the command that started them"
    done = run("run", *SMALLEST, f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    expected, found = digests(smallest_run.parent), digests(tmp_path)
    assert len(expected) >= 30
    assert found == expected


def test_training_goes_on_from_its_last_state(tmp_path: Path) -> None:
    arguments = [
        *SMALLEST, "stages=[tokenizer,pretrain]", "pretrain.steps=400", "pretrain.save_every_steps=5", f"run.dir={tmp_path}",
    ]  # fmt: skip
    process = subprocess.Popen(command("run", *arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
    deadline = time.monotonic() + 90
    while not list(tmp_path.glob("store/pretrain/.*.work/step-*")) and time.monotonic() < deadline:
        time.sleep(0.1)
    os.kill(process.pid, signal.SIGKILL)
    process.wait()
    states = list(tmp_path.glob("store/pretrain/.*.work/step-*"))
    assert states, "no state was saved"
    # The same stage again, as short as what is already done: only what is left is computed.
    again = subprocess.Popen(command("run", *arguments), cwd=ROOT, stderr=subprocess.PIPE, text=True)
    assert again.stderr is not None
    try:
        for text in again.stderr:
            if "going on from step" in text:
                break
        else:
            raise AssertionError("the second start did not go on from the saved state")
    finally:
        again.kill()
        again.wait()
