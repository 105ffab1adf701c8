"""Every stage under every fault of the machine: one line and exit code 2, and the same bits from the same command afterwards.

The fast suite has one real fault (a limit on file sizes) in a stage that runs in this process; the whole table is slow.
"""

from __future__ import annotations

import hashlib
import json
import resource
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT, SMALLEST, command, digests, digests_of_artifacts, in_fp32, in_process
from tests.support.fault_trial import COMMANDS, FAULTS, FAULTS_OF_TRAINING, LATER, STAGES, TRACKER, UNDISTURBED
from tests.support.foreign_checkpoints import Foreign, make_weights, write_pai
from tests.support.small_disk import NOT_PERMITTED
from tests.support.wandb_files import read_offline

CODES = {"full": [2], "read-only": [2], "vanished": [2], "SIGKILL": [-9], "SIGTERM": [143], "two at once": [0, 0]}
FOREIGN = Foreign(experts=(3, 4), is_residual=True, has_network=True)
MADE_AGAIN = {("general_text", "vanished"): [0]}  # the data set's writer makes its directory again


def test_an_export_under_a_limit_on_files_is_one_line_and_the_same_command_makes_the_same_bits(
    smallest_run: Path, copied_run: Path, run_here: Callable[[str, list[str]], str],
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    shutil.rmtree(copied_run / "store" / "export")
    line = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}"]
    limits = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, limits[1]))
    try:
        code, said = in_process("export", line, monkeypatch, capsys)
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limits)
    assert code == 2, said
    last = said.splitlines()[-1]
    assert last.startswith(f"error: {copied_run}/store/export/")
    assert "`ulimit -f` allows files of 200 kB" in last
    assert "Traceback" not in said
    run_here("export", line)
    made, whole = (place / "export" / "demo_reviews" / "model-00001.safetensors" for place in (copied_run / "demo", smallest_run))
    assert hashlib.sha256(made.read_bytes()).digest() == hashlib.sha256(whole.read_bytes()).digest()


def test_a_refusal_that_its_own_log_has_no_room_for_still_ends_with_its_code() -> None:
    full = Path("/dev/full")
    if not full.exists():
        pytest.skip("no /dev/full here")
    with full.open("w") as log:
        done = subprocess.run(command("run", "no_such_key=1"), cwd=ROOT, stderr=log, timeout=60)
    assert done.returncode == 2


@pytest.mark.slow
@pytest.mark.parametrize("stage", [stage for stage in STAGES if stage != TRACKER])
def test_a_stage_under_each_fault_says_one_line_and_the_same_command_makes_the_same_bits(
    stage: str, smallest_run: Path, tmp_path: Path
) -> None:
    check_faults(stage, FAULTS, made_by(smallest_run), smallest_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", COMMANDS)
def test_a_stage_of_no_walk_under_each_fault_too(stage: str, smallest_run: Path, tmp_path: Path) -> None:
    write_pai(tmp_path / "theirs", FOREIGN, make_weights(FOREIGN))
    [undisturbed] = seen_of(stage, (UNDISTURBED,), smallest_run, tmp_path)
    assert undisturbed["codes"] == [0], undisturbed["said"]
    assert any(name.startswith(f"store/{stage}/") for name in undisturbed["digests"])
    check_faults(stage, FAULTS, undisturbed["digests"], smallest_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "continue_pretrain"])
def test_training_under_a_fault_after_its_first_state_says_one_line_and_goes_on_to_the_same_bits(
    stage: str, smallest_run: Path, tmp_path: Path
) -> None:
    check_faults(stage, FAULTS_OF_TRAINING, made_by(smallest_run), smallest_run, tmp_path)


@pytest.mark.slow
def test_a_tracker_whose_place_fails_is_one_warning_and_the_same_command_tracks_all(smallest_run: Path, tmp_path: Path) -> None:
    expected = made_by(smallest_run)
    for case in seen_of(TRACKER, FAULTS_OF_TRAINING, smallest_run, tmp_path):
        [code], [said] = case["codes"], case["said"]
        assert (code, case["code again"]) == (0, 0), (case["fault"], said, case["said again"])
        assert "Traceback" not in said + case["said again"]
        gave_up = [line for line in said.splitlines() if line.startswith("tracker=wandb: gave up (")]
        assert 1 <= len(gave_up) <= 2, (case["fault"], said)  # while it trained, and again when the walk ended
        assert all(f"{tmp_path}/disk/run/demo/wandb" in line for line in gave_up), gave_up
        assert "tracker=wandb" not in case["said again"], case["said again"]
        assert case["digests"] == {name: expected[name] for name in case["digests"]}, case["fault"]
        [tracked] = (tmp_path / f"tracked {case['fault']}").glob("offline-run-*")
        run = read_offline(tracked)
        assert run.steps == case["steps"] and "verdict" in run.summary


def made_by(finished: Path) -> dict[str, str]:
    return digests(finished.parent) | digests_of_artifacts(finished.parent)


def seen_of(stage: str, faults: tuple[str, ...], smallest_run: Path, tmp_path: Path) -> list[dict[str, Any]]:
    """Try a stage under faults in a mount namespace of its own; return what was seen of each."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("no mount namespaces here")
    disk, report = tmp_path / "disk", tmp_path / "report.json"
    disk.mkdir(exist_ok=True)
    line = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "tests.support.fault_trial", str(disk)]
    line += [str(smallest_run.parent), json.dumps(in_fp32(SMALLEST)), str(report), *(f"{stage}:{fault}" for fault in faults)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=3600)
    if done.returncode == NOT_PERMITTED or "unshare" in done.stderr:
        pytest.skip(f"mounting is not permitted here {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    seen: list[dict[str, Any]] = json.loads(report.read_text(encoding="utf-8"))
    assert [case["fault"] for case in seen] == list(faults)
    return seen


def check_faults(stage: str, faults: tuple[str, ...], expected: dict[str, str], smallest_run: Path, tmp_path: Path) -> None:
    """Try a stage under faults, and compare what was seen with what an undisturbed run made."""
    for case in seen_of(stage, faults, smallest_run, tmp_path):
        said = "".join(case["said"])
        expected_codes = MADE_AGAIN.get((stage, case["fault"]), CODES[case["fault"].removesuffix(LATER)])
        assert case["codes"] == expected_codes, (case["fault"], said)
        assert "Traceback" not in said, said
        if case["codes"] == [2]:
            assert said.splitlines()[-1].startswith("error: /"), said
            assert case["fault"].startswith("vanished") == ("vanished while the command worked" in said.splitlines()[-1]), said
        assert case["code again"] == 0, (case["fault"], case["said again"])
        assert case["digests"] == {name: expected[name] for name in case["digests"]}, case["fault"]
        assert case["left"] == []
