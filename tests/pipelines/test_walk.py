"""The whole walk on the demo data: results, skipping, exports that answer as evaluation did."""

from __future__ import annotations

import json
import re
import shutil
from pathlib import Path

import pytest

import pseudo_label
from adapt.core.artifacts import open_artifact
from pipelines.config.locations import demo_dir
from tests.support.command_line import FP32_SCORES, SMALL_DEMO, SMALLEST, digests, in_process, run_inside

TASKS = ("demo_reviews", "demo_topics")


def dev_rows(task: str) -> list[dict[str, object]]:
    text = (demo_dir() / "clue" / task / "dev.json").read_text(encoding="utf-8")
    return [json.loads(line) for line in text.splitlines()]


def test_every_stage_leaves_a_complete_artifact(smallest_run: Path) -> None:
    for stage in ("tokenizer", "pretrain", "report"):
        assert open_artifact((smallest_run / stage).resolve()).stage == stage
    for stage in ("pseudo_label", "continue_pretrain", "evaluate", "export", "predict"):
        for task in TASKS:
            assert open_artifact((smallest_run / stage / task).resolve()).stage == stage
    for task in TASKS:
        names = (
            "unlabeled-pretrain",
            "dev-pretrain",
            "unlabeled-continue_pretrain",
            "dev-continue_pretrain",
            "test-continue_pretrain",
        )
        for name in names:
            assert open_artifact((smallest_run / "score" / task / name).resolve()).stage == "score"


def test_a_run_ends_with_the_accuracy_table_and_the_places(smallest_run: Path) -> None:
    output = (smallest_run.parent / "output.txt").read_text(encoding="utf-8")
    for word in ("not adapted, %", " adapted, %", *TASKS, "report:", "export:"):
        assert word in output


def test_held_out_loss_falls_for_each_task(smallest_run: Path) -> None:
    for task in TASKS:
        ledger = json.loads((smallest_run / "continue_pretrain" / task / "held_out.json").read_text())[task]
        for part in ("context", "prompt", "pseudo_label"):
            assert ledger["after"][part]["value"] < ledger["before"][part]["value"]


def test_the_same_command_again_skips_every_stage(copied_run: Path) -> None:
    before = digests(copied_run)
    done = run_inside("run", *SMALLEST, f"run.dir={copied_run}")
    assert done.returncode == 0
    lines = [line for line in done.stderr.splitlines() if "-> /" in line]
    assert len(lines) == 13
    assert [line for line in lines if "unchanged, skipped" not in line] == []
    assert digests(copied_run) == before


def test_a_submission_has_a_line_for_every_row_of_the_test_split(smallest_run: Path) -> None:
    for task in TASKS:
        wanted = (demo_dir() / "clue" / task / "test.json").read_text(encoding="utf-8").splitlines()
        lines = (smallest_run / "evaluate" / task / f"{task}_predict.json").read_text(encoding="utf-8").splitlines()
        assert [json.loads(line)["id"] for line in lines] == [json.loads(line)["id"] for line in wanted]
        assert all(isinstance(json.loads(line)["label"], str) for line in lines)


@pytest.mark.parametrize("task", TASKS)
def test_an_export_answers_as_evaluation_did(smallest_run: Path, task: str) -> None:
    predictor = pseudo_label.load(smallest_run / "export" / task, FP32_SCORES)
    answers = [prediction.label for prediction in predictor.predict(dev_rows(task))]
    written = (smallest_run / "evaluate" / task / f"dev_{task}_predict.json").read_text(encoding="utf-8").splitlines()
    assert answers == [json.loads(line)["label"] for line in written]


def test_an_answer_does_not_depend_on_the_rows_beside_it(smallest_run: Path) -> None:
    predictor = pseudo_label.load(smallest_run / "export" / "demo_topics", FP32_SCORES)
    rows = dev_rows("demo_topics")[:9]
    together = [p.probabilities["food"] for p in predictor.predict(rows)]
    alone = [predictor.predict([row])[0].probabilities["food"] for row in rows]
    assert together == pytest.approx(alone, abs=1e-5)


