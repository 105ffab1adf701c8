"""The benchmark of a paged optimizer: options, refusals, what is left behind; what it measures is never asserted."""

from __future__ import annotations

from pathlib import Path

import pytest

from pipelines.bench.__main__ import main


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("stages=3", "stages=3: no '3'; give none, or some of: 0,1,2"),
        ("dir=/nowhere/at/all", "no such directory"),
        ("speed=9", "unknown"),
    ],
)
def test_a_wrong_call_is_one_line(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["paged_optimizer", option]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_both_stages_run_and_leave_nothing_behind(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    options = ["hidden=64", "layers=2", "experts=2", "vocab=100", "rows=1", "rounds=1", f"dir={tmp_path}"]
    assert main(["paged_optimizer", *options]) == 0
    assert "paged bytes/parameter" in capsys.readouterr().out
    assert not list(tmp_path.iterdir())
