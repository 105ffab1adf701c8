"""Rules of a task's file as a teacher: what each measures in a row, times its weights, summed over the rules.

Scores flow out with the prior matched: the mean posterior over the unlabeled rows is even, as for the model's own scores.

Legend: N rows, C labels, R rules.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.decision import match_prior
from pseudo_label.lexical_config import Measure, RuleConfig
from pseudo_label.patterns import is_found
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers.bag_of_words import Unit, unit_of
from pseudo_label.teachers.contract import row_centred, spread_of

_COUNTED = (Measure.OVERLAP, Measure.LENGTH, Measure.SHORTEST_ITEM)


@dataclass(frozen=True, kw_only=True)
class FittedRules:
    """A task's rules with their centres and spreads, the labels' biases, and the spread of the whole."""

    task: TaskConfig
    unit: Unit
    centres: list[float]
    spreads: list[float]
    biases: list[float]
    spread: float

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """See `FittedTeacher.scores`."""
        measured_NR = _measured(self.task, rows, self.unit)
        summed_NC = _weighed(self.task, (measured_NR - np.asarray(self.centres)) / np.asarray(self.spreads))
        return row_centred(summed_NC + np.asarray(self.biases)) / self.spread

    def to_plain(self) -> dict[str, Any]:
        """Return all that was fitted as plain values."""
        return {
            "unit": self.unit.value,
            "centres": self.centres,
            "spreads": self.spreads,
            "biases": self.biases,
            "spread": self.spread,
        }

    @classmethod
    def from_plain(cls, plain: Mapping[str, Any], task: TaskConfig, order: Sequence[int]) -> FittedRules:
        """Build what `to_plain` described; `order` holds for each label of the task its place when the rules were fitted."""
        biases = [plain["biases"][place] for place in order]
        return cls(**{**plain, "unit": Unit(plain["unit"]), "task": task, "biases": biases})


def fit_rules(task: TaskConfig, rows: Sequence[TaskRow]) -> FittedRules:
    """Fit centres, spreads and biases on unlabeled rows; there is at least one row and one rule."""
    unit = unit_of([" ".join(row.texts.values()) for row in rows])
    measured_NR = _measured(task, rows, unit)
    centres, spreads = [], []
    for rule, values_N in zip(task.rules, measured_NR.T, strict=True):
        is_counted = rule.measure in _COUNTED
        centres.append(float(np.median(values_N)) if is_counted else 0.0)
        spreads.append(float(values_N.std() or 1.0) if is_counted else 1.0)
    summed_NC = _weighed(task, (measured_NR - np.asarray(centres)) / np.asarray(spreads))
    biases = match_prior(summed_NC / spread_of(summed_NC), np.asarray(task.shares())) * spread_of(summed_NC)
    return FittedRules(
        task=task,
        unit=unit,
        centres=centres,
        spreads=spreads,
        biases=biases.tolist(),
        spread=spread_of(summed_NC + biases),
    )


def _measured(task: TaskConfig, rows: Sequence[TaskRow], unit: Unit) -> FloatArray:
    """Return what each rule measures in each row [N, R]."""
    items = {name: spec.join for name, spec in task.fields.items()}
    places = [(rule, f"task '{task.name}', rules[{number}].pattern") for number, rule in enumerate(task.rules)]
    values = [
        [_value(rule, [row.texts[name] for name in rule.fields], items, unit, where) for rule, where in places] for row in rows
    ]
    return np.asarray(values, dtype=np.float64).reshape(len(rows), len(task.rules))


def _value(rule: RuleConfig, texts: Sequence[str], items: Mapping[str, str], unit: Unit, where: str) -> float:
    last = texts[-1]
    if rule.measure is Measure.OVERLAP:
        return _overlap(_parts(texts[0], unit), _parts(last, unit), is_directed=rule.is_directed)
    if rule.measure is Measure.WORDS:
        return float(any(word in last and not any(word in text for text in texts[:-1]) for word in rule.words))
    if rule.measure is Measure.PATTERN:
        return float(is_found(rule.pattern or "", last, where))
    if rule.measure is Measure.SHORTEST_ITEM:
        return float(min(len(item) for item in last.split(items[rule.fields[-1]])))
    return float(len(last))


def _overlap(first: list[str], second: list[str], *, is_directed: bool) -> float:
    known, asked = set(first), set(second)
    if is_directed:
        return sum(part in known for part in second) / max(len(second), 1)
    shared = len(known & asked)
    return (shared / max(min(len(known), len(asked)), 1) + shared / max(len(known | asked), 1)) / 2


def _parts(text: str, unit: Unit) -> list[str]:
    return re.findall(r"\w+", text.lower()) if unit is Unit.WORDS else [c for c in text if not c.isspace()]


def _weighed(task: TaskConfig, values_NR: FloatArray) -> FloatArray:
    weights_RC = np.asarray([[rule.weights.get(label, 0.0) for label in task.labels] for rule in task.rules])
    return np.asarray(values_NR @ weights_RC)
