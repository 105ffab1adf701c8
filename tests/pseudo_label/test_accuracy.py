"""Accuracy and its Wilson interval, by hand and at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from pseudo_label.accuracy import Accuracy, accuracy_of

Z = 1.959963984540054
ROUNDING = 1e-15


def with_right(right: int, n: int) -> Accuracy:
    return accuracy_of(["a"] * n, ["a"] * right + ["b"] * (n - right))


def test_accuracy_is_the_share_of_right_answers() -> None:
    result = accuracy_of(["a", "b", "c", "a"], ["a", "b", "b", "b"])
    assert (result.n, result.accuracy) == (4, 0.5)


def test_no_rows_know_nothing() -> None:
    assert accuracy_of([], []) == Accuracy(n=0, accuracy=0.0, ci95=(0.0, 1.0))


@pytest.mark.parametrize(
    ("right", "n", "low", "high"),
    [(8, 10, 0.4902, 0.9433), (50, 100, 0.4038, 0.5962), (1, 1, 0.2065, 1.0), (0, 10, 0.0, 0.2775), (10, 10, 0.7225, 1.0)],
)
def test_the_interval_is_wilsons(right: int, n: int, low: float, high: float) -> None:
    assert with_right(right, n).ci95 == pytest.approx((low, high), abs=5e-5)


@pytest.mark.parametrize(("right", "n"), [(1, 7), (8, 10), (499, 1000)])
def test_the_ends_are_where_the_score_test_just_rejects(right: int, n: int) -> None:
    share = right / n
    for end in with_right(right, n).ci95:
        assert abs(share - end) == pytest.approx(Z * (end * (1 - end) / n) ** 0.5)


@pytest.mark.parametrize("n", [1, 2, 9, 50])
def test_the_interval_holds_the_share_and_stays_within_zero_and_one(n: int) -> None:
    for right in range(n + 1):
        low, high = with_right(right, n).ci95
        assert 0.0 <= low < high <= 1.0
        assert low - ROUNDING <= right / n <= high + ROUNDING


def test_wrong_and_right_mirror_each_other() -> None:
    for right in range(11):
        low, high = with_right(right, 10).ci95
        assert with_right(10 - right, 10).ci95 == pytest.approx((1 - high, 1 - low))


def test_more_rows_make_the_interval_narrower() -> None:
    widths = [np.diff(with_right(n * 3 // 4, n).ci95).item() for n in (4, 40, 400, 4000)]
    assert widths == sorted(widths, reverse=True)


def test_answers_and_labels_of_different_length_are_refused() -> None:
    with pytest.raises(ValueError):
        accuracy_of(["a"], ["a", "b"])
