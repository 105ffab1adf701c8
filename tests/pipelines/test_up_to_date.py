"""Results of a run stand beside what they were made of, never beside what a later command made with other settings."""

from __future__ import annotations

import json
import os
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.core.artifacts import Artifact, artifact_at
from pipelines.stages.products import REPORT_FILE
from pipelines.stages.report import STAGE
from pipelines.stages.run import Run
from pipelines.stages.up_to_date import CHAIN, belonging, older_export, out_of_date
from pipelines.walk.ends import ends
from tests.support.command_line import SMALLEST, composed
from tests.support.finished_runs import produced

RunHere = Callable[[str, list[str]], str]
ACCURACIES = "Accuracy with 95 % interval"


def run_at(root: Path, *stages: str) -> Run:
    return Run(composed("run", [f"run.dir={root}", "run.name=x", "tasks=[reviews]", f"stages=[{','.join(stages)}]"]))


def page_of(runs: Path) -> str:
    return (runs / "demo" / "report" / REPORT_FILE).read_text(encoding="utf-8")


def put(root: Path, stage: str, digest_of: str, **inputs: Artifact) -> Artifact:
    metrics = {"is_adapted": True} if stage == "continue_pretrain" else {}
    return produced(root, f"x/{stage}/reviews", stage, {"of": digest_of}, metrics, {"result": digest_of}, **inputs)


@pytest.fixture
def whole(tmp_path: Path) -> dict[str, Artifact]:
    """Return the results of a finished walk by stage, written by hand below `tmp_path`."""
    base = produced(tmp_path, "x/pretrain", "pretrain", {}, {}, {"weights": "base"})
    labels = put(tmp_path, "pseudo_label", "1", base=base)
    adapted = put(tmp_path, "continue_pretrain", "1", base=base, pseudo_label=labels)
    evaluated = put(tmp_path, "evaluate", "1", base=base, continue_pretrain=adapted)
    exported = put(tmp_path, "export", "1", base=base, model=adapted, evaluate=evaluated)
    made = {"pseudo_label": labels, "continue_pretrain": adapted, "evaluate": evaluated, "export": exported}
    assert out_of_date(made, "reviews") is None
    return {"base": base, **made}


@pytest.mark.parametrize(
    ("again", "kept", "why", "commands"),
    [
        ("pseudo_label", CHAIN[:1], "continue_pretrain is of other labels than pseudo_label", ["continue_pretrain", "evaluate"]),
        ("continue_pretrain", CHAIN[:2], "evaluate is of another adapted model than continue_pretrain", ["evaluate"]),
        ("evaluate", CHAIN[:3], "export is older than evaluate", ["export"]),
    ],
)
def test_what_later_stages_made_of_an_earlier_result_is_left_out_and_said(
    again: str, kept: tuple[str, ...], why: str, commands: list[str], whole: dict[str, Artifact], tmp_path: Path
) -> None:
    put(tmp_path, again, "2", **{"base": whole["base"]} | {
        "continue_pretrain": {"pseudo_label": whole["pseudo_label"]}, "evaluate": {"continue_pretrain": whole["continue_pretrain"]},
    }.get(again, {}))  # fmt: skip
    run = run_at(tmp_path, "report")
    found, said = belonging(run, "reviews")
    assert tuple(found) == kept
    assert STAGE.reads(run, None).left_out == [said]
    assert list(STAGE.reads(run, None).artifacts) == ["pretrain", *(f"{stage}/reviews" for stage in kept)]
    assert said.startswith(f"reviews: {why}; left out here: {', '.join(CHAIN[len(kept) :])}; run `")
    assert said.count("python -m") == len(commands)
    assert all(f"python -m pipelines.{stage} run.name=x task=reviews`" in said for stage in commands)


def test_an_evaluation_from_another_base_names_the_whole_way(whole: dict[str, Artifact], tmp_path: Path) -> None:
    other = produced(tmp_path, "x/pretrain", "pretrain", {"of": 2}, {}, {"weights": "other"})
    put(tmp_path, "evaluate", "2", base=other)
    found, said = belonging(run_at(tmp_path, "report"), "reviews")
    assert tuple(found) == CHAIN[:2]
    _, pretrain_left_out = STAGE.reads(run_at(tmp_path, "report"), None).left_out
    assert pretrain_left_out.startswith("pretrain is not the base that reviews started from, and left out here; run `")
    assert [said.count(f"pipelines.{stage} ") for stage in CHAIN] == [1, 1, 1, 0]
    without = {stage: artifact for stage, artifact in whole.items() if stage != "continue_pretrain"}
    assert out_of_date(without | {"evaluate": put(tmp_path, "evaluate", "3", base=other)}, "reviews") is not None


def test_an_export_is_said_to_be_older_after_a_training_and_after_its_evaluation(
    whole: dict[str, Artifact], tmp_path: Path
) -> None:
    run = run_at(tmp_path, "predict")
    assert older_export(run, "reviews") == ""
    place = tmp_path / "x" / "export" / "reviews"
    adapted = put(tmp_path, "continue_pretrain", "2", base=whole["base"], pseudo_label=whole["pseudo_label"])
    advice = "run `python -m pipelines.evaluate` and `python -m pipelines.export` for a new one"
    assert older_export(run, "reviews") == f"export: {place} is older than this training; {advice}"
    put(tmp_path, "evaluate", "2", base=whole["base"], continue_pretrain=adapted)
    advice = "run `python -m pipelines.export` for a new one"
    assert older_export(run, "reviews") == f"export: {place} is older than this evaluation; {advice}"


def test_a_verdict_of_another_training_is_not_printed(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    adapted = put(tmp_path, "continue_pretrain", "1")
    who = {"split": "dev", "method": "raw", "gold": ["a", "b"] * 60}
    answers = [{**who, "model": "base", "answers": ["a"] * 120}, {**who, "model": "adapted", "answers": ["a", "b"] * 60}]
    files = {"answers.json": json.dumps(answers)}
    produced(
        tmp_path, "x/evaluate/reviews", "evaluate", {"evaluate": {"method": "raw"}}, {}, files, continue_pretrain=adapted
    )  # fmt: skip
    assert "gained" in "\n".join(ends(run_at(tmp_path, "report")))
    put(tmp_path, "continue_pretrain", "2")
    with caplog.at_level("INFO", logger="pipelines"):
        assert "gained" not in "\n".join(ends(run_at(tmp_path, "report")))
    assert "left out here" in caplog.text


@pytest.mark.slow
def test_a_page_after_another_training_shows_no_accuracies_of_the_model_before(copied_run: Path, run_here: RunHere) -> None:
    arguments = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}"]
    runs = copied_run / "demo"
    assert "left out here" not in run_here("report", arguments)
    assert ACCURACIES in page_of(copied_run)
    other = artifact_at(runs / "continue_pretrain" / "demo_topics")
    assert other is not None
    link = runs / "continue_pretrain" / "demo_reviews"
    link.unlink()
    link.symlink_to(os.path.relpath(other.path, link.parent))  # another training, without the minutes of one
    text = run_here("report", arguments)
    [line] = [line for line in text.splitlines() if "left out here" in line]
    assert "python -m pipelines.continue_pretrain run.name=demo task=demo_reviews" in line
    page = page_of(copied_run)
    assert ACCURACIES not in page
    assert "left out here" in page
    assert "export/demo_reviews is older than this training; run `" in run_here("predict", arguments)
