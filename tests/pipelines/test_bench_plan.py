"""`bench plan`: its settings, its table on invented measurements, and one real training against its plan."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.train.train_config import Trained
from pipelines.bench import plan
from pipelines.bench.__main__ import main
from pipelines.bench.plan_measure import Case, RankMemory


def measured(
    n_ranks: int, threads: int, function: Callable[..., RankMemory], case: Case, steps: int, place: str
) -> list[RankMemory]:
    assert (Path(place) / "result").is_dir() and (Path(place) / "work").is_dir()
    peaks = [2_000_000_000 + rank for rank in range(n_ranks)]
    return [RankMemory(base=10**8, stood={"measuring": 10**9}, peaks={"weights": 10**8, "steps": peak}) for peak in peaks]


def test_every_setting_is_planned_and_compared_with_the_largest_rank(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr(plan, "on_ranks", measured)
    out = tmp_path / "found.json"
    names = "dense,dense-zero1-2ranks,sparse-shared,llama-lora"
    assert main(["plan", f"cases={names}", f"dir={tmp_path}", f"out={out}"]) == 0
    rows = json.loads(out.read_text(encoding="utf-8"))["rows"]
    assert [row["setting"] for row in rows] == names.split(",")
    assert [row["measured GB"] for row in rows] == [pytest.approx(2 + (row["ranks"] - 1) / 1e9) for row in rows]
    assert all(row["ratio"] == pytest.approx(row["planned GB"] / row["measured GB"]) and row["in"] == "steps" for row in rows)
    assert "planned moments" in capsys.readouterr().out
    assert {path.name for path in tmp_path.iterdir()} == {"found.json"}, "nothing of a training is left"


def test_the_settings_reach_every_part_of_a_plan() -> None:
    cases = plan.own_cases()
    assert {case.engine.zero_stage for case in cases} == {0, 1, 2}
    assert {case.engine.world_size for case in cases} == {1, 2}
    assert {case.engine.precision.value for case in cases} == {"fp32", "bf16"}
    assert {case.engine.activation_checkpointing.value for case in cases} == {"none", "selective", "full"}
    assert {case.offload.optimizer.value for case in cases} == {"none", "paged"}
    assert any(case.engine.expert_parallel == 2 for case in cases)
    assert all(case.trains is Trained.ALL for case in cases)


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("cases=dense,none", "cases: no 'none'; there are: dense, "),
        ("base=/nowhere", "base=/nowhere: no such directory"),
        ("size=1", "unknown option 'size'"),
        ("steps=0", "steps=0: give a whole number of at least 1"),
    ],
)
def test_a_wrong_option_is_one_line(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["plan", option]) == 2
    (line,) = capsys.readouterr().err.splitlines()
    assert line.startswith("error: bench plan: ") and words in line
