"""Selection takes the most confident eligible rows, balanced over classes, and ends for any input."""

from __future__ import annotations

import math

import numpy as np
import numpy.typing as npt
import pytest

from pseudo_label.decision import margins
from pseudo_label.selection import SelectionConfig, agreement, select
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig
from pseudo_label.zero_shot import PromptKeys
from tests.support.every_case import for_every
from tests.support.naive_scoring import naive_prior_biases

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
@for_every(seed=range(10))
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


@for_every(seed=range(5))
def test_within_a_class_the_most_confident_rows_are_selected(seed: int) -> None:
    scores = scores_with([25, 40, 35], seed)
    chosen, margin, predicted = select(scores, all_of(scores), SelectionConfig(share=0.3)), margins(scores), scores.argmax(axis=1)
    for label in range(3):
        of_class = predicted == label
        assert margin[of_class & chosen].min() >= margin[of_class & ~chosen].max()


@for_every(seed=range(5))
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


def confidence_of(scores: npt.NDArray[np.float64]) -> list[float]:
    return [max(math.exp(s - max(row)) for s in row) / sum(math.exp(s - max(row)) for s in row) for row in scores.tolist()]


@BOTH
@pytest.mark.parametrize("least", [0.0, 0.5, 0.9, 0.999999, 1.0])
def test_no_row_below_the_least_confidence_is_selected_and_all_above_it_are(is_balanced: bool, least: float) -> None:
    scores = scores_with([30, 30])
    config = SelectionConfig(share=1.0, min_confidence=least, is_balanced=is_balanced)
    assert select(scores, all_of(scores), config).tolist() == [confidence >= least for confidence in confidence_of(scores)]


@BOTH
@pytest.mark.parametrize("least", [0.0, 0.3, 2 / 3, 1.0])
def test_no_row_below_the_least_agreement_is_selected_and_all_above_it_are(is_balanced: bool, least: float) -> None:
    scores = scores_with([30, 30])
    agreed = np.random.default_rng(3).integers(0, 4, 60) / 3
    config = SelectionConfig(share=1.0, min_agreement=least, is_balanced=is_balanced)
    assert select(scores, all_of(scores), config, agreed).tolist() == (agreed >= least).tolist()


@BOTH
def test_every_threshold_must_be_met(is_balanced: bool) -> None:
    scores = scores_with([30, 30])
    agreed = np.random.default_rng(3).random(60)
    config = SelectionConfig(share=1.0, min_margin=1.0, min_confidence=0.8, min_agreement=0.3, is_balanced=is_balanced)
    sure = np.asarray(confidence_of(scores)) >= 0.8
    wanted = (margins(scores) >= 1.0) & sure & (agreed >= 0.3)
    assert 0 < wanted.sum() < 60
    assert select(scores, all_of(scores), config, agreed).tolist() == wanted.tolist()


def test_rows_below_a_threshold_do_not_make_the_share_smaller() -> None:
    scores = scores_with([30, 30])
    config = SelectionConfig(share=0.5, min_margin=float(np.sort(margins(scores))[20]), is_balanced=False)
    assert select(scores, all_of(scores), config).sum() == 30


@pytest.mark.parametrize("per_class", [0, 1, 7, 1000])
@BOTH
def test_the_best_of_each_class_are_taken_whatever_the_share(per_class: int, is_balanced: bool) -> None:
    scores = scores_with([5, 60, 0, 15])
    margin, predicted = margins(scores), scores.argmax(axis=1)
    chosen = select(scores, all_of(scores), SelectionConfig(per_class=per_class, share=0.01, is_balanced=is_balanced))
    assert by_class(scores, chosen) == [min(count, per_class) for count in (5, 60, 0, 15)]
    for label in (0, 1, 3):
        kept, left = margin[chosen & (predicted == label)], margin[~chosen & (predicted == label)]
        assert min(kept, default=np.inf) >= max(left, default=-np.inf)


@pytest.mark.parametrize("max_rows", [0, 1, 10, 25, 1000])
def test_max_rows_leaves_the_surest_of_the_best_of_each_class(max_rows: int) -> None:
    scores = scores_with([5, 60, 0, 15])
    margin = margins(scores)
    best = select(scores, all_of(scores), SelectionConfig(per_class=10))
    chosen = select(scores, all_of(scores), SelectionConfig(per_class=10, max_rows=max_rows))
    assert not (chosen & ~best).any()
    assert chosen.sum() == min(max_rows, 25)
    assert min(margin[chosen], default=np.inf) >= max(margin[best & ~chosen], default=-np.inf)


@pytest.mark.parametrize("max_rows", [1, 2, 4, 5, 8])
def test_what_does_not_divide_evenly_goes_to_the_classes_with_the_surest_next_row(max_rows: int) -> None:
    scores = scores_with([30, 20, 10])
    margin, predicted = margins(scores), scores.argmax(axis=1)
    chosen = select(scores, all_of(scores), SelectionConfig(share=1.0, max_rows=max_rows))
    quota, rest = divmod(max_rows, 3)
    next_margins = [np.sort(margin[predicted == label])[::-1][quota] for label in range(3)]
    lucky = sorted(range(3), key=lambda label: -next_margins[label])[:rest]
    assert by_class(scores, chosen) == [quota + (label in lucky) for label in range(3)]


