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

import pytest

from tests.support.command_line import ROOT, SMALLEST, command, digests, in_fp32, in_process
from tests.support.fault_trial import FAULTS, FAULTS_OF_TRAINING, LATER, STAGES
from tests.support.small_disk import NOT_PERMITTED

CODES = {"full": [2], "read-only": [2], "vanished": [2], "SIGKILL": [-9], "SIGTERM": [143], "two at once": [0, 0]}
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
@pytest.mark.parametrize("stage", STAGES)
def test_a_stage_under_each_fault_says_one_line_and_the_same_command_makes_the_same_bits(
    stage: str, smallest_run: Path, tmp_path: Path
) -> None:
    check_faults(stage, FAULTS, smallest_run, tmp_path)


@pytest.mark.slow
@pytest.mark.parametrize("stage", ["pretrain", "continue_pretrain"])
def test_training_under_a_fault_after_its_first_state_says_one_line_and_goes_on_to_the_same_bits(
    stage: str, smallest_run: Path, tmp_path: Path
) -> None:
    check_faults(stage, FAULTS_OF_TRAINING, smallest_run, tmp_path)


def check_faults(stage: str, faults: tuple[str, ...], smallest_run: Path, tmp_path: Path) -> None:
    """Try a stage under faults in a mount namespace, and compare what was seen with what an undisturbed run made."""
    if sys.platform != "linux" or shutil.which("unshare") is None:
        pytest.skip("no mount namespaces here")
    disk, report = tmp_path / "disk", tmp_path / "report.json"
    disk.mkdir()
    line = ["unshare", "--map-root-user", "--mount", sys.executable, "-m", "tests.support.fault_trial", str(disk)]
    line += [str(smallest_run.parent), json.dumps(in_fp32(SMALLEST)), str(report), *(f"{stage}:{fault}" for fault in faults)]
    done = subprocess.run(line, cwd=ROOT, capture_output=True, text=True, timeout=580)
    if done.returncode == NOT_PERMITTED or "unshare" in done.stderr:
        pytest.skip(f"mounting is not permitted here {done.stderr.strip()}")
    assert done.returncode == 0, done.stderr
    expected = digests(smallest_run.parent)
    seen = json.loads(report.read_text(encoding="utf-8"))
    assert [case["fault"] for case in seen] == list(faults)
    for case in seen:
        said = "".join(case["said"])
        expected_codes = MADE_AGAIN.get((stage, case["fault"]), CODES[case["fault"].removesuffix(LATER)])
        assert case["codes"] == expected_codes, (case["fault"], said)
        assert "Traceback" not in said, said
        if case["codes"] == [2]:
            assert said.splitlines()[-1].startswith("error: /"), said
        assert case["code again"] == 0, (case["fault"], case["said again"])
        assert case["digests"] == {name: expected[name] for name in case["digests"]}, case["fault"]
        assert case["left"] == []
