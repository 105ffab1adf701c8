"""The number that a search goes by: agreement times confidence by hand, accuracy on dev, and what there must be to make them."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from pipelines.stages.answers import Answers
from pipelines.stages.evaluate import ANSWERS_FILE
from pipelines.walk.objective import agreement_times_confidence, objective_of
from tests.support.command_line import composed

GIVEN = {
    ("adapted", "prior"): ("a", "a", "b", "b"),
    ("base", "prior"): ("a", "b", "b", "a"),
    ("lexical", "lexical"): ("a", "a", "a", "a"),
    ("adapted", "raw"): ("b", "b", "b", "b"),
}
SURE = np.asarray([0.9, 0.8, 0.7, 0.6])


def answers(*models: str, gold: tuple[str, ...] = ("a", "a", "a", "a")) -> Answers:
    given = {who: labels for who, labels in GIVEN.items() if who[0] in models}
    confidences = dict.fromkeys(given, SURE)
    return Answers(task="t", gold=gold, given=given, confidences=confidences, decides=("adapted", "prior"))


def test_agreement_times_confidence_by_hand() -> None:
    # Base and lexical agree with the adapted model on rows 1 (both), 2 (lexical), 3 (base), and 4 (none).
    by_hand = (0.9 * 1 + 0.8 * 0.5 + 0.7 * 0.5 + 0.6 * 0) / 4
    assert agreement_times_confidence(answers("adapted", "base", "lexical")) == pytest.approx(by_hand)
    assert agreement_times_confidence(answers("adapted", "base")) == pytest.approx((0.9 + 0.7) / 4)
    assert agreement_times_confidence(answers("adapted")) == pytest.approx(SURE.mean()), "nobody disagrees"


def test_right_answers_are_not_read() -> None:
    models = ("adapted", "base", "lexical")
    assert agreement_times_confidence(answers(*models)) == agreement_times_confidence(answers(*models, gold=("b", "a", "b", "b")))


def settings(run: Path, objective: str, *more: str) -> list[str]:
    place = [f"run.dir={run.parent}", f"run.name={run.name}", f"data.root={run.parent}", "tasks=[demo_reviews,demo_topics]"]
    return [*place, f"sweep.objective={objective}", *more]


def test_a_point_is_judged_by_what_it_has_left(smallest_run: Path) -> None:
    assert objective_of(composed("run", settings(smallest_run, "none")), None) is None
    accuracy = objective_of(composed("run", settings(smallest_run, "accuracy")), None)
    by_hand = []
    for task in ("demo_reviews", "demo_topics"):
        import json

        lines = json.loads((smallest_run / "evaluate" / task / ANSWERS_FILE).read_text(encoding="utf-8"))
        deciding = next(x for x in lines if (x["split"], x["model"], x["method"]) == ("dev", "adapted", "combined"))
        by_hand.append(float(np.mean([a == g for a, g in zip(deciding["answers"], deciding["gold"], strict=True)])))
    assert accuracy == pytest.approx(np.mean(by_hand)), "tasks count alike"
    evaluated = objective_of(composed("run", settings(smallest_run, "label_free")), None)
    labelled = objective_of(composed("run", settings(smallest_run, "label_free", "stages=[pseudo_label]")), None)
    assert evaluated is not None and labelled is not None
    assert 0 < evaluated < 1 and 0 < labelled < 1 and evaluated != labelled


@pytest.mark.parametrize("objective", ["label_free", "accuracy"])
def test_a_point_that_leaves_nothing_to_judge_is_refused(smallest_run: Path, objective: str) -> None:
    with pytest.raises(ConfigError, match=f"sweep.objective={objective}: demo_reviews"):
        objective_of(composed("run", settings(smallest_run, objective, "stages=[tokenizer]")), None)
