"""Criteria beside each other: the reference prompt's accuracy under each, from the same passes, on dev and few together."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from itertools import compress
from typing import Any

from adapt.core.typed import to_plain
from pipelines.stages.scores import Scored
from pseudo_label.accuracy import accuracy_of
from pseudo_label.criteria.contract import Criterion, get_criterion
from pseudo_label.decision import Method, fit_decision
from pseudo_label.labelling import ScoringConfig, predictions
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.zero_shot import PassScores, keys_from

CRITERIA_FILE = "criteria.json"


def criteria_pairs(task: TaskConfig, names: Sequence[str]) -> list[tuple[str, Criterion]]:
    """Return (reference prompt, criterion)."""
    return [(task.reference, get_criterion(name)) for name in names]


def pooled(splits: Sequence[tuple[list[TaskRow], Scored]]) -> tuple[list[TaskRow], list[PassScores]]:
    """Put several splits' rows and passes together."""
    if not splits:
        return [], []
    rows = [row for some, _ in splits for row in some]
    passes = [
        replace(same[0], rows=[r for p in same for r in p.rows], nulls=[n for p in same for n in p.nulls])
        for same in zip(*(scored.passes for _, scored in splits), strict=True)
    ]
    return rows, passes


def compare_criteria(
    task: TaskConfig,
    model: str,
    names: Sequence[str],
    scoring: ScoringConfig,
    rows: list[TaskRow],
    passes: list[PassScores],
    fitted_on: Scored,
    counted: Sequence[bool],
) -> list[dict[str, Any]]:
    """Return one plain row per criterion: accuracy as it is (raw) and, where classes can be matched to a prior, matched.

    Only those of the `rows` count that `counted` says.
    """
    found = []
    gold = [row.label or "" for row in compress(rows, counted)]
    for prompt, criterion in criteria_pairs(task, names):
        pair = [(prompt, criterion)]
        keys = keys_from(passes, pair, scoring.form, task)
        fit_keys = keys_from(fitted_on.passes, pair, scoring.form, task) if fitted_on.passes else []
        line: dict[str, Any] = {"task": task.name, "split": "dev+few", "model": model, "criterion": criterion.name}
        for method in (Method.RAW, Method.PRIOR):
            decision = fit_decision(method, fit_keys, task)
            if method is Method.RAW or decision.n_fitted:
                guesses = predictions(decision.scores(keys, task), rows, task)
                line[method.value] = to_plain(accuracy_of(list(compress(guesses, counted)), gold))
        found.append(line)
    return found
