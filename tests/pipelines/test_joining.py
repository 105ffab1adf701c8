"""A command that was started as two processes, by torchrun and as srun does: bits, errors, signals, and what is lost."""

from __future__ import annotations

import contextlib
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipelines.ranks.local import free_port
from tests.support.command_line import ROOT, SMALLEST, command, digests, in_fp32, run
from tests.support.started_runs import ranks_below, saved_steps, wait_for_step

STAGES = [*SMALLEST, "stages=[tokenizer,pretrain]", "engine.threads=1"]
LONG = [*STAGES, "pretrain.steps=4000", "pretrain.save_every_steps=20"]
SECONDS = 10.0  # for a failure to take all down
GOES_ON = "the same command goes on from the last saved state"


class Processes:
    """Two processes of one command, told of each other as srun tells them."""

    def __init__(self, place: Path, arguments: list[str], stage: str = "run", sizes: tuple[int, ...] = (2, 2)) -> None:
        place.mkdir(exist_ok=True)
        self.place = place
        port = free_port()
        self._said = [place / f"said-{rank}.txt" for rank in range(len(sizes))]
        self.processes = []
        for rank, size in enumerate(sizes):
            environment = {
                **os.environ, "SLURM_PROCID": str(rank), "SLURM_NTASKS": str(size), "SLURM_LOCALID": str(rank),
                "SLURM_NODELIST": "localhost", "MASTER_PORT": str(port),
            }  # fmt: skip
            with self._said[rank].open("wb") as said:
                line = command(stage, *arguments, f"run.dir={place}/runs")
                self.processes.append(subprocess.Popen(line, cwd=ROOT, env=environment, stdout=said, stderr=said))

    def codes(self, timeout_s: float) -> list[int]:
        deadline = time.monotonic() + timeout_s
        return [process.wait(max(deadline - time.monotonic(), 0.1)) for process in self.processes]

    def said(self, rank: int) -> str:
        return self._said[rank].read_text(encoding="utf-8")

    def wait_until_told(self, rank: int, number: int) -> int:
        """Wait for a process to have a rank at work; return the rank's process."""
        deadline = time.monotonic() + 60
        while time.monotonic() < deadline:
            for process in ranks_below(self.place):
                with contextlib.suppress(OSError):
                    if f"RANK={rank}".encode() in Path(f"/proc/{process}/environ").read_bytes().split(b"\0"):
                        return process
            time.sleep(0.05)
        raise AssertionError(f"rank {rank} never came")

    def end(self) -> None:
        for process in self.processes:
            process.kill()
            process.wait()


@pytest.fixture
def together(tmp_path: Path) -> Iterator[list[Processes]]:
    """Return a list to which a test appends what it starts, to be ended behind it."""
    started: list[Processes] = []
    yield started
    for processes in started:
        processes.end()
    deadline = time.monotonic() + SECONDS
    while ranks_below(tmp_path):
        assert time.monotonic() < deadline, "ranks outlived the command that started them"
        time.sleep(0.05)


def errors(text: str) -> list[str]:
    return [line for line in text.splitlines() if line.startswith("error: ")]


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["foo=1"], "error: unknown key 'foo'"),
        ([*STAGES, "engine.world_size=4"], "error: engine.world_size: is 4, and srun has started 2 processes; leave it out"),
        ([*STAGES, "engine.world_size=1"], "error: engine.world_size: is 1, and srun has started 2 processes; leave it out"),
        ([*STAGES, "engine.hostfile=hosts"], "error: engine.hostfile: srun has started 2 processes"),
    ],
    ids=["unknown key", "other size", "size of one", "hostfile"],
)
def test_a_refusal_is_said_once_and_all_leave_with_its_code(
    arguments: list[str], words: str, tmp_path: Path, together: list[Processes]
) -> None:
    together.append(both := Processes(tmp_path / "both", arguments))
    assert both.codes(60.0) == [2, 2]
    (line,) = errors(both.said(0))
    assert line.startswith(words)
    assert both.said(1) == ""


def test_without_the_host_of_rank_0_one_line_says_so(tmp_path: Path) -> None:
    codes, said = [], []
    for rank in range(2):
        environment = {**os.environ, "PMI_RANK": str(rank), "PMI_SIZE": "2"}
        done = subprocess.run(command("run", *STAGES), cwd=ROOT, env=environment, capture_output=True, text=True, timeout=60)
        codes.append(done.returncode)
        said.append(done.stderr)
    assert codes == [2, 2]
    assert said[0].startswith("error: MASTER_ADDR: is not set")
    assert said[1] == ""


