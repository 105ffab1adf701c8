"""Selecting pseudo-labels: the most confident rows, balanced over the predicted classes.

Legend: N rows, C labels.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from pseudo_label.decision import margins


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """`share` of the rows is kept; with `is_balanced`, the same number from each predicted class.

    A class that was predicted less often than its quota gives what it has; its places are not given to other classes, so that
    classes stay balanced. A class that was never predicted gives none, which the stage reports.
    """

    share: float = 0.5
    min_margin: float = 0.0
    max_rows: int | None = None
    is_balanced: bool = True


def select(scores_NC: FloatArray, eligible_N: npt.NDArray[np.bool_], config: SelectionConfig) -> npt.NDArray[np.bool_]:
    """Return which rows are selected; ends for any input, an empty one and empty classes included."""
    chosen = np.zeros(len(scores_NC), dtype=bool)
    if not len(scores_NC):
        return chosen
    predicted, margin = scores_NC.argmax(axis=1), margins(scores_NC)
    allowed = eligible_N & (margin >= config.min_margin)
    total = round(config.share * float(eligible_N.sum()))
    if config.max_rows is not None:
        total = min(total, config.max_rows)
    if not config.is_balanced:
        chosen[_best(np.flatnonzero(allowed), margin, total)] = True
        return chosen
    quota, rest = divmod(total, scores_NC.shape[1])
    runners_up: list[int] = []
    for label in range(scores_NC.shape[1]):
        members = _best(np.flatnonzero(allowed & (predicted == label)), margin, quota + 1)
        chosen[members[:quota]] = True
        runners_up.extend(members[quota:])
    # What does not divide evenly goes to the classes with the surest next row.
    chosen[_best(np.asarray(runners_up, np.int64), margin, rest)] = True
    return chosen


def _best(members: npt.NDArray[np.int64], margin: FloatArray, count: int) -> npt.NDArray[np.int64]:
    order = np.argsort(-margin[members], kind="stable")
    return members[order[:count]]
