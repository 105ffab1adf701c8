"""Selecting pseudo-labels: the most confident rows, balanced over the predicted classes.

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from adapt.core.settings import Settings, setting
from pseudo_label.decision import margins, match_prior, softmax
from pseudo_label.tasks import TaskConfig
from pseudo_label.zero_shot import PromptKeys

_ROUNDING = 1e-9  # so that 10 places for thirds of 30 are 10


@dataclass(frozen=True, kw_only=True)
class SelectionConfig(Settings):
    """Which pseudo-labels are trained on.

    Rows below a threshold go first. A class that was predicted less often than its quota gives what it has; its places are not
    given to other classes, so that classes stay balanced. Where the task has a prior, classes get places by their shares of it. A
    class that was never predicted gives none, which the stage reports.
    """

    share: float = setting(0.5, "Share of the rows that is kept, the most confident first.", least=0, most=1)
    per_class: int | None = setting(
        None, "Keeps so many of the best rows of each predicted class instead of a share.", least=0, unit="rows"
    )
    min_margin: float = setting(0.0, "Least lead of the best label's score over the next one.", hint="0 asks for none")
    min_confidence: float = setting(0.0, "Least probability of the best label.", least=0, most=1)
    min_agreement: float = setting(0.0, "Least share of prompts and other teachers with the same label.", least=0, most=1)
    max_rows: int | None = setting(None, "Most rows that are selected.", least=0, unit="rows", hint="null takes all")
    is_balanced: bool = setting(True, "Takes the same number of rows from each predicted class.")


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
