"""Several teachers to one: how right each is, estimated without labels, and the sum of their scores weighted by that.

A teacher's accuracy is estimated by the others' surest rows: where another teacher is surest, it is nearly always right, so a
teacher is right about as often as it agrees with it there. The estimate is a lower bound as far as the other errs on those rows
too, and it is too high as far as both make the same mistakes. A single teacher has no estimate.

A teacher that is right with probability p among C labels weighs log(p (C - 1) / (1 - p)), which is what a vote is worth under
independent errors spread evenly over the wrong labels (Dawid and Skene 1979, with one parameter for each teacher).

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field

import numpy as np

from adapt.core.scorer import FloatArray
from pseudo_label.decision import margins, softmax
from pseudo_label.teachers.contract import row_centred, spread_of

_SUREST_SHARE = 0.1
_LEAST_LEAD = 0.02  # above chance: a teacher at chance keeps a little weight, so that no weight is 0 or negative
_MOST = 0.98
_TEMPERATURES = np.geomspace(0.05, 20.0, 200)


@dataclass(frozen=True, kw_only=True)
class Combination:
    """How teachers are summed: weights of mean 1, the accuracies that they follow from, the sum's spread, and its sharpness.

    Scores times `sharpness` have a mean confidence equal to the best teacher's estimated accuracy.
    """

    weights: dict[str, float]
    estimates: dict[str, float] = field(default_factory=dict)
    spread: float = 1.0
    sharpness: float = 1.0

    def apply(self, views: Mapping[str, FloatArray]) -> FloatArray:
        """Return the combined scores [N, C]."""
        total = sum(weight * views[name] for name, weight in self.weights.items())
        return np.asarray(row_centred(np.asarray(total)) / self.spread * self.sharpness)


def fit_combination(views: Mapping[str, FloatArray], weights: Mapping[str, float] | None = None) -> Combination:
    """Fit a combination on standardised scores of unlabeled rows; `weights` absent follow from the estimated accuracies."""
    names = list(views)
    estimates = estimated_accuracies(views)
    n_labels = max((np.isfinite(view).sum(axis=1).mean() for view in views.values() if len(view)), default=2.0)
    if weights is None:
        raw = {name: _vote_weight(estimates[name], n_labels) if estimates else 1.0 for name in names}
    else:
        raw = {name: float(weights.get(name, 1.0)) for name in names}
    mean = sum(raw.values()) / len(raw)
    scaled = {name: value / mean for name, value in raw.items()}
    total = np.asarray(sum(scaled[name] * views[name] for name in names))
    spread = spread_of(total)
    sharpness = _sharpness(row_centred(total) / spread, max(estimates.values())) if estimates and len(total) else 1.0
    return Combination(weights=scaled, estimates=estimates, spread=spread, sharpness=sharpness)


def estimated_accuracies(views: Mapping[str, FloatArray]) -> dict[str, float]:
    """Return each teacher's estimated accuracy, at least a little above chance; none where there is one teacher or no row."""
    names = list(views)
    if len(names) < 2 or not len(views[names[0]]):
        return {}
    answers = {name: view.argmax(axis=1) for name, view in views.items()}
    surest = {name: _surest(view) for name, view in views.items()}
    chance = 1.0 / max(float(np.isfinite(views[names[0]]).sum(axis=1).mean()), 2.0)
    estimates = {}
    for name in names:
        agreed = [float((answers[name] == answers[other])[surest[other]].mean()) for other in names if other != name]
        estimates[name] = min(max([*agreed, chance + _LEAST_LEAD]), _MOST)
    return estimates


def _surest(scores_NC: FloatArray) -> FloatArray:
    """Return the rows with the largest lead, from each answer the same share, so that no label speaks for all."""
    answers_N, lead_N = scores_NC.argmax(axis=1), margins(scores_NC)
    chosen = []
    for label in np.unique(answers_N):
        members = np.flatnonzero(answers_N == label)
        count = max(round(_SUREST_SHARE * len(members)), 1)
        chosen.append(members[np.argsort(-lead_N[members], kind="stable")[:count]])
    return np.concatenate(chosen)


def _vote_weight(accuracy: float, n_labels: float) -> float:
    return float(np.log(accuracy * (n_labels - 1) / (1 - accuracy)))


def _sharpness(scores_NC: FloatArray, wanted: float) -> float:
    """Return the factor under which the mean confidence comes closest to `wanted`."""
    found = np.asarray([softmax(scores_NC * factor).max(axis=1).mean() for factor in _TEMPERATURES])
    return float(_TEMPERATURES[np.abs(found - wanted).argmin()])
