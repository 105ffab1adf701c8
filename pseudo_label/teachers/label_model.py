"""Several teachers to one: how right each is, estimated without labels, and the weighted sum of their scores.

Accuracies follow from how often teachers agree. Under independent errors that are spread evenly over the wrong labels, teachers of
accuracies p and q agree with probability 1 / C + C / (C - 1) (p - 1 / C)(q - 1 / C). Three agreements therefore give three
accuracies (the triplet method, Fu et al. 2020, arXiv:2002.11955, with one parameter for each teacher). Two teachers have one
agreement: there the weaker one is right about as often as it agrees with the other one's surest rows, which are nearly always
right, and the better one follows from the agreement, unless the weaker one is so near chance that it says little. Estimates are too
high as far as teachers make the same mistakes. A single teacher has none.

A teacher that is right with probability p among C labels weighs log(p (C - 1) / (1 - p)), which is what a vote is worth under
independent errors spread evenly over the wrong labels (Dawid and Skene 1979, with one parameter for each teacher).

Legend: N rows, C labels.
"""

from __future__ import annotations

import itertools
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray
from pseudo_label.decision import margins, softmax
from pseudo_label.teachers.contract import row_centred, spread_of

_SUREST_SHARE = 0.1
_LEAST_LEAD = 0.02  # above chance: a teacher at chance keeps a little weight, so that no weight is 0 or negative
_MOST = 0.98
_LEAST_TOLD = 0.08  # above chance: below it a weak teacher's agreement says nothing of the better one
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


def fit_combination(
    views: Mapping[str, FloatArray], weights: Mapping[str, float] | None = None, estimates: Mapping[str, float] | None = None
) -> Combination:
    """Fit a combination on standardised scores of unlabeled rows; `weights` absent follow from the estimated accuracies.

    `estimates` are given where these teachers have learnt from each other: their agreement says nothing then.
    """
    names = list(views)
    estimates = estimated_accuracies(views) if estimates is None else dict(estimates)
    n_labels = max((np.isfinite(view).sum(axis=1).mean() for view in views.values() if len(view)), default=2.0)
    if weights is None:
        raw = {name: vote_weight(estimates[name], n_labels) if estimates else 1.0 for name in names}
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
    n_labels = labels_of_a_row(views)
    answers = {name: view.argmax(axis=1) for name, view in views.items()}
    leads = {
        frozenset(pair): float((answers[pair[0]] == answers[pair[1]]).mean()) - 1 / n_labels
        for pair in itertools.combinations(names, 2)
    }
    if len(names) == 2:
        found = _of_two(views, answers, next(iter(leads.values())), n_labels)
    else:
        found = {name: _of_three(name, [other for other in names if other != name], leads, n_labels) for name in names}
    return {name: min(max(value, 1 / n_labels + _LEAST_LEAD), _MOST) for name, value in found.items()}


def labels_of_a_row(views: Mapping[str, FloatArray]) -> float:
    """Return how many labels a row has on average, at least 2."""
    return max(min(float(np.isfinite(view).sum(axis=1).mean()) for view in views.values()), 2.0)


def are_told(estimates: Mapping[str, float], n_labels: float) -> bool:
    """Say whether estimated accuracies say anything: none is near chance, where agreements tell of neither teacher."""
    return bool(estimates) and min(estimates.values()) - 1 / n_labels >= _LEAST_TOLD


def _of_two(views: Mapping[str, FloatArray], answers: Mapping[str, IntArray], lead: float, n_labels: float) -> dict[str, float]:
    """Estimate two teachers: the weaker one by the other's surest rows, the better one from how often both agree."""
    one, other = views
    same_N = answers[one] == answers[other]
    seen_by = {one: float(same_N[_surest(views[other])].mean()), other: float(same_N[_surest(views[one])].mean())}
    weaker, better = sorted((one, other), key=seen_by.__getitem__)
    weak_lead = seen_by[weaker] - 1 / n_labels
    told = 1 / n_labels + lead * (n_labels - 1) / n_labels / weak_lead if weak_lead > _LEAST_TOLD else 0.0
    return {weaker: seen_by[weaker], better: max(told, seen_by[better])}


def _of_three(name: str, others: Sequence[str], leads: Mapping[frozenset[str], float], n_labels: float) -> float:
    """Estimate one of three or more teachers: the median over pairs of the others."""
    values = []
    for one, other in itertools.combinations(others, 2):
        beside, to_one, to_other = (leads[frozenset(pair)] for pair in ((one, other), (name, one), (name, other)))
        if min(beside, to_one, to_other) > 0:
            values.append(1 / n_labels + np.sqrt((n_labels - 1) / n_labels * to_one * to_other / beside))
    return float(np.median(values)) if values else 0.0


def _surest(scores_NC: FloatArray) -> FloatArray:
    """Return the rows with the largest lead, from each answer the same share, so that no label speaks for all."""
    answers_N, lead_N = scores_NC.argmax(axis=1), margins(scores_NC)
    chosen = []
    for label in np.unique(answers_N):
        members = np.flatnonzero(answers_N == label)
        count = max(round(_SUREST_SHARE * len(members)), 1)
        chosen.append(members[np.argsort(-lead_N[members], kind="stable")[:count]])
    return np.concatenate(chosen)


def vote_weight(accuracy: float, n_labels: float) -> float:
    """Return the worth of a vote by a teacher of this accuracy."""
    return float(np.log(accuracy * (n_labels - 1) / (1 - accuracy)))


def _sharpness(scores_NC: FloatArray, wanted: float) -> float:
    """Return the factor under which the mean confidence comes closest to `wanted`."""
    found = np.asarray([softmax(scores_NC * factor).max(axis=1).mean() for factor in _TEMPERATURES])
    return float(_TEMPERATURES[np.abs(found - wanted).argmin()])
