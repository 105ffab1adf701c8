"""General text near to a task as commands read it: chosen once, read before the rows or beside them, and shown."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest

from adapt.core.artifacts import open_artifact
from adapt.text.corpus import find_corpus, read_documents
from tests.support.command_line import SMALLEST, refused

RunHere = Callable[[str, list[str]], str]
TASK = "demo_topics"
CHOSEN = [*SMALLEST, f"tasks=[{TASK}]", "continue_pretrain.epochs=1", "continue_pretrain.curriculum.documents=40"]


def history(place: Path) -> list[dict[str, float]]:
    return [json.loads(line) for line in (place / "history.jsonl").read_text().splitlines()]


def test_text_is_chosen_once_and_read_before_the_rows_or_beside_them(copied_run: Path, run_here: RunHere) -> None:
    here = [*CHOSEN, f"run.dir={copied_run}", "stages=[continue_pretrain,report]"]
    said = run_here("run", here)
    link = copied_run / "demo" / "near_text" / TASK
    near, first = open_artifact(link.resolve()), open_artifact((copied_run / "demo" / "continue_pretrain" / TASK).resolve())
    assert first.metrics["text"]["documents"] == 40 and "40 near documents" in said
    assert len([one for file in find_corpus([str(link)]) for one in read_documents(file)]) == 40  # data.corpus takes it
    lines = history(first.path)
    steps = [line["count/pseudo_label"] == 0 for line in lines]
    n_first = sum(steps)
    assert n_first == -(-first.metrics["text"]["rows"] // 16)
    assert steps == [True] * n_first + [False] * (len(steps) - n_first) and not steps[-1]
    page = (copied_run / "demo" / "report" / "report.html").read_text(encoding="utf-8")
    nearest = json.loads((near.path / "near.json").read_text(encoding="utf-8"))["nearest"]
    assert "General text that was read besides the rows" in page and nearest[0]["text"][:12] in page

    beside = ["continue_pretrain.curriculum.when=beside", "continue_pretrain.curriculum.steps=2"]
    run_here("run", [*here, *beside])
    assert open_artifact(link.resolve()).digest == near.digest
    second = open_artifact((copied_run / "demo" / "continue_pretrain" / TASK).resolve())
    assert second.metrics["text"]["rows"] == 32
    counts = [line["count/pseudo_label"] for line in history(second.path)]
    assert len(counts) == len(steps) - n_first + 2 and all(counts)


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        (["data.corpus=[]"], ["continue_pretrain.curriculum.documents", "data.corpus"]),
        (["continue_pretrain.curriculum.choice=nearest"], ["continue_pretrain.curriculum.choice", "near, random"]),
        (["continue_pretrain.curriculum.steps=0"], ["curriculum.steps: 0", "1 or more"]),
    ],
)
def test_a_curriculum_that_cannot_be_is_refused_before_anything_is_chosen(
    settings: list[str], words: list[str], copied_run: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    refused("run", [*CHOSEN, f"run.dir={copied_run}", *settings, "stages=[continue_pretrain]"], words, monkeypatch, capsys)
