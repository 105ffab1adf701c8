"""Limits take a sample over the whole file: seeded, in order, without copies, and the smaller one inside the larger."""

from __future__ import annotations

import json
import logging
from collections.abc import Callable
from pathlib import Path

import pytest

from pipelines.stages.rows import UNLABELED, TaskData, adaptation_rows, sample_rows
from pipelines.stages.run import Run
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from tests.support.command_line import SMALL_DEMO, composed

TASK = TaskConfig(
    name="mine",
    fields={"s": FieldConfig(path="s")},
    label_words={"a": "甲", "b": "乙"},
    prompts={"reference": PromptConfig(template="{s}{label}")},
)


def rows(*texts: str, candidates: tuple[str, ...] | None = None) -> list[TaskRow]:
    return [TaskRow(id=n, texts={"s": text}, label=None, candidates=candidates, line=n + 1) for n, text in enumerate(texts)]


MANY = rows(*(f"text {n}" for n in range(1000)))


@pytest.mark.parametrize("seed", [0, 1, 7])
def test_a_sample_is_spread_over_the_file_in_its_order(seed: int) -> None:
    kept, n_distinct = sample_rows(MANY, TASK, 200, seed)
    lines = [row.line for row in kept]
    assert n_distinct == 1000 and len(lines) == 200 and lines == sorted(lines)
    halves = [sum(line <= 500 for line in lines), sum(line > 500 for line in lines)]
    assert min(halves) > 70, "not the head of the file"


def test_a_sample_depends_on_the_seed_and_on_nothing_else() -> None:
    first, again, other = (sample_rows(iter(MANY), TASK, 50, seed)[0] for seed in (3, 3, 4))
    assert first == again
    assert first != other
    backwards, _ = sample_rows(MANY[::-1], TASK, 50, 3)
    assert {row.line for row in backwards} == {row.line for row in first}


def test_a_smaller_sample_is_part_of_a_larger_one() -> None:
    samples = [{row.line for row in sample_rows(MANY, TASK, limit, 0)[0]} for limit in (0, 1, 10, 100, 999, 1000, 5000)]
    assert [len(sample) for sample in samples] == [0, 1, 10, 100, 999, 1000, 1000]
    assert all(small <= large for small, large in zip(samples, samples[1:], strict=False))
    assert sample_rows(MANY, TASK, None, 0)[0] == MANY


@pytest.mark.parametrize("limit", [None, 2, 3, 100])
def test_copies_count_once_and_the_first_is_kept(limit: int | None) -> None:
    some = rows("一", "二", "一", "三", "二", "一 ")
    kept, n_distinct = sample_rows(some, TASK, limit, 0)
    assert n_distinct == 3
    assert len(kept) == min(3, limit or 3)
    assert {row.line for row in kept} <= {1, 2, 4}


def test_rows_of_one_text_with_other_candidates_are_no_copies() -> None:
    some = [*rows("一", candidates=("x", "y")), *rows("一", candidates=("x", "z")), *rows("一", candidates=("x", "y"))]
    assert sample_rows(some, TASK, None, 0)[1] == 2


def test_no_rows_have_no_sample() -> None:
    assert sample_rows([], TASK, 5, 0) == ([], 0)


def test_what_is_taken_of_a_file_is_said_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    said: list[str] = []
    monkeypatch.setattr(logging.getLogger("pipelines"), "info", lambda form, *values: said.append(form % values))
    place = tmp_path / "data" / "mine"
    place.mkdir(parents=True)
    texts = [f"text {n}" for n in range(1200)] + ["text 0", "text 1"]
    (place / "unlabeled.csv").write_text("s\n" + "\n".join(texts) + "\n")
    (place / "dev.jsonl").write_text(json.dumps({"s": "text 5", "label": "a"}))
    config = composed("run", [f"data.root={tmp_path}/data", f"run.dir={tmp_path}/runs", "seed=4"])
    run = Run(config)
    found = adaptation_rows(run.workshop, TaskData.of(run, TASK, [UNLABELED]), 1000)
    again = adaptation_rows(run.workshop, TaskData.of(run, TASK, [UNLABELED]), 1000)
    assert found == again
    assert (len(found.rows), found.n_excluded, found.n_copies, found.n_file) == (1000, 1, 2, 1202)
    assert said == ["mine: 1,000 of 1,202 unlabeled rows (sampled with seed 4, 2 are copies of others and left out)"]


def test_another_seed_labels_other_rows(tmp_path: Path, tiny_export: Path, run_here: Callable[[str, list[str]], str]) -> None:
    arguments = [
        "experiment=demo_from_scratch", "task=demo_reviews", f"checkpoint={tiny_export}", f"run.dir={tmp_path}/runs",
        f"data.root={SMALL_DEMO}",
        "pseudo_label.max_rows=20", "pseudo_label.estimates_noise=false", "pseudo_label.prompts=[reference]",
    ]  # fmt: skip
    assert "20 of 280 unlabeled rows (sampled with seed 0)" in run_here("pseudo_label", arguments)
    assert "skipped" in run_here("pseudo_label", arguments)
    assert "20 of 280 unlabeled rows (sampled with seed 1)" in run_here("pseudo_label", [*arguments, "seed=1"])