@for_every(seed=range(40))
def test_selection_of_anything_ends_within_its_limits(seed: int) -> None:
    random = np.random.default_rng(seed)
    n_rows, n_labels = int(random.integers(0, 40)), int(random.integers(1, 8))
    scores = random.integers(-3, 3, (n_rows, n_labels)).astype(float)
    scores[random.random(scores.shape) < 0.3] = -np.inf  # labels outside a beam, and places beyond a row's own candidates
    scores[:, 0] = np.where(np.isneginf(scores).all(axis=1), 0.0, scores[:, 0])
    eligible, agreed = random.random(n_rows) < 0.8, random.random(n_rows)
    config = SelectionConfig(
        share=float(random.random()),
        per_class=[None, 0, 3][seed % 3],
        max_rows=[None, 0, 5, 100][seed % 4],
        min_confidence=float(random.random()),
        min_agreement=float(random.random()),
        is_balanced=bool(seed % 2),
    )
    chosen = select(scores, eligible, config, agreed)
    assert not (chosen & ~eligible).any()
    assert config.max_rows is None or chosen.sum() <= config.max_rows
    if config.per_class is None:
        assert chosen.sum() <= round(config.share * float(eligible.sum()))
    else:
        assert max(by_class(scores, chosen), default=0) <= config.per_class
    assert all(confidence_of(scores)[row] >= config.min_confidence - 1e-12 for row in np.flatnonzero(chosen))


def keys_of(prompt: str, labels: npt.NDArray[np.float64]) -> PromptKeys:
    return PromptKeys(prompt=prompt, criterion="sum", labels_NC=labels)


def task_of(n_labels: int = 3, *, candidates: str | None = None) -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text")},
        label_words={} if candidates else {f"l{i}": f"l{i}" for i in range(n_labels)},
        prompts={"reference": PromptConfig(template="{text}{label}")},
        candidates=candidates,
    )


def test_agreement_is_the_share_of_prompts_whose_own_answer_is_the_decided_one() -> None:
    # Even classes: matching the prior changes no answer.
    votes = [[0, 1, 2, 0, 1, 2], [0, 1, 2, 1, 2, 0], [0, 2, 1, 2, 1, 0]]
    keys = [keys_of(str(i), np.eye(3)[choice] * 5.0) for i, choice in enumerate(votes)]
    decided = np.eye(3)[[0, 1, 2, 0, 1, 2]]
    assert agreement(decided, keys, task_of()).tolist() == pytest.approx([1, 2 / 3, 2 / 3, 1 / 3, 2 / 3, 1 / 3])


def test_a_prompt_votes_after_its_lean_was_taken_off() -> None:
    random = np.random.default_rng(0)
    scores = random.normal(size=(300, 3)) * 3
    leaning = keys_of("leaning", scores - 40 + np.array([0.0, 25.0, -25.0]))
    wanted = (scores + naive_prior_biases(scores.tolist(), [1 / 3] * 3)).argmax(axis=1)
    assert agreement(np.eye(3)[wanted], [leaning], task_of()).tolist() == [1.0] * 300
    assert agreement(np.eye(3)[(wanted + 1) % 3], [leaning], task_of()).tolist() == [0.0] * 300


def test_prompts_of_rows_with_their_own_candidates_vote_as_they_are() -> None:
    missing = np.array([[-1.0, -9.0, -np.inf], [-9.0, -1.0, -2.0], [-5.0, -np.inf, -np.inf]])
    other = np.array([[-9.0, -1.0, -np.inf], [-9.0, -1.0, -2.0], [-5.0, -np.inf, -np.inf]])
    keys = [keys_of("one", missing), keys_of("two", other)]
    assert agreement(missing, keys, task_of(candidates="candidates")).tolist() == [0.5, 1.0, 1.0]


@pytest.mark.filterwarnings("error")
def test_no_rows_agree_on_nothing() -> None:
    for n_labels, task in ((3, task_of()), (0, task_of(candidates="candidates"))):
        none = np.empty((0, n_labels))
        assert agreement(none, [keys_of("one", none)], task).tolist() == []


def test_classes_get_places_by_their_shares() -> None:
    scores = scores_with([40, 60, 20])
    chosen = select(scores, all_of(scores), SelectionConfig(share=0.5), shares_C=[0.6, 0.3, 0.1])
    assert by_class(scores, chosen) == [36, 18, 6]
    even = select(scores, all_of(scores), SelectionConfig(share=0.5))
    assert (even == select(scores, all_of(scores), SelectionConfig(share=0.5), shares_C=[1 / 3] * 3)).all()
