"""What a teacher is: something fitted on unlabeled rows that scores the labels of any row of the task.

Scores of different teachers meet in sums, so each comes standardised: a row's scores have mean 0 over its labels, and their
standard deviation over the rows that the teacher was fitted on is 1. Labels that a row does not have stand at -inf.

Legend: N rows, C labels (columns as wide as the longest list, where rows bring their own candidates).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Protocol

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskRow


class FittedTeacher(Protocol):
    """A teacher with everything frozen that was fitted; it never looks at a row's label."""

    def scores(self, rows: Sequence[TaskRow]) -> FloatArray:
        """Return standardised scores [N, C], larger is better. A row's scores do not depend on the other rows."""
        ...


def row_centred(scores_NC: FloatArray) -> FloatArray:
    """Take each row's mean over its labels off; missing labels stay at -inf."""
    is_there = np.isfinite(scores_NC)
    sums = np.where(is_there, scores_NC, 0.0).sum(axis=1, keepdims=True)
    return np.asarray(scores_NC - sums / np.maximum(is_there.sum(axis=1, keepdims=True), 1))


def spread_of(scores_NC: FloatArray) -> float:
    """Return the standard deviation of row-centred scores, 1 where they do not differ at all."""
    centred = row_centred(scores_NC)[np.isfinite(scores_NC)]
    spread = float(centred.std()) if len(centred) else 0.0
    return spread if spread > 0 else 1.0


def padded(scores: Sequence[FloatArray]) -> FloatArray:
    """Join rows of scores of different lengths to one array, missing labels at -inf."""
    width = max((len(row) for row in scores), default=0)
    result = np.full((len(scores), width), -np.inf)
    for index, row in enumerate(scores):
        result[index, : len(row)] = row
    return result
