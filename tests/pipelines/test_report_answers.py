"""The report's answers: how right they are, and which rows changed, with their texts where they are at hand."""

from __future__ import annotations

from typing import Any

import pytest

from pipelines.report_page.charts import Chart
from pipelines.stages.answers import Answers, ReliabilityBin
from pipelines.stages.report_answers import accuracy_sentence, answers_section, chance_sentence
from pseudo_label.tasks import TaskRow

GOLD = ["a", "b", "a", "b"]


def line(split: str, model: str, method: str, answers: str, confidences: list[float]) -> dict[str, Any]:
    return {
        "task": "t", "split": split, "model": model, "method": method, "answers": list(answers), "gold": GOLD,
        "confidences": confidences,
    }  # fmt: skip


LINES = [
    line(split, model, method, answers, confidences)
    for split in ("dev", "few")
    for model, method, answers, confidences in (
        ("lexical", "lexical", "abbb", [0.9, 0.8, 0.6, 0.7]),
        ("base", "combined", "aaaa", [0.5, 0.5, 0.5, 0.5]),
        ("adapted", "combined", "abaa", [0.9, 0.7, 0.6, 0.8]),
    )
]
ROWS = [TaskRow(id=i, texts={"text": f"text {i} <b>"}, label=GOLD[i % 4], candidates=None, line=i) for i in range(8)]


def answers(lines: list[dict[str, Any]], method: str = "combined") -> Answers:
    found = Answers.of("t", lines, method)
    assert found is not None
    return found


def test_sentences_say_accuracy_and_chance() -> None:
    found = answers([one for one in LINES if one["model"] != "adapted"])
    assert accuracy_sentence(found) == "50.0 % of 8 labelled rows are answered rightly by the base, combined."
    assert accuracy_sentence(answers(LINES)) == "75.0 % of 8 labelled rows are answered rightly by the adapted model, combined."
    assert chance_sentence(found) == "One label throughout would get 50.0 %."


def test_confusion_and_reliability_are_of_the_deciding_answers() -> None:
    found = answers(LINES)
    assert found.confusion() == {("a", "a"): 4, ("b", "b"): 2, ("b", "a"): 2}
    sure = [(one.low, one.n, one.accuracy) for one in found.reliability(found.decides)]
    assert sure == [(0.6, 2, 1.0), (0.7, 2, 1.0), (0.8, 2, 0.0), (0.9, 2, 1.0)]
    assert found.reliability(found.decides)[0] == ReliabilityBin(low=0.6, high=0.7, n=2, confidence=0.6, accuracy=1.0)


def test_rows_are_listed_with_their_texts_the_surest_first() -> None:
    section = answers_section(answers(LINES), ROWS)
    html = "".join(str(part) for part in section.parts if not isinstance(part, Chart))
    assert "2 rows are right now, 2 are wrong now" in html
    assert html.index("Right now (2 of 2)") < html.index("text 2 &lt;b&gt;") < html.index("Wrong now (2 of 2)")
    assert [part.title.split(" ")[0] for part in section.parts if isinstance(part, Chart)] == ["Rows", "Reliability:", "Rows"]


def test_without_rows_their_texts_are_not_shown() -> None:
    html = "".join(str(part) for part in answers_section(answers(LINES), []).parts if not isinstance(part, Chart))
    assert "not shown" in html


@pytest.mark.parametrize("lines", [[], [{**LINES[0], "split": "test"}]])
def test_without_labelled_rows_there_are_no_answers(lines: list[dict[str, Any]]) -> None:
    assert Answers.of("t", lines, "combined") is None
