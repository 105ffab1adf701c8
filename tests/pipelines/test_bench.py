"""The benchmark command: interleaving, names, options, JSON; what it measures is never asserted."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from pipelines.bench.__main__ import main
from pipelines.bench.contract import BENCHMARKS, Benchmark, all_benchmarks, interleaved_medians


def test_ways_are_run_in_turn_and_the_first_round_is_not_counted() -> None:
    order: list[str] = []
    medians = interleaved_medians({"a": lambda: order.append("a"), "b": lambda: order.append("b")}, rounds=2)
    assert order == ["a", "b"] * 3
    assert set(medians) == {"a", "b"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ([], "name a benchmark"),
        (["scorin"], "did you mean 'scoring'"),
        (["scoring", "fast"], "expected option=value"),
        (["scoring", "speed=9"], "unknown option 'speed'"),
    ],
)
def test_a_wrong_call_is_one_line(arguments: list[str], words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(arguments) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_rows_are_printed_and_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    all_benchmarks()
    planted = Benchmark(name="planted", title="T", baseline="B", run=lambda options: [{"x": 1.5, "y": options["y"]}])
    monkeypatch.setitem(BENCHMARKS._entries, "planted", planted)
    assert main(["planted", "y=two", f"out={tmp_path}/rows.json"]) == 0
    assert "1.5" in capsys.readouterr().out
    assert json.loads((tmp_path / "rows.json").read_text())["rows"] == [{"x": 1.5, "y": "two"}]


@pytest.mark.slow
def test_the_scoring_benchmark_runs(tmp_path: Path) -> None:
    assert main(["scoring", "shapes=2", "rounds=1", f"out={tmp_path}/rows.json"]) == 0
    rows = json.loads((tmp_path / "rows.json").read_text())["rows"]
    assert [(row["text"], row["labels"]) for row in rows] == [(128, 2), (128, 15)]
    assert all(row["largest difference"] < 1e-3 for row in rows)
