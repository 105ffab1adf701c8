"""Coarse to fine: first the groups of a label tree, then the labels within; how the two are joined, and what each step loses.

Legend: N rows, C labels, G groups.

`sequential`: the best `beam` groups stay in the race, and the best label inside them wins by its own score. `marginal`: a label's
score is log P(group) + log P(label | group), both over the row's candidates, so that a sure label can save an unsure group;
labels outside the beam cannot win, but keep their score below the winner's, for margins.
"""

from __future__ import annotations

import enum
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from adapt.core.settings import Settings, setting
from adapt.core.spans import IntArray
from pseudo_label.tasks import TaskConfig

_LEAST_LEAD = 1e-9


class CoarseRule(enum.Enum):
    """How a label's score and its group's are joined."""

    SEQUENTIAL = "sequential"
    MARGINAL = "marginal"


@dataclass(frozen=True, kw_only=True)
class CoarseToFine(Settings):
    """How coarse-to-fine decides."""

    beam: int = setting(
        1, "Groups of the label tree that stay in the race.", least=1, unit="groups", hint="at least one group must be followed"
    )
    rule: CoarseRule = setting(
        CoarseRule.SEQUENTIAL, "How groups and labels decide together: one after the other, or by their joint probability."
    )


@dataclass(frozen=True, kw_only=True)
class StepLosses:
    """Where coarse-to-fine goes wrong on labelled rows, in rows, beside ranking all labels at once."""

    n: int
    right: int
    lost_at_coarse: int
    lost_at_fine: int
    right_flat: int
    mended: int
    spoilt: int


def groups_of_labels(task: TaskConfig) -> IntArray:
    """Return the place of each label's group in the task's tree."""
    place = {label: group for group, labels in enumerate((task.label_tree or {}).values()) for label in labels}
    return np.asarray([place[label] for label in task.labels], np.int64)


def followed_groups(groups_NG: FloatArray, beam: int) -> npt.NDArray[np.bool_]:
    """Return a boolean [N, G] array: the `beam` best groups of each row, the first of equals."""
    order = np.argsort(-groups_NG, axis=1, kind="stable")[:, :beam]
    followed = np.zeros(groups_NG.shape, dtype=bool)
    np.put_along_axis(followed, order, True, axis=1)
    return followed


def join_steps(labels_NC: FloatArray, groups_NG: FloatArray, group_of_label_C: IntArray, config: CoarseToFine) -> FloatArray:
    """Return scores [N, C] whose best label lies in a followed group.

    Sequential, the labels inside are lifted just so far that the best of them leads those outside by the lead of the last
    followed group over the next one: margins then say how sure both steps were.
    """
    inside_NC = followed_groups(groups_NG, config.beam)[:, group_of_label_C]
    if config.rule is CoarseRule.MARGINAL:
        log_groups = _log_softmax(groups_NG)
        joint = np.full(labels_NC.shape, -np.inf)
        for group in range(groups_NG.shape[1]):
            members = group_of_label_C == group
            joint[:, members] = log_groups[:, group, None] + _log_softmax(labels_NC[:, members])
        best_inside = np.where(inside_NC, joint, -np.inf).max(axis=1, keepdims=True)
        return np.where(inside_NC, joint, np.minimum(joint, best_inside - _LEAST_LEAD))
    ordered = -np.sort(-groups_NG, axis=1)
    if config.beam >= groups_NG.shape[1]:
        return labels_NC
    lead = ordered[:, config.beam - 1] - ordered[:, config.beam]
    best_inside = np.where(inside_NC, labels_NC, -np.inf).max(axis=1)
    best_outside = np.where(inside_NC, -np.inf, labels_NC).max(axis=1)
    with np.errstate(invalid="ignore"):
        lift = np.maximum(best_outside - best_inside + np.maximum(lead, _LEAST_LEAD), 0.0)
    return labels_NC + lift[:, None] * inside_NC


def step_losses(
    joined_NC: FloatArray, flat_NC: FloatArray, groups_NG: FloatArray, gold_N: Sequence[str], task: TaskConfig, config: CoarseToFine
) -> StepLosses:
    """Count what the coarse and the fine step lose on labelled rows, and how the flat ranking does on the same ones."""
    gold = np.asarray([task.labels.index(label) for label in gold_N], np.int64)
    kept = followed_groups(groups_NG, config.beam)[np.arange(len(gold)), groups_of_labels(task)[gold]]
    right, flat = joined_NC.argmax(axis=1) == gold, flat_NC.argmax(axis=1) == gold
    return StepLosses(
        n=len(gold),
        right=int(right.sum()),
        lost_at_coarse=int((~kept).sum()),
        lost_at_fine=int((kept & ~right).sum()),
        right_flat=int(flat.sum()),
        mended=int((right & ~flat).sum()),
        spoilt=int((flat & ~right).sum()),
    )


def _log_softmax(scores: FloatArray) -> FloatArray:
    top = scores.max(axis=1, keepdims=True)
    with np.errstate(invalid="ignore", divide="ignore"):
        shifted = np.where(np.isfinite(top), scores - top, -np.inf)
        log_probs = shifted - np.log(np.exp(shifted).sum(axis=1, keepdims=True))
    return np.where(np.isfinite(top), log_probs, -np.inf)
