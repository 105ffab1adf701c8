"""A run on a file system that fills up while a state is written: one clear line, the state before is whole, and it goes on."""

from __future__ import annotations

import hashlib
import json
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

from tests.support.command_line import ROOT, SMALLEST, command, run
from tests.support.small_disk import NOT_PERMITTED

STEPS = 120
SETTINGS = [*SMALLEST, "stages=[tokenizer,pretrain]", f"pretrain.steps={STEPS}", "pretrain.save_every_steps=10"]
IN_A_NAMESPACE = ["unshare", "--map-root-user", "--mount"]


@pytest.mark.slow
def test_a_disk_that_is_full_ends_a_run_in_one_line_and_the_same_command_goes_on_once_it_is_not(tmp_path: Path) -> None:
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("no mount namespaces here")
    disk, report = tmp_path / "disk", tmp_path / "report.json"
    disk.mkdir()
    line = [sys.executable, "-m", "tests.support.small_disk", str(disk), str(report)]
    line += command("run", *SETTINGS, f"run.dir={disk}/runs")
    done = subprocess.run([*IN_A_NAMESPACE, *line], cwd=ROOT, capture_output=True, text=True, timeout=580)
    if done.returncode == NOT_PERMITTED or "unshare" in done.stderr:
        pytest.skip(f"mounting is not permitted here {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    assert not list(disk.iterdir()), "the small file system is gone with its namespace"
    seen = json.loads(report.read_text(encoding="utf-8"))
    assert seen["code"] == 2, seen["said"]
    last = seen["said"].strip().splitlines()[-1]
    assert last.startswith(f"error: {disk}/runs/store/pretrain/")
    assert "cannot be written" in last
    assert "Traceback" not in seen["said"]
    kept = sorted(seen["states"])
    assert 1 <= len(kept) <= 2
    assert f"the one of step {int(kept[-1].removeprefix('step-'))} is kept and the same command goes on from it" in last
    assert last.endswith("free space on that disk")
    assert seen["unfinished"] == []
    assert seen["code again"] == 0, seen["said again"]
    assert f"going on from step {int(kept[-1].removeprefix('step-'))} of {STEPS}" in seen["said again"], "the state is loadable"
    whole = run("run", *SETTINGS, f"run.dir={tmp_path}/whole")
    assert whole.returncode == 0, whole.stderr
    weights = sorted((tmp_path / "whole").glob("store/pretrain/*/*.safetensors"))
    assert seen["weights"] == [hashlib.sha256(file.read_bytes()).hexdigest() for file in weights]
    assert len(weights) >= 1
