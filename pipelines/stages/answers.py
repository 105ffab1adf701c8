"""The answers of an evaluation on labelled rows: by model and method over all labelled splits, and how right and how sure they are.

Legend: N rows.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence, Set
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from pipelines.stages.evaluated_model import ADAPTED
from pipelines.stages.rows import LABELLED_SPLITS
from pseudo_label.comparison import best_unadapted

_BINS = 10
Who = tuple[str, str]  # model and method


@dataclass(frozen=True, kw_only=True)
class ReliabilityBin:
    """The rows whose confidence lies from `low` to `high`: how many, their mean confidence, and their accuracy."""

    low: float
    high: float
    n: int
    confidence: float
    accuracy: float


@dataclass(frozen=True, kw_only=True)
class Answers:
    """The answers of a task on its labelled splits, all splits in turn: by (model, method), with confidences from 0 to 1.

    `decides` are the answers that count: those of the adapted model (else of the base) under the evaluation's method. Rows that are
    copies of others are left out; `copies` are their places by split.
    """

    task: str
    gold: tuple[str, ...]
    given: Mapping[Who, tuple[str, ...]]
    confidences: Mapping[Who, FloatArray]
    decides: Who
    splits: tuple[str, ...] = ()
    copies: Mapping[str, Set[int]] = field(default_factory=dict)

    @property
    def n_copies(self) -> int:
        return sum(map(len, self.copies.values()))

    @classmethod
    def of(cls, task: str, lines: Sequence[Mapping[str, Any]], method: str) -> Answers | None:
        """Join the splits of an evaluation's answers; None where nothing is labelled."""
        by_split, given = pool_splits(lines)
        gold = tuple(label for labels in by_split.values() for label in labels)
        whole = {who: answers for who, answers in given.items() if len(answers) == len(gold)}
        deciding = [who for who in whole if who[1] == method]
        if not gold or not deciding:
            return None
        sure: dict[Who, list[float]] = {}
        for split in by_split:
            for line in lines:
                if line["split"] == split:
                    sure.setdefault(_who(line), []).extend(_counted(line, "confidences"))
        confidences = {who: np.asarray(sure[who]) for who in whole}
        last = (ADAPTED, method) if (ADAPTED, method) in whole else deciding[-1]
        return cls(
            task=task,
            splits=tuple(by_split),
            copies=copies_in(lines),
            gold=gold,
            given=whole,
            confidences=confidences,
            decides=last,
        )

    def right_N(self, who: Who) -> npt.NDArray[np.bool_]:
        return np.asarray([a == g for a, g in zip(self.given[who], self.gold, strict=True)])

    @property
    def best_before(self) -> Who | None:
        """The best one had without adapting, chosen on these rows."""
        return best_unadapted({who: self.right_N(who).astype(np.float64) for who in self.given})

    def confusion(self) -> Counter[tuple[str, str]]:
        """Count the rows by (right label, deciding answer)."""
        return Counter(zip(self.gold, self.given[self.decides], strict=True))

    def reliability(self, who: Who) -> list[ReliabilityBin]:
        """Return each tenth of the confidences that has rows."""
        sure_N, right_N = self.confidences[who], self.right_N(who)
        bin_N = np.minimum((sure_N * _BINS).astype(np.int64), _BINS - 1)
        found = []
        for place in range(_BINS):
            inside_N = bin_N == place
            if inside_N.any():
                means = {"confidence": float(sure_N[inside_N].mean()), "accuracy": float(right_N[inside_N].mean())}
                found.append(ReliabilityBin(low=place / _BINS, high=(place + 1) / _BINS, n=int(inside_N.sum()), **means))
        return found


def pool_splits(lines: Sequence[Mapping[str, Any]]) -> tuple[dict[str, tuple[str, ...]], dict[Who, tuple[str, ...]]]:
    """Return the right answers by labelled split, and for each (model, method) the answers given in all of them, in turn.

    `lines` are those of an evaluation's answers. Splits other than dev and few, and rows that are copies of others, are left out.
    """
    gold: dict[str, tuple[str, ...]] = {}
    answers: dict[Who, list[str]] = {}
    for split in LABELLED_SPLITS:
        for line in lines:
            if line["split"] == split:
                gold.setdefault(split, tuple(_counted(line, "gold")))
                answers.setdefault(_who(line), []).extend(_counted(line, "answers"))
    return gold, {who: tuple(given) for who, given in answers.items()}


def copies_in(lines: Sequence[Mapping[str, Any]]) -> dict[str, Set[int]]:
    """Return by split the places of measured rows that are copies of others, of the lines of an evaluation's answers."""
    return {line["split"]: frozenset(line.get("copies", ())) for line in lines if line["split"] in LABELLED_SPLITS}


def _counted(line: Mapping[str, Any], what: str) -> list[Any]:
    copied = set(line.get("copies", ()))
    return [value for place, value in enumerate(line[what]) if place not in copied]


def _who(line: Mapping[str, Any]) -> Who:
    return line["model"], line["method"]
