"""Shortlists: of many labels, the few that a cheap teacher leaves to the model for each row.

The model's ranking of a row then costs as many labels as the list has, and cannot answer with one that the teacher finds unlikely.

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.tasks import TaskRow


def with_shortlists(rows: Sequence[TaskRow], scores_NC: FloatArray, count: int) -> list[TaskRow]:
    """Return the rows with the places of their `count` best labels by a teacher's scores, in the order of the labels."""
    places_NK = np.sort(_best_places(scores_NC, count), axis=1).tolist()
    return [replace(row, shortlist=tuple(places)) for row, places in zip(rows, places_NK, strict=True)]


def within_shortlists(scores_NC: FloatArray, teacher_NC: FloatArray, count: int) -> FloatArray:
    """Return scores [N, C] with all labels at -inf that are not among the `count` best ones by the teacher's scores."""
    result = np.full(scores_NC.shape, -np.inf)
    places_NK = _best_places(teacher_NC, count)
    np.put_along_axis(result, places_NK, np.take_along_axis(scores_NC, places_NK, axis=1), axis=1)
    return result


def _best_places(scores_NC: FloatArray, count: int) -> np.ndarray:
    return np.argsort(-scores_NC, axis=1, kind="stable")[:, :count]
