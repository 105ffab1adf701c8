"""Comparing models on the same labelled rows: bootstrap intervals over rows and McNemar's exact test.

Correctness by row flows in (0 or 1, or its mean over seeds), intervals and p-values flow out. Rows are drawn, models are not: an
interval says how far a result depends on the rows that happened to be measured, and two models are compared on the same drawn
rows, so that what is hard for both cancels out. How far it depends on the seed shows in the seeds' own values.

Sources: the percentile bootstrap, Efron 1979 (Annals of Statistics 7, 1-26); paired over test rows, Koehn 2004 (EMNLP, section
4); McNemar 1947 (Psychometrika 12, 153-157), here as the exact binomial test over the rows on which the two differ.

Legend: N rows, U distinct values, R resamples.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from adapt.core.scorer import FloatArray
from pseudo_label.statistics import even_split_p

RESAMPLES = 10_000
_SEED = 0
_PERCENTILES = (2.5, 97.5)
_DIGITS = 12  # sums of thirds that cancel leave 1e-17 behind, and an end at 0 has to be 0


@dataclass(frozen=True, kw_only=True)
class Difference:
    """A difference of two shares (-1 to 1) with its 95 % interval."""

    value: float
    ci95: tuple[float, float]

    @property
    def includes_zero(self) -> bool:
        return self.ci95[0] <= 0 <= self.ci95[1]


@dataclass(frozen=True, kw_only=True)
class AnswerShares:
    """`largest_share` and `share_drift` as in `accuracy.ClassBalance`, from the answers only."""

    largest_share: float
    share_drift: float


def bootstrap_ci95(values_N: FloatArray, resamples: int = RESAMPLES, seed: int = _SEED) -> tuple[float, float]:
    """Return the 95 % percentile interval of the mean over rows drawn with replacement.

    The values are few (0, 1 and, over seeds, fractions), and a resample decides only how often each occurs: it is drawn as a
    multinomial count, which is the same distribution as drawing N rows, in R x U numbers instead of R x N. N is at least 1.
    """
    return _interval(_means_R(values_N, resamples, np.random.default_rng(seed)))


def paired_difference(values_N: FloatArray, baseline_N: FloatArray, resamples: int = RESAMPLES, seed: int = _SEED) -> Difference:
    """Compare the means of two models over the same N rows: `values_N` minus `baseline_N`, resampled in pairs.

    Raises:
        ValueError: the numbers of rows differ.
    """
    if values_N.shape != baseline_N.shape:
        raise ValueError(f"{values_N.shape} and {baseline_N.shape} values cannot be paired")
    gains_N = np.asarray(values_N - baseline_N, dtype=np.float64)
    return Difference(value=float(gains_N.mean()), ci95=bootstrap_ci95(gains_N, resamples, seed))


def mean_over_tasks(values: Sequence[FloatArray], resamples: int = RESAMPLES, seed: int = _SEED) -> Difference:
    """Return the mean of several tasks' means, each task counting the same, with its interval: rows are drawn within each task.

    `values` are one array over the rows of each task: correctness, or gains over a baseline. The tasks are those there are: the
    interval says nothing of other tasks.
    """
    rng = np.random.default_rng(seed)
    means_R = np.mean([_means_R(np.asarray(values_N, dtype=np.float64), resamples, rng) for values_N in values], axis=0)
    return Difference(value=float(np.mean([values_N.mean() for values_N in values])), ci95=_interval(means_R))


def best_unadapted(right: Mapping[tuple[str, str], FloatArray]) -> tuple[str, str] | None:
    """Return the (model, method) that answers most rows rightly among those that need no adaptation; the first of equal ones.

    `right` says by (model, method) which rows were answered rightly; the model "adapted" is the only one that was adapted. None
    where there is no other.
    """
    known = [who for who in right if who[0] != "adapted"]
    return max(known, key=lambda who: float(right[who].mean()), default=None)


def mcnemar_p(right_N: npt.NDArray[np.bool_], baseline_right_N: npt.NDArray[np.bool_]) -> float:
    """Return the two-sided exact p-value: are the rows that only one model gets right split evenly between the two?"""
    only_here = int(np.count_nonzero(right_N & ~baseline_right_N))
    only_there = int(np.count_nonzero(~right_N & baseline_right_N))
    return even_split_p(only_here, only_there)


def answer_shares(answers: Sequence[str], gold: Sequence[str]) -> AnswerShares:
    """Measure how answers spread over the classes, beside the right answers of the same length (at least 1)."""
    n = len(gold)
    given, right = Counter(answers), Counter(gold)
    drift = sum(abs(given[name] - right[name]) for name in given | right) / (2 * n)
    return AnswerShares(largest_share=max(given.values()) / n, share_drift=drift)


def _means_R(values_N: FloatArray, resamples: int, rng: np.random.Generator) -> FloatArray:
    """Return the mean of each resample."""
    assert len(values_N), "no rows to draw from"
    distinct_U, counts_U = np.unique(values_N, return_counts=True)
    n = int(counts_U.sum())
    drawn_RU = rng.multinomial(n, counts_U / n, size=resamples)
    return np.asarray(drawn_RU @ distinct_U / n, dtype=np.float64)


def _interval(means_R: FloatArray) -> tuple[float, float]:
    low, high = np.percentile(means_R, _PERCENTILES)
    return round(float(low), _DIGITS), round(float(high), _DIGITS)
