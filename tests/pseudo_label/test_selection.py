"""Selection takes the most confident eligible rows, balanced over classes, and ends for any input."""

from __future__ import annotations

import numpy as np
import numpy.typing as npt
import pytest

from pseudo_label.decision import margins
from pseudo_label.selection import SelectionConfig, select

BOTH = pytest.mark.parametrize("is_balanced", [True, False])
Mask = npt.NDArray[np.bool_]


def scores_with(counts: list[int], seed: int = 0) -> npt.NDArray[np.float64]:
    """Make shuffled rows of which `counts[c]` predict class c, each with another margin."""
    random = np.random.default_rng(seed)
    scores = -random.random((sum(counts), len(counts)))
    for row, label in enumerate(random.permutation(np.repeat(np.arange(len(counts)), counts))):
        scores[row, label] = random.random() * 5
    return scores


def all_of(scores: npt.NDArray[np.float64]) -> Mask:
    return np.ones(len(scores), dtype=bool)


def by_class(scores: npt.NDArray[np.float64], chosen: Mask) -> list[int]:
    return np.bincount(scores[chosen].argmax(axis=1), minlength=scores.shape[1]).tolist()


def test_each_class_gives_the_same_number() -> None:
    scores = scores_with([30, 50, 40])
    assert by_class(scores, select(scores, all_of(scores), SelectionConfig(share=0.5))) == [20, 20, 20]


def test_a_class_with_too_few_gives_what_it_has_and_others_keep_their_quota() -> None:
    scores = scores_with([5, 60, 55])
    assert by_class(scores, select(scores, all_of(scores), SelectionConfig(share=0.5))) == [5, 20, 20]


@pytest.mark.parametrize("counts", [[0, 30, 30], [60, 0, 0], [0, 0, 1]])
def test_an_empty_class_ends(counts: list[int]) -> None:
    scores = scores_with(counts)
    chosen = by_class(scores, select(scores, all_of(scores), SelectionConfig(share=0.5)))
    assert all(n == 0 for n, count in zip(chosen, counts, strict=True) if count == 0)
    assert sum(chosen) <= sum(counts)


@BOTH
@pytest.mark.parametrize("n_labels", [1, 4])
def test_an_empty_input_selects_nothing(is_balanced: bool, n_labels: int) -> None:
    chosen = select(np.empty((0, n_labels)), np.empty(0, dtype=bool), SelectionConfig(is_balanced=is_balanced))
    assert chosen.shape == (0,)


@BOTH
def test_without_eligible_rows_nothing_is_selected(is_balanced: bool) -> None:
    scores = scores_with([10, 10])
    config = SelectionConfig(share=1.0, is_balanced=is_balanced)
    assert not select(scores, np.zeros(20, dtype=bool), config).any()


@BOTH
@pytest.mark.parametrize("seed", range(10))
def test_a_row_that_is_not_eligible_is_never_selected(is_balanced: bool, seed: int) -> None:
    random = np.random.default_rng(seed)
    scores = random.normal(size=(int(random.integers(1, 60)), int(random.integers(1, 6))))
    eligible = random.random(len(scores)) < 0.5
    for share in (0.1, 0.5, 1.0):
        chosen = select(scores, eligible, SelectionConfig(share=share, is_balanced=is_balanced))
        assert not (chosen & ~eligible).any()


@BOTH
def test_the_whole_share_of_even_classes_takes_every_eligible_row(is_balanced: bool) -> None:
    scores = scores_with([12, 12, 12])
    assert select(scores, all_of(scores), SelectionConfig(share=1.0, is_balanced=is_balanced)).all()


@BOTH
def test_a_share_of_nothing_selects_nothing(is_balanced: bool) -> None:
    scores = scores_with([12, 12])
    assert not select(scores, all_of(scores), SelectionConfig(share=0.0, is_balanced=is_balanced)).any()


def test_the_share_is_of_the_eligible_rows() -> None:
    scores = scores_with([40, 40])
    eligible = np.arange(80) < 40
    assert select(scores, eligible, SelectionConfig(share=0.5, is_balanced=False)).sum() == 20


@pytest.mark.parametrize("seed", range(5))
def test_within_a_class_the_most_confident_rows_are_selected(seed: int) -> None:
    scores = scores_with([25, 40, 35], seed)
    chosen, margin, predicted = select(scores, all_of(scores), SelectionConfig(share=0.3)), margins(scores), scores.argmax(axis=1)
    for label in range(3):
        of_class = predicted == label
        assert margin[of_class & chosen].min() >= margin[of_class & ~chosen].max()


@pytest.mark.parametrize("seed", range(5))
def test_unbalanced_selection_takes_the_most_confident_rows_of_all(seed: int) -> None:
    scores = scores_with([5, 70, 25], seed)
    chosen, margin = select(scores, all_of(scores), SelectionConfig(share=0.4, is_balanced=False)), margins(scores)
    assert chosen.sum() == 40
    assert margin[chosen].min() >= margin[~chosen].max()


@BOTH
def test_no_row_below_the_least_margin_is_selected(is_balanced: bool) -> None:
    scores = scores_with([30, 30])
    config = SelectionConfig(share=1.0, min_margin=2.0, is_balanced=is_balanced)
    chosen = select(scores, all_of(scores), config)
    assert chosen.tolist() == (margins(scores) >= 2.0).tolist()
    assert not select(scores, all_of(scores), SelectionConfig(min_margin=1e9, is_balanced=is_balanced)).any()


@pytest.mark.parametrize("max_rows", [0, 1, 10, 1000])
def test_no_more_than_max_rows_are_selected_without_balance(max_rows: int) -> None:
    scores = scores_with([30, 20, 10])
    chosen = select(scores, all_of(scores), SelectionConfig(share=0.5, max_rows=max_rows, is_balanced=False))
    assert chosen.sum() == min(max_rows, 30)


@pytest.mark.parametrize("max_rows", [0, 3, 9])
def test_max_rows_that_divide_evenly_are_shared_by_the_classes(max_rows: int) -> None:
    scores = scores_with([30, 20, 10])
    chosen = select(scores, all_of(scores), SelectionConfig(share=0.5, max_rows=max_rows))
    assert by_class(scores, chosen) == [max_rows // 3] * 3


@BOTH
def test_the_order_of_rows_changes_nothing(is_balanced: bool) -> None:
    scores = scores_with([30, 20, 10])
    eligible = np.random.default_rng(1).random(60) < 0.8
    order = np.random.default_rng(2).permutation(60)
    config = SelectionConfig(share=0.4, is_balanced=is_balanced)
    assert select(scores[order], eligible[order], config).tolist() == select(scores, eligible, config)[order].tolist()


def test_one_label_only_is_selected_by_order() -> None:
    assert select(np.zeros((4, 1)), np.ones(4, dtype=bool), SelectionConfig(share=0.5)).tolist() == [True, True, False, False]
