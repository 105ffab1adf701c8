"""When a walk ends, a tracked run has every step of training once, settings, label statistics, accuracies and the verdict."""

from __future__ import annotations

import signal
import subprocess
import time
from pathlib import Path

import pytest

from adapt.core.json_files import read_lines
from tests.support.command_line import ROOT, command, on_base, run
from tests.support.wandb_files import read_offline


@pytest.mark.slow
def test_a_run_killed_twice_while_it_trains_is_one_tracked_run(smallest_run: Path, tmp_path: Path) -> None:
    arguments = [
        *on_base(smallest_run, tmp_path, "demo_reviews"), "tracker=wandb", "continue_pretrain.epochs=60",
        "stages=[pseudo_label,continue_pretrain,evaluate,export,report]",
    ]  # fmt: skip
    for least in (4, 12):
        process = subprocess.Popen(command("run", *arguments), cwd=ROOT, stderr=subprocess.DEVNULL)
        deadline = time.monotonic() + 240
        while max((int(s.name[5:]) for s in tmp_path.glob("store/continue_pretrain/.*.work/step-*")), default=0) < least:
            assert process.poll() is None and time.monotonic() < deadline, f"step {least} was never saved"
            time.sleep(0.02)
        process.send_signal(signal.SIGKILL)
        process.wait()
    done = run("run", *arguments)
    assert done.returncode == 0, done.stderr
    [directory] = (tmp_path / "demo" / "wandb").glob("offline-run-*")
    assert done.stdout.splitlines()[-1] == f"wandb sync {directory}"
    found, history = read_offline(directory), read_lines(tmp_path / "demo/continue_pretrain/demo_reviews/history.jsonl")
    assert found.steps == [line["step"] for line in history]
    assert found.config["continue_pretrain"]["epochs"] == 60
    assert set(found.config["digests"]) == {"task", "base", "pseudo_label", "continue_pretrain", "evaluate", "export"}
    assert found.summary["labels/selected"] > 0
    for who in ("lexical/lexical", "base/combined", "adapted/combined"):
        assert 0 <= found.summary[f"accuracy/dev/{who}/low"] <= found.summary[f"accuracy/dev/{who}"] <= 1
    assert found.summary["adaptation/attempts"] == 3
    assert "points [" in found.summary["verdict"]
    assert {"confusion.nrows", "reliability.nrows", "accuracy.nrows"} <= set(found.summary)
