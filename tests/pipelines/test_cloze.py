"""A cloze task from labelling to export: candidates held against the task's own unlabeled texts, in every stage alike."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest

from pipelines.config.locations import demo_dir
from pseudo_label.predictor import load
from tests.support.command_line import FP32_SCORES, in_process, on_base, refused

WORDS = ["很好", "一般", "不错", "太差", "失望", "满意"]
BLANK = "#idiom#"


@pytest.fixture
def root(tmp_path: Path) -> Path:
    """Return a data root with cloze rows made from the demo's sentences: a blank inside, three candidates each."""
    sentences = (demo_dir() / "clue" / "demo_reviews" / "unlabeled.json").read_text(encoding="utf-8").splitlines()
    rows = []
    for number, line in enumerate(sentences[:60]):
        text = json.loads(line)["sentence"]
        candidates = [WORDS[(number + step) % len(WORDS)] for step in range(3)]
        rows.append({"id": number, "content": text[:8] + BLANK + text[8:], "candidates": candidates, "answer": number % 3})
    place = tmp_path / "data" / "chid"
    place.mkdir(parents=True)
    for split, some in (("unlabeled", rows[:40]), ("dev", rows[40:])):
        (place / f"{split}.json").write_text("".join(json.dumps(row, ensure_ascii=False) + "\n" for row in some), encoding="utf-8")
    return tmp_path / "data"


def rows_of(root: Path, split: str) -> list[dict[str, Any]]:
    return [json.loads(line) for line in (root / "chid" / f"{split}.json").read_text(encoding="utf-8").splitlines()]


def test_a_cloze_is_labelled_learnt_measured_and_exported_with_the_texts_it_is_held_against(
    root: Path, smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*on_base(smallest_run, tmp_path, "chid"), f"data.root={root}", "continue_pretrain.epochs=1"]
    stages = "stages=[pseudo_label,continue_pretrain,evaluate,export]"
    code, text = in_process("run", [*arguments, stages], monkeypatch, capsys)
    assert code == 0, text
    evaluated = tmp_path / "demo" / "evaluate" / "chid"
    decision = json.loads((evaluated / "decision.json").read_text(encoding="utf-8"))
    held_against = {texts["content"].split(BLANK)[0] for texts in decision["scoring"]["domain"]}
    assert held_against == {row["content"].split(BLANK)[0] for row in rows_of(root, "unlabeled")}

    rows = rows_of(root, "dev")
    answers = json.loads((evaluated / "answers.json").read_text(encoding="utf-8"))
    wanted = next(a["answers"] for a in answers if a["model"] == "adapted" and a["method"] == decision["decision"]["method"])
    predictor = load(tmp_path / "demo" / "export" / "chid", FP32_SCORES)
    assert [found.label for found in predictor.predict(rows)] == wanted
    # One row by itself is held against the same texts: what it is read with does not matter.
    assert [predictor.predict([row])[0].label for row in rows] == wanted


def test_without_unlabeled_texts_there_is_nothing_to_hold_candidates_against(
    root: Path, smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (root / "chid" / "unlabeled.json").unlink()
    arguments = [*on_base(smallest_run, tmp_path, "chid"), f"data.root={root}"]
    refused("evaluate", arguments, ["'chid'", "'reference'", "unlabeled split", "total_pmi"], monkeypatch, capsys)