def test_predict_labels_a_csv_of_the_users_own(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    table, output = tmp_path / "mine.csv", tmp_path / "out" / "labels.jsonl"
    table.write_text('\ufeffid,sentence\n7,味道很好下次还来\n8,"太差了,再也不买"\n', encoding="utf-8")
    arguments = [f"checkpoint={smallest_run}/export/demo_reviews", f"input={table}", f"output={output}", f"run.dir={tmp_path}/runs"]
    code, text = in_process("predict", arguments, monkeypatch, capsys)
    assert code == 0, text
    answers = [json.loads(line) for line in output.read_text(encoding="utf-8").splitlines()]
    assert [answer["id"] for answer in answers] == ["7", "8"]
    assert {answer["prediction"] for answer in answers} <= {"Positive", "Negative"}
    output.unlink()
    code, text = in_process("predict", arguments, monkeypatch, capsys)
    assert "unchanged, skipped" in text
    assert output.is_file(), "the output is delivered also when nothing had to be computed"


def test_the_report_opens_without_a_network(smallest_run: Path) -> None:
    page = (smallest_run / "report" / "report.html").read_text(encoding="utf-8")
    assert "default-src 'none'" in page, "the page may ask for nothing"
    outside_scripts = re.sub(r"<script.*?</script>", "", page, flags=re.DOTALL)
    assert not re.search(r"""(src|href)\s*=\s*["']?(https?:)?//""", outside_scripts)
    for word in ("Accuracy", "Loss by part", "Expert load", "Confidence", "Surest mistakes", "best without adapting"):
        assert word in page


def test_labels_carry_their_provenance(smallest_run: Path) -> None:
    import pyarrow.parquet

    base = open_artifact((smallest_run / "pretrain").resolve())
    for task in TASKS:
        record = pyarrow.parquet.read_table(smallest_run / "pseudo_label" / task / "labels.parquet").to_pylist()[0]
        assert record["task"] == task
        assert record["checkpoint"] == base.digest
        assert record["prompt"] and record["criterion"] and record["scores"]


def test_a_task_without_unlabeled_rows_keeps_the_base(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(SMALL_DEMO, tmp_path / "clue")
    (tmp_path / "clue" / "demo_reviews" / "unlabeled.json").write_text("", encoding="utf-8")
    arguments = [
        *SMALLEST, "task=demo_reviews", f"data.root={tmp_path}/clue", f"checkpoint={smallest_run}/pretrain",
        f"run.dir={tmp_path}/runs", "stages=[pseudo_label,continue_pretrain,evaluate,export,report]",
    ]  # fmt: skip
    code, text = in_process("run", arguments, monkeypatch, capsys)
    assert code == 0, text
    assert "no unlabeled rows" in text
    assert "prior, ensemble, combined are the reference prompt as it is (raw)" in text
    assert "the base model stands" in text
    metrics = json.loads((tmp_path / "runs" / "demo" / "evaluate" / "demo_reviews" / "metrics.json").read_text())
    assert {row["model"] for row in metrics} == {"base"}
    assert len(pseudo_label.load(tmp_path / "runs" / "demo" / "export" / "demo_reviews").predict(dev_rows("demo_reviews"))) == 60


def test_evaluation_takes_any_checkpoint_and_split(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [
        f"checkpoint={smallest_run}/export/demo_topics", "task=demo_topics", "split=dev", f"data.root={demo_dir()}/clue",
        f"run.dir={tmp_path}", "evaluate.methods=[raw]", "evaluate.method=raw",
    ]  # fmt: skip
    code, text = in_process("evaluate", arguments, monkeypatch, capsys)
    assert code == 0, text
    metrics = json.loads((tmp_path / "default" / "evaluate" / "demo_topics" / "metrics.json").read_text())
    assert [(row["split"], row["model"], row["n"]) for row in metrics] == [("dev", "base", 60)]
