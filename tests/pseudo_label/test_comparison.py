"""Paired comparisons: intervals against plain resampling of rows, p-values against the binomial distribution by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from pseudo_label.accuracy import balance_of
from pseudo_label.comparison import (
    AnswerShares,
    Difference,
    answer_shares,
    bootstrap_ci95,
    mcnemar_p,
    mean_over_tasks,
    paired_difference,
)

BITS = np.asarray([1, 1, 0, 1, 0, 1, 1, 0, 1, 1] * 12, dtype=np.float64)


def by_rows(values_N: np.ndarray, resamples: int, seed: int) -> tuple[float, float]:
    """Draw rows one by one: what `bootstrap_ci95` must agree with, up to the noise of drawing."""
    drawn_RN = np.random.default_rng(seed).integers(0, len(values_N), size=(resamples, len(values_N)))
    low, high = np.percentile(values_N[drawn_RN].mean(axis=1), (2.5, 97.5))
    return float(low), float(high)


@pytest.mark.parametrize(
    "values_N", [BITS, np.asarray([0.0, 1 / 3, 2 / 3, 1.0, 1.0] * 20), np.asarray([-1.0, 0.0, 0.0, 1.0, 1.0] * 30)]
)
def test_the_bootstrap_agrees_with_resampling_rows(values_N: np.ndarray) -> None:
    assert bootstrap_ci95(values_N) == pytest.approx(by_rows(values_N, 10_000, 1), abs=0.012)


def test_the_bootstrap_is_near_the_normal_interval_of_many_rows() -> None:
    many = np.tile(BITS, 20)
    half = 1.96 * many.std() / len(many) ** 0.5
    assert bootstrap_ci95(many) == pytest.approx((many.mean() - half, many.mean() + half), abs=0.002)


def test_the_bootstrap_is_the_same_each_time_and_knows_no_order_of_rows() -> None:
    shuffled = np.random.default_rng(5).permutation(BITS)
    assert bootstrap_ci95(BITS) == bootstrap_ci95(BITS) == bootstrap_ci95(shuffled)
    thirds = np.random.default_rng(6).integers(0, 4, 500) / 3
    assert bootstrap_ci95(thirds, seed=1) != bootstrap_ci95(thirds, seed=2)


def test_seed_means_that_cancel_leave_an_end_at_exactly_zero() -> None:
    thirds = np.asarray([1 / 3, 1 / 3, 1 / 3, -1.0] * 30 + [2 / 3, -1 / 3, -1 / 3] * 30)
    drawn = [bootstrap_ci95(thirds * scale, resamples=50, seed=seed) for scale in (1.0, 1e-3) for seed in range(200)]
    assert all(end == 0 or abs(end) > 1e-9 for ends in drawn for end in ends)


def test_rows_that_are_all_alike_leave_no_doubt() -> None:
    assert bootstrap_ci95(np.ones(7)) == (1.0, 1.0)


def test_a_difference_is_paired_by_row() -> None:
    hard_and_easy = np.asarray([0.0, 1.0] * 50)
    better = hard_and_easy.copy()
    better[0] = 1.0
    found = paired_difference(better, hard_and_easy)
    assert found.value == pytest.approx(0.01)
    assert found.ci95[1] - found.ci95[0] < 0.05, "unpaired, the two means alone would vary by 0.2"
    assert found.includes_zero


def test_a_difference_turns_its_sign_with_its_sides() -> None:
    one, other = BITS, np.roll(BITS, 1)
    there, back = paired_difference(one, other), paired_difference(other, one)
    assert there.value == pytest.approx(-back.value)
    assert there.ci95 == pytest.approx((-back.ci95[1], -back.ci95[0]), abs=0.02)


def test_a_model_against_itself_differs_by_nothing() -> None:
    assert paired_difference(BITS, BITS) == Difference(value=0.0, ci95=(0.0, 0.0))


@pytest.mark.parametrize(
    ("low", "high", "includes"), [(-0.1, 0.1, True), (0.0, 0.1, True), (-0.1, 0.0, True), (0.01, 0.1, False), (-0.1, -0.01, False)]
)
def test_an_interval_that_touches_zero_includes_it(low: float, high: float, includes: bool) -> None:
    assert Difference(value=0.0, ci95=(low, high)).includes_zero is includes


def test_other_numbers_of_rows_are_refused() -> None:
    with pytest.raises(ValueError, match="cannot be paired"):
        paired_difference(BITS, BITS[1:])


@pytest.mark.parametrize(
    ("only_here", "only_there", "p"),
    [
        (0, 0, 1.0),
        (5, 0, 2 / 32),  # 2 * C(5, 0) / 2^5
        (0, 5, 2 / 32),
        (8, 2, 2 * (1 + 10 + 45) / 1024),
        (3, 3, 1.0),  # twice the tail is over 1
        (1, 0, 1.0),
    ],
)
def test_mcnemar_is_the_binomial_test_by_hand(only_here: int, only_there: int, p: float) -> None:
    here = [True] * only_here + [False] * only_there + [True, True, False]
    there = [False] * only_here + [True] * only_there + [True, True, False]
    assert mcnemar_p(np.asarray(here), np.asarray(there)) == pytest.approx(p, rel=1e-12)


def test_mcnemar_takes_thousands_of_rows() -> None:
    here, there = np.zeros(6000, dtype=bool), np.zeros(6000, dtype=bool)
    here[:2600], there[2600:5000] = True, True
    assert mcnemar_p(here, there) == pytest.approx(2 * sum(math.comb(5000, k) for k in range(2401)) / 2**5000, rel=1e-12)
    assert mcnemar_p(here, there) == mcnemar_p(there, here)


def test_shares_are_those_of_the_accuracy_table() -> None:
    answers, gold = ["a", "a", "a", "b"], ["a", "b", "c", "b"]
    assert answer_shares(answers, gold) == AnswerShares(largest_share=0.75, share_drift=0.5)
    table = balance_of(np.zeros((4, 3)), answers, gold)
    assert (table.largest_share, table.share_drift) == (0.75, 0.5)


def test_the_mean_of_one_task_is_that_tasks_own() -> None:
    assert mean_over_tasks([BITS]) == Difference(value=float(BITS.mean()), ci95=bootstrap_ci95(BITS))


def test_a_mean_over_tasks_counts_tasks_alike_and_draws_rows_within_each() -> None:
    large, small = np.asarray([1.0, 1.0, 0.0, 1.0] * 100), np.asarray([0.0, 0.0, 1.0] * 20)
    found = mean_over_tasks([large, small])
    assert found.value == pytest.approx((0.75 + 1 / 3) / 2), "not 0.70, the mean over all rows"
    error = math.sqrt(large.var() / len(large) + small.var() / len(small)) / 2
    low, high = (found.value + sign * 1.96 * error for sign in (-1, 1))
    assert found.ci95 == pytest.approx((low, high), abs=0.008)
