"""Killed by SIGKILL at random moments and started again by the same command, a run ends with the same bits."""

from __future__ import annotations

import random
import signal
import subprocess
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, SMALLEST, command, digests, run, run_inside
from tests.support.started_runs import ranks_below, saved_steps, started, wait_for_step

KILLS = 3


def test_training_killed_behind_its_first_saved_state_ends_with_the_same_bits(
    smallest_run: Path, tmp_path: Path, capfd: pytest.CaptureFixture[str]
) -> None:
    arguments = [*SMALLEST, "stages=[tokenizer,pretrain]", f"run.dir={tmp_path}"]
    process = started(arguments, "tokenizer:")
    wait_for_step(tmp_path, 4)
    process.send_signal(signal.SIGKILL)
    process.wait()
    time.sleep(0.5)
    assert ranks_below(tmp_path) == [], "ranks outlived the command that started them"
    done = run_inside("run", *arguments)
    assert done.returncode == 0, done.stderr
    said = done.stderr + capfd.readouterr().err  # a rank writes to the process's own stream
    assert "going on from step " in said or "pretrain: unchanged, skipped" in said
    expected = {name: digest for name, digest in digests(smallest_run.parent).items() if name.startswith("store/pretrain/")}
    assert len(expected) >= 3
    assert digests(tmp_path) == expected


@pytest.mark.slow
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


@pytest.fixture
def hears_ctrl_c() -> Iterator[None]:
    """Let commands hear Ctrl-C although the tests were started in the background, where shells have it ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)


@pytest.mark.usefixtures("hears_ctrl_c")
@pytest.mark.parametrize("signals", [[signal.SIGINT], pytest.param([signal.SIGTERM, signal.SIGINT], marks=pytest.mark.slow)])
def test_a_signal_saves_at_the_next_boundary_and_the_same_command_goes_on_there(signals: list[int], tmp_path: Path) -> None:
    arguments = [
        *SMALLEST, "stages=[tokenizer,pretrain]", "pretrain.steps=4000", "pretrain.save_every_steps=20", f"run.dir={tmp_path}",
    ]  # fmt: skip
    stopped_at, words = 0, "tokenizer:"
    for number in signals:
        process = started(arguments, words)
        wait_for_step(tmp_path, stopped_at + 20)
        process.send_signal(number)
        assert process.stderr is not None
        said = process.stderr.read()
        assert process.wait() == 128 + number
        assert said.splitlines()[-1] == "error: interrupted; the same command goes on from the last saved state"
        assert "Traceback" not in said
        stopped_at = saved_steps(tmp_path)[-1]
        assert f"stopped after step {stopped_at} of 4000" in said
        words = f"going on from step {stopped_at} of 4000"
    assert ranks_below(tmp_path) == []


@pytest.mark.slow
def test_training_on_two_ranks_killed_at_ten_moments_ends_with_the_same_bits(tmp_path: Path) -> None:
    moments = random.Random(11)
    settings = [
        *SMALLEST, "stages=[tokenizer,pretrain]", "pretrain.steps=60", "pretrain.save_every_steps=3", "engine.world_size=2",
    ]  # fmt: skip
    whole, place = tmp_path / "whole", tmp_path / "killed"
    assert run("run", *settings, f"run.dir={whole}").returncode == 0
    for kill in range(10):
        seen = saved_steps(place)
        process = subprocess.Popen(command("run", *settings, f"run.dir={place}"), cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline and process.poll() is None and saved_steps(place)[-1:] == seen[-1:]:
            time.sleep(0.02)
        if kill % 2:  # while a state is written
            while process.poll() is None and not list(place.glob("store/pretrain/.*.work/.step-*")):
                time.sleep(0.0005)
        else:
            time.sleep(moments.uniform(0.0, 0.6))
        process.send_signal(signal.SIGKILL)
        process.wait()
    time.sleep(0.5)
    assert ranks_below(place) == []
    assert run("run", *settings, f"run.dir={place}").returncode == 0
    expected = digests(whole)
    assert len(expected) >= 3
    assert digests(place) == expected
