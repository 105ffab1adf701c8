"""Accuracy and its Wilson interval, and how answers spread over the classes, by hand and at the ends."""

from __future__ import annotations

import numpy as np
import pytest

from pseudo_label.accuracy import Accuracy, ClassBalance, accuracy_of, balance_of

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


def log(*probs: float) -> list[float]:
    return [float(np.log(p)) if p else -np.inf for p in probs]


def test_balance_by_hand() -> None:
    scores = np.array([log(0.5, 0.5, 0), log(0.25, 0.25, 0.5), log(1, 0, 0), log(0.1, 0.8, 0.1)])
    scores[2, 1:] = -50.0  # as good as nothing, but a label of the row
    found = balance_of(scores, ["a", "c", "a", "b"], ["a", "b", "b", "b"])
    entropies = [1.0, 1.5 * np.log(2) / np.log(3), 0.0, -(0.2 * np.log(0.1) + 0.8 * np.log(0.8)) / np.log(3)]
    assert found.entropy == pytest.approx(sum(entropies) / 4, abs=1e-9)
    assert found.largest_share == 0.5
    # Shares of answers: a 2/4, b 1/4, c 1/4; of right answers: a 1/4, b 3/4.
    assert found.share_drift == pytest.approx((1 / 4 + 2 / 4 + 1 / 4) / 2)


def test_no_rows_have_no_balance() -> None:
    assert balance_of(np.zeros((0, 3)), [], []) == ClassBalance(entropy=0.0, largest_share=0.0, share_drift=0.0)


def test_even_scores_have_all_the_entropy_there_is_and_one_answer_none() -> None:
    even = balance_of(np.zeros((4, 5)), list("abcd"), list("abcd"))
    assert even == ClassBalance(entropy=even.entropy, largest_share=0.25, share_drift=0.0)
    assert even.entropy == pytest.approx(1.0)
    sure = np.where(np.eye(4)[[0, 0, 0, 0]] > 0, 0.0, -1e4)
    assert balance_of(sure, ["a"] * 4, list("abcd")) == ClassBalance(entropy=0.0, largest_share=1.0, share_drift=0.75)


def test_labels_that_a_row_does_not_have_count_nothing() -> None:
    narrow = balance_of(np.array([log(0.3, 0.7), log(0.9, 0.1)]), ["b", "a"], ["b", "b"])
    wide = balance_of(np.array([log(0.3, 0, 0.7, 0), log(0, 0.9, 0, 0.1)]), ["b", "a"], ["b", "b"])
    assert narrow.entropy == pytest.approx(wide.entropy)
    assert (narrow.largest_share, narrow.share_drift) == (wide.largest_share, wide.share_drift) == (0.5, 0.5)


def test_a_row_with_one_label_has_no_entropy() -> None:
    assert balance_of(np.array([[3.0, -np.inf, -np.inf]]), ["a"], ["a"]) == ClassBalance(
        entropy=0.0, largest_share=1.0, share_drift=0.0
    )


def test_only_differences_of_scores_count() -> None:
    scores = np.random.default_rng(0).normal(0, 3, (6, 4))
    moved = scores + np.array([[1e5], [-1e5], [0], [7], [-3], [900]])
    one, other = (balance_of(s, list("aabbcd"), list("abbbcd")) for s in (scores, moved))
    assert other.entropy == pytest.approx(one.entropy, abs=1e-9)
    assert 0 < one.entropy < 1


def test_scores_are_left_as_they_were() -> None:
    scores = np.array([log(0.5, 0.5, 0)])
    balance_of(scores, ["a"], ["a"])
    assert scores.tolist() == [log(0.5, 0.5, 0)]


@pytest.mark.filterwarnings("error")
def test_impossible_labels_raise_no_warning() -> None:
    assert balance_of(np.array([log(0.5, 0, 0.5)]), ["a"], ["b"]).entropy == pytest.approx(1.0)
