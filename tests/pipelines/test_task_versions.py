"""A task's file that changes between two commands: another order of the labels changes no answer, another version is refused."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pseudo_label
from pipelines.config.locations import conf_dir
from tests.support.command_line import SMALL_DEMO, SMALLEST, refused

TASK = "demo_reviews"
WORDS = "label_words: {Negative: 不满意, Positive: 满意}\n"
TURNED = "label_words: {Positive: 满意, Negative: 不满意}\n"
RunHere = Callable[[str, list[str]], str]


def own_task(place: Path, before: str, after: str) -> str:
    """Write a changed copy of the task's file and return the argument that uses it."""
    place.mkdir()
    text = (conf_dir() / "task" / f"{TASK}.yaml").read_text(encoding="utf-8")
    assert before in text
    (place / f"{TASK}.yaml").write_text(text.replace(before, after, 1), encoding="utf-8")
    return f"task_dir={place}"


def on(copied_run: Path) -> list[str]:
    return [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}"]


def test_labels_in_another_order_keep_the_answers_of_the_taught_labeller_and_of_its_export(
    copied_run: Path, tmp_path: Path, run_here: RunHere
) -> None:
    run = copied_run / "demo"
    assert (run / "continue_pretrain" / TASK / "lexical" / TASK / "lexical.json").is_file()
    lexical = [*on(copied_run), "evaluate.methods=[lexical]", "evaluate.method=lexical"]
    found: list[Any] = []
    for own in ([], [own_task(tmp_path / "turned", WORDS, TURNED)]):
        run_here("evaluate", [*lexical, *own])
        answers = json.loads((run / "evaluate" / TASK / "answers.json").read_text(encoding="utf-8"))
        found.append([(one["model"], one["answers"]) for one in answers])
    assert found[0] == found[1]
    assert [model for model, _ in found[0]] == ["lexical", "adapted"]
    run_here("export", [*lexical, *own])
    rows = [json.loads(line) for line in (SMALL_DEMO / TASK / "dev.json").read_text(encoding="utf-8").splitlines()]
    assert [answer.label for answer in pseudo_label.load(run / "export" / TASK).predict(rows)] == found[0][1][1]


@pytest.mark.parametrize("stage", ["evaluate", "export"])
@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (WORDS, "label_words: {Negative: 满意, Positive: 不满意}\n", "label_words"),
        ("  sentence: {path: sentence}", "  sentence: {path: sentence, drop: 。}", "fields"),
    ],
)
def test_a_model_that_was_adapted_to_another_version_of_the_task_is_refused(
    stage: str, before: str, after: str, key: str, copied_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    own = own_task(tmp_path / "tasks", before, after)
    words = [f"was adapted to another version of task '{TASK}' ({key} changed)", "python -m pipelines.continue_pretrain"]
    refused(stage, [*on(copied_run), own], words, monkeypatch, capsys)


@pytest.mark.parametrize(
    ("before", "after", "key"),
    [
        (WORDS, "label_words: {Negative: 满意, Positive: 不满意}\n", "label_words"),
        ("{sentence}总之，{label}", "{sentence}就是，{label}", "prompts"),
    ],
)
def test_labels_that_were_made_for_another_version_of_the_task_are_not_trained_on(
    before: str, after: str, key: str, copied_run: Path, tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    own = own_task(tmp_path / "tasks", before, after)
    words = [f"made for another version of task '{TASK}' ({key} changed)", "python -m pipelines.pseudo_label"]
    refused("continue_pretrain", [*on(copied_run), own], words, monkeypatch, capsys)
