"""Selecting pseudo-labels: the most confident rows, balanced over the predicted classes.

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.core.errors import ConfigError
from adapt.core.scorer import FloatArray
from pseudo_label.decision import margins, match_prior, softmax
from pseudo_label.tasks import TaskConfig
from pseudo_label.zero_shot import PromptKeys

_ROUNDING = 1e-9  # so that 10 places for thirds of 30 are 10


@dataclass(frozen=True, kw_only=True)
class SelectionConfig:
    """`share` of the rows is kept; with `is_balanced`, the same number from each predicted class; or the best `per_class` of each.

    Where the task has a prior, classes get places by their shares instead.

    Before that, rows below a threshold go: `min_margin` (lead of the best label), `min_confidence` (its probability),
    `min_agreement` (share of prompts that give the same label by themselves). A class that was predicted less often than its
    quota gives what it has; its places are not given to other classes, so that classes stay balanced. A class that was never
    predicted gives none, which the stage reports.
    """

    share: float = 0.5
    per_class: int | None = None
    min_margin: float = 0.0
    min_confidence: float = 0.0
    min_agreement: float = 0.0
    max_rows: int | None = None
    is_balanced: bool = True

    def __post_init__(self) -> None:
        shares = {"share": self.share, "min_confidence": self.min_confidence, "min_agreement": self.min_agreement}
        wrong = [f"{name}={value} is not between 0 and 1" for name, value in shares.items() if not 0 <= value <= 1]
        counts = {"per_class": self.per_class, "max_rows": self.max_rows}
        wrong += [f"{name}={count} is less than 0" for name, count in counts.items() if count is not None and count < 0]
        if wrong:
            raise ConfigError("; ".join(wrong))


def select(
    scores_NC: FloatArray,
    eligible_N: npt.NDArray[np.bool_],
    config: SelectionConfig,
    agreement_N: FloatArray | None = None,
    shares_C: Sequence[float] | None = None,
) -> npt.NDArray[np.bool_]:
    """Return which rows are selected; ends for any input, an empty one and empty classes included.

    `shares_C` are the classes' shares of the places (absent: all alike).
    """
    chosen = np.zeros(len(scores_NC), dtype=bool)
    if not len(scores_NC):
        return chosen
    predicted, margin = scores_NC.argmax(axis=1), margins(scores_NC)
    allowed = eligible_N & (margin >= config.min_margin)
    if config.min_confidence > 0:
        allowed &= softmax(scores_NC).max(axis=1) >= config.min_confidence
    if config.min_agreement > 0:
        assert agreement_N is not None, "a threshold on agreement needs the agreements"
        allowed &= agreement_N >= config.min_agreement
    total = round(config.share * float(eligible_N.sum()))
    if config.max_rows is not None:
        total = min(total, config.max_rows)
    if not config.is_balanced and config.per_class is None:
        chosen[_best(np.flatnonzero(allowed), margin, total)] = True
        return chosen
    n_classes = scores_NC.shape[1]
    shares = np.full(n_classes, 1 / n_classes) if shares_C is None else np.asarray(shares_C)
    quotas = np.floor(total * shares + _ROUNDING).astype(np.int64)
    rest = total - int(quotas.sum())
    if config.per_class is not None:
        quotas, rest = np.full(n_classes, config.per_class), 0
    runners_up: list[int] = []
    for label, quota in enumerate(quotas.tolist()):
        members = _best(np.flatnonzero(allowed & (predicted == label)), margin, quota + 1)
        chosen[members[:quota]] = True
        runners_up.extend(members[quota:])
    # What does not divide evenly goes to the classes with the surest next row.
    chosen[_best(np.asarray(runners_up, np.int64), margin, rest)] = True
    if config.per_class is not None and config.max_rows is not None:
        surest = _best(np.flatnonzero(chosen), margin, config.max_rows)
        chosen[:] = False
        chosen[surest] = True
    return chosen


def agreement(scores_NC: FloatArray, keys: Sequence[PromptKeys], task: TaskConfig, views: Sequence[FloatArray] = ()) -> FloatArray:
    """Return the share of votes [N] for the decided label: of prompts, after matching the prior, and of other teachers' `views`."""
    if not len(scores_NC):
        return np.empty(0)
    predicted = scores_NC.argmax(axis=1)
    shares = task.shares() if task.candidates is None else None
    votes = [_own_choice(k.labels_NC, shares) == predicted for k in keys]
    votes += [view_NC.argmax(axis=1) == predicted for view_NC in views]
    return np.asarray(np.mean(votes, axis=0, dtype=float))


def _own_choice(keys_NC: FloatArray, shares: Sequence[float] | None) -> npt.NDArray[np.int64]:
    if shares is None:
        return np.asarray(keys_NC.argmax(axis=1))
    whole_NC = keys_NC[np.isfinite(keys_NC).all(axis=1)]  # rows with a shortlist say little of the other labels
    return np.asarray((keys_NC + match_prior(whole_NC, np.asarray(shares))).argmax(axis=1))


def _best(members: npt.NDArray[np.int64], margin: FloatArray, count: int) -> npt.NDArray[np.int64]:
    order = np.argsort(-margin[members], kind="stable")
    return members[order[:count]]
