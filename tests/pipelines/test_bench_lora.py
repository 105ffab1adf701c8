"""The benchmark of LoRA: options, refusals, and both ways run; what it measures is never asserted."""

from __future__ import annotations

import pytest

from pipelines.bench.__main__ import main


@pytest.mark.parametrize(
    ("option", "words"),
    [("stages=1", "stages=1: no '1'; give none, or some of: 0,2"), ("rank=0", "at least 1"), ("speed=9", "unknown")],
)
def test_a_wrong_call_is_one_line(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["lora", option]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


@pytest.mark.slow
def test_both_ways_run_and_are_compared_with_the_plan(capsys: pytest.CaptureFixture[str]) -> None:
    options = ["hidden=64", "layers=2", "intermediate=96", "vocab=100", "rows=1", "tokens=32", "rounds=1"]
    assert main(["lora", *options]) == 0
    assert "plan/rank" in capsys.readouterr().out