def test_processes_with_other_command_lines_are_sent_away(tmp_path: Path, together: list[Processes]) -> None:
    together.append(both := Processes(tmp_path / "both", ["foo=1"], sizes=(2, 3)))
    assert both.codes(60.0)[1] == 2
    assert both.processes[0].wait(30.0) == 2


def test_the_help_is_given_once(tmp_path: Path, together: list[Processes]) -> None:
    together.append(both := Processes(tmp_path / "both", ["--help"]))
    assert both.codes(60.0) == [0, 0]
    assert "usage: python -m pipelines" in both.said(0)
    assert both.said(1) == ""


@pytest.mark.slow
def test_torchrun_and_processes_by_srun_give_the_bits_of_ranks_that_were_launched(
    tmp_path: Path, together: list[Processes]
) -> None:
    stages = [
        *SMALLEST, "stages=[tokenizer,pretrain,pseudo_label]", "task=demo_reviews", "pseudo_label.max_rows=280", "pretrain.steps=8",
        "engine.threads=1",
    ]  # fmt: skip
    own = run("run", *stages, "engine.world_size=2", f"run.dir={tmp_path}/own")
    assert own.returncode == 0, own.stderr
    expected = digests(tmp_path / "own")
    assert len(expected) >= 4

    torchrun = [sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2", "-m", "pipelines.run"]
    line = [*torchrun, *in_fp32([*stages, f"run.dir={tmp_path}/torchrun"])]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=500)
    assert done.returncode == 0, done.stderr
    assert digests(tmp_path / "torchrun") == expected
    assert done.stderr.count("tokenizer: ") == 1, "one process walks"

    together.append(both := Processes(tmp_path / "both", stages))
    assert both.codes(500.0) == [0, 0], both.said(0)
    assert digests(tmp_path / "both" / "runs") == expected
    assert both.said(1) == ""


@pytest.mark.slow
def test_a_rank_that_is_killed_takes_all_down_and_is_named(tmp_path: Path, together: list[Processes]) -> None:
    for rank in (0, 1):
        together.append(both := Processes(tmp_path / "both", LONG))
        wait_for_step(tmp_path / "both" / "runs", (saved_steps(tmp_path / "both" / "runs") or [0])[-1] + 20)
        os.kill(both.wait_until_told(rank, 0), signal.SIGKILL)
        assert both.codes(SECONDS) == [2, 2]
        last = both.said(0).splitlines()[-1]
        assert last.startswith(f"error: rank {rank} ")
        assert "died (signal 9)" in last
        assert last.endswith(GOES_ON)
        assert both.said(1) == ""


@pytest.mark.slow
def test_a_process_that_is_killed_takes_all_down(tmp_path: Path, together: list[Processes]) -> None:
    runs = tmp_path / "both" / "runs"
    together.append(both := Processes(tmp_path / "both", LONG))
    wait_for_step(runs, 20)
    both.processes[1].kill()
    assert both.codes(SECONDS) == [2, -9]
    last = both.said(0).splitlines()[-1]
    assert last.startswith("error: rank 1 on ")
    assert "was lost" in last
    assert last.endswith(GOES_ON)

    together.append(both := Processes(tmp_path / "both", LONG))
    wait_for_step(runs, saved_steps(runs)[-1] + 20)
    both.processes[0].kill()
    assert both.codes(2 * SECONDS) == [-9, 1]


@pytest.mark.slow
@pytest.mark.parametrize("told", [(0, 1), (1,)], ids=["both are told", "one is told"])
def test_a_signal_saves_at_the_next_boundary_and_the_same_command_goes_on_there(
    told: tuple[int, ...], tmp_path: Path, together: list[Processes]
) -> None:
    runs = tmp_path / "both" / "runs"
    together.append(both := Processes(tmp_path / "both", LONG))
    wait_for_step(runs, 20)
    for _ in range(2):  # a launcher passes on what the terminal has sent
        for rank in told:
            both.processes[rank].send_signal(signal.SIGTERM)
    assert both.codes(30.0) == [143, 143]
    stopped_at = saved_steps(runs)[-1]
    assert f"stopped after step {stopped_at} of 4000" in both.said(0)
    assert both.said(0).splitlines()[-1] == f"error: interrupted; {GOES_ON}"
    assert both.said(1) == ""
    together.append(both := Processes(tmp_path / "both", LONG))
    deadline = time.monotonic() + 60
    while f"going on from step {stopped_at} of 4000" not in both.said(0):
        assert time.monotonic() < deadline, both.said(0)
        time.sleep(0.1)
