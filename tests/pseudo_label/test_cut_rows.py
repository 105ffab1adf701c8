"""Rows that are cut: counted, with the longest, and those that become the text of another row named."""

from __future__ import annotations

from adapt.core.typed import to_plain
from adapt.text.tokenizer import Tokenizer
from pipelines.config.locations import conf_dir, demo_dir
from pseudo_label.cut_rows import CutRows, counts_of_cut, cut_rows, said_of_cut
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskRow, load_task

LONG = "这家店的菜我们吃了很多次" * 40


def rows_of(texts: list[str]) -> list[TaskRow]:
    return [TaskRow(id=n, texts={"sentence": text}, label=None, candidates=None, line=n + 2) for n, text in enumerate(texts)]


def prompt_of(context: int) -> Prompt:
    task = load_task("demo_reviews", [conf_dir() / "task"])
    return Prompt(task, "reference", Tokenizer.load(demo_dir() / "base"), context)


def test_rows_whose_cut_part_decides_are_named() -> None:
    texts = ["好", f"{LONG}很好", f"{LONG}很差", f"{LONG}很差", f"别的{LONG}", "短"]
    found = [to_plain(cut_rows(rows_of(texts)[:2], prompt_of(64))), to_plain(cut_rows(rows_of(texts)[2:], prompt_of(64)))]
    counts = counts_of_cut(found)
    assert (counts["cut"], counts["alike"], counts["alike_lines"], counts["context"]) == (4, 3, [3, 4, 5], 64)
    assert counts["longest"] == max(prompt_of(64).length(row) for row in rows_of(texts))
    said = str(said_of_cut(counts, len(texts)))
    assert said.startswith("4 of 6 rows are longer than the model's context of 64 tokens and were cut (the longest has ")
    assert "3 of them (lines 3, 4, 5) differ only in what was cut" in said


def test_copies_of_a_text_are_not_decided_by_the_cut() -> None:
    counts = counts_of_cut([to_plain(cut_rows(rows_of([LONG, LONG]), prompt_of(64)))])
    assert (counts["cut"], counts["alike"]) == (2, 0)
    assert "differ only" not in str(said_of_cut(counts, 2))


def test_nothing_is_said_where_nothing_is_cut() -> None:
    assert said_of_cut(counts_of_cut([to_plain(cut_rows(rows_of(["好"]), prompt_of(64)))]), 1) is None
    assert said_of_cut(counts_of_cut([]), 0) is None
    assert said_of_cut({}, 3) is None
    assert cut_rows([], prompt_of(64)) == CutRows(context=64)
