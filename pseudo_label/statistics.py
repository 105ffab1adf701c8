"""Intervals, tests and rank correlations, by scipy; imported where they are first needed, since that takes most of a second."""

from __future__ import annotations

from collections.abc import Sequence


def wilson_interval(right: int, n: int) -> tuple[float, float]:
    """Return the 95 % interval of a share of `right` among n rows (Wilson 1927); [0, 1] where n is 0."""
    from scipy.stats import binomtest

    if n == 0:
        return 0.0, 1.0
    found = binomtest(right, n).proportion_ci(0.95, method="wilson")
    return float(found.low), float(found.high)


def even_split_p(one: int, other: int) -> float:
    """Return the two-sided exact p-value that counts of two equally likely outcomes are split evenly; 1 where both are 0."""
    from scipy.stats import binomtest

    return 1.0 if one + other == 0 else float(binomtest(one, one + other).pvalue)


def rank_correlation(first: Sequence[float], second: Sequence[float]) -> float | None:
    """Return Spearman's rank correlation of two lists of one length; None for fewer than 3 values, or where all are alike."""
    from scipy.stats import spearmanr

    if len(first) < 3 or len(set(first)) == 1 or len(set(second)) == 1:
        return None
    return float(spearmanr(first, second).statistic)
