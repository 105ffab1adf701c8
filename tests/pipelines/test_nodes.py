"""Training on two hosts, both of them this machine behind a remote shell that is none: bits, failures, signals."""

from __future__ import annotations

import os
import signal
import stat
import subprocess
import time
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, SMALLEST, command, digests, run
from tests.support.started_runs import ranks_below, saved_steps, started, wait_for_step

STAGES = [*SMALLEST, "stages=[tokenizer,pretrain]", "engine.world_size=2", "engine.threads=1"]
# As behind ssh: another directory, hardly any environment, a process group of its own, words joined by the login shell.
SHELL = '#!/bin/sh\nshift\ncd /\nexec env -i HOME="$HOME" PATH="$PATH" sh -c "$*"\n'
SECONDS = 12.0  # for a connection that ends to take its ranks with it


@pytest.fixture
def hosts(tmp_path: Path) -> list[str]:
    """Return the settings of two hosts of one slot each."""
    hostfile, shell = tmp_path / "hosts", tmp_path / "shell"
    hostfile.write_text("127.0.0.1 slots=1\n127.0.0.2 slots=1\n", encoding="utf-8")
    shell.write_text(SHELL, encoding="utf-8")
    shell.chmod(shell.stat().st_mode | stat.S_IXUSR)
    return [f"engine.hostfile={hostfile}", f"engine.remote_shell={shell}"]


def wait_for_none_below(place: Path) -> None:
    deadline = time.monotonic() + SECONDS
    while ranks_below(place):
        assert time.monotonic() < deadline, "ranks outlived the command that started them"
        time.sleep(0.05)


@pytest.mark.slow
def test_two_hosts_give_the_bits_of_two_ranks_on_one(tmp_path: Path, hosts: list[str]) -> None:
    one, two = tmp_path / "one", tmp_path / "two"
    for place, settings in ((one, []), (two, hosts)):
        done = run("run", *STAGES, *settings, f"run.dir={place}")
        assert done.returncode == 0, done.stderr
    expected = digests(one)
    assert len(expected) >= 3
    assert digests(two) == expected
    assert list(two.glob("store/pretrain/*/manifest.json"))
    assert ranks_below(tmp_path) == []


@pytest.mark.slow
def test_two_hosts_stop_fail_and_are_lost_as_one_does_and_go_on_to_the_same_bits(tmp_path: Path, hosts: list[str]) -> None:
    longer = [*STAGES, "pretrain.steps=240", "pretrain.save_every_steps=20"]
    whole, place = tmp_path / "whole", tmp_path / "two"
    arguments = [*longer, *hosts, f"run.dir={place}"]

    process = started(arguments, "tokenizer:")
    wait_for_step(place, 20)
    process.send_signal(signal.SIGTERM)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 128 + signal.SIGTERM
    stopped_at = saved_steps(place)[-1]
    assert f"stopped after step {stopped_at} of 240" in said
    assert said.splitlines()[-1] == "error: interrupted; the same command goes on from the last saved state"
    wait_for_none_below(place)

    process = started(arguments, f"going on from step {stopped_at} of 240")
    wait_for_step(place, stopped_at + 20)
    os.kill(rank_process(place, 1), signal.SIGKILL)
    wait_for_none_below(place)
    assert process.stderr is not None
    said = process.stderr.read()
    assert process.wait() == 2
    last = said.splitlines()[-1]
    assert last.startswith("error: rank 1 on 127.0.0.2 died (signal 9); see ")
    assert last.endswith("the same command goes on from the last saved state")

    seen = saved_steps(place)[-1]
    process = subprocess.Popen(command("run", *arguments), cwd=ROOT, stderr=subprocess.DEVNULL, text=True)
    wait_for_step(place, seen + 20)
    process.send_signal(signal.SIGKILL)
    process.wait()
    wait_for_none_below(place)

    for where, settings in ((place, arguments), (whole, [*longer, f"run.dir={whole}"])):
        done = run("run", *settings)
        assert done.returncode == 0, f"{where}: {done.stderr}"
    assert digests(place) == digests(whole)


def rank_process(place: Path, rank: int) -> int:
    """Return the process of a rank."""
    for process in ranks_below(place):
        variables = Path(f"/proc/{process}/environ").read_bytes().split(b"\0")
        if f"RANK={rank}".encode() in variables:
            return process
    raise AssertionError(f"rank {rank} does not run")
