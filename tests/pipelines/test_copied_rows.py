"""Labelled rows that are copies of others count once where splits are put together, and both they and contradictions are said."""

from __future__ import annotations

import json
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from adapt.core.artifacts import Artifact
from pipelines.stages.answers import Answers, pool_splits
from pipelines.stages.copied_rows import copies, findings, without_copies
from pipelines.stages.gain import gain_of, in_a_sentence
from pipelines.stages.products import REPORT_FILE
from pipelines.walk.finished_runs import read_result
from pseudo_label.tasks import TaskRow
from tests.support.command_line import SMALL_DEMO, SMALLEST
from tests.support.finished_runs import produced

RunHere = Callable[[str, list[str]], str]


def row(text: str, label: str, line: int, candidates: tuple[str, ...] | None = None) -> TaskRow:
    return TaskRow(id=line, texts={"sentence": text}, label=label, candidates=candidates, line=line)


DEV = [row("fine", "good", 1), row("poor", "bad", 2), row("fine", "good", 3)]
FEW = [row("poor", "bad", 1), row("fine", "bad", 2), row("fine", "good", 3, ("a", "b"))]


def test_rows_are_copies_where_texts_candidates_and_label_are_those_of_an_earlier_row_of_any_split() -> None:
    assert copies({"dev": DEV, "few": FEW}) == {"dev": [2], "few": [0]}
    assert without_copies({"dev": DEV, "few": FEW}) == {"dev": DEV[:2], "few": FEW[1:]}
    assert findings({"dev": DEV, "few": FEW}) == [
        "2 of 6 labelled rows are copies of others and count once, except in accuracies by split",
        "1 labelled text has several labels (dev line 1 'good' and few line 2 'bad', say): one of them counts as wrong whatever is "
        "answered",
    ]
    assert findings({"dev": DEV[:2], "few": FEW[2:]}) == []


def evaluated(root: Path, run: str, copied: dict[str, list[int]]) -> tuple[Artifact, Artifact]:
    """Write a run whose dev and few are the same 60 rows, of which the adapted model answers 3 wrongly and the base none."""
    gold = ["good", "bad"] * 30
    wrong = ["bad", "good", "bad", *gold[3:]]
    metrics = {"is_adapted": True, "steps": 50}
    adapted = produced(root, f"{run}/continue_pretrain/reviews", "continue_pretrain", {"run": run}, metrics, {"weights": run})
    lines: list[dict[str, Any]] = [
        {"split": split, "model": model, "method": "raw", "gold": gold, "answers": answers, "confidences": [0.5] * 60}
        | ({"copies": copied[split]} if copied.get(split) else {})
        for split in ("dev", "few")
        for model, answers in (("base", gold), ("adapted", wrong))
    ]
    config, files = {"evaluate": {"method": "raw"}}, {"answers.json": json.dumps(lines)}
    place = f"{run}/evaluate/reviews"
    return adapted, produced(root, place, "evaluate", config, {"table": []}, files, continue_pretrain=adapted)


def test_a_verdict_is_on_distinct_rows_and_says_how_many_are_copies(tmp_path: Path) -> None:
    once = in_a_sentence(gain_of(*evaluated(tmp_path, "once", {"few": list(range(60))})))
    assert once.startswith("too few rows to tell")
    assert "on 60 rows" in once
    assert "60 of 120 labelled rows are copies of others and count once" in once
    twice = in_a_sentence(gain_of(*evaluated(tmp_path, "twice", {})))
    assert twice.startswith("lost"), "as if they were 120 rows"
    assert "copies" not in twice


def test_comparisons_and_pages_count_a_copy_once(tmp_path: Path) -> None:
    _, measured = evaluated(tmp_path, "x", {"dev": [1], "few": list(range(60))})
    lines = json.loads((measured.path / "answers.json").read_text(encoding="utf-8"))
    gold, given = pool_splits(lines)
    assert [len(labels) for labels in gold.values()] == [59, 0]
    assert {len(answers) for answers in given.values()} == {59}
    found = Answers.of("reviews", lines, "raw")
    assert found is not None
    assert (len(found.gold), found.n_copies, len(found.confidences[found.decides])) == (59, 61, 59)
    result = read_result(tmp_path / "x", "x", "reviews")
    assert (len(result.all_gold), result.n_copies) == (59, 61)


@pytest.mark.slow
def test_a_copy_of_dev_as_few_changes_no_pooled_figure_and_rows_in_another_order_are_said(
    copied_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    data = tmp_path / "clue"
    shutil.copytree(SMALL_DEMO / "demo_reviews", data / "demo_reviews")
    dev = data / "demo_reviews" / "dev.json"
    lines = dev.read_text(encoding="utf-8").splitlines(keepends=True)
    (data / "demo_reviews" / "few.json").write_text("".join(lines), encoding="utf-8")
    arguments = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}", f"data.root={data}"]
    text = run_here("evaluate", arguments)
    assert f"{len(lines)} of {2 * len(lines)} labelled rows are copies of others and count once" in text
    assert f"on {len(lines)} rows" in text
    page = copied_run / "demo" / "report" / REPORT_FILE
    assert "shows no texts" not in run_here("report", arguments)
    assert "Surest mistakes" in page.read_text(encoding="utf-8") or "Least sure answers" in page.read_text(encoding="utf-8")
    # Rows of one label change places, so that the labels stand as before and the texts do not.
    label = json.loads(lines[0])["label"]
    other = next(i for i, line in enumerate(lines) if i and json.loads(line)["label"] == label)
    lines[0], lines[other] = lines[other], lines[0]
    dev.write_text("".join(lines), encoding="utf-8")
    text = run_here("report", arguments)
    assert "the page shows no texts of labelled rows" in text
    assert "python -m pipelines.evaluate run.name=demo task=demo_reviews" in text
    assert "Least sure answers" not in page.read_text(encoding="utf-8")
