"""Coarse to fine against a naive walk over each row: follow the best groups, then decide between the labels inside."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np
import pytest

from adapt.core.errors import ConfigError
from adapt.core.scorer import FloatArray
from pseudo_label.coarse_to_fine import (
    CoarseRule,
    CoarseToFine,
    StepLosses,
    followed_groups,
    groups_of_labels,
    join_steps,
    step_losses,
)
from pseudo_label.decision import margins, softmax
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig
from tests.support.every_case import for_every

BEAMS = for_every(beam=[1, 2, 3, 100])
SEEDS = for_every(seed=range(8))
MARGINAL = CoarseRule.MARGINAL


@dataclass(frozen=True)
class Case:
    """A task with a random tree of 3 to 6 groups (some of one label), and random scores of rows."""

    task: TaskConfig
    labels_NC: FloatArray
    groups_NG: FloatArray

    @property
    def group_of_label(self) -> list[int]:
        assert self.task.label_tree is not None
        groups = list(self.task.label_tree.values())
        return [next(g for g, members in enumerate(groups) if label in members) for label in self.task.labels]


def case(seed: int, n_rows: int = 12, *, has_ties: bool = False) -> Case:
    random = np.random.default_rng(seed)
    n_groups = int(random.integers(3, 7))
    n_labels = n_groups + int(random.integers(0, 9))
    places = random.permutation(np.concatenate([np.arange(n_groups), random.integers(0, n_groups, n_labels - n_groups)]))
    labels = [f"l{i}" for i in range(n_labels)]
    tree = {f"g{g}": [label for label, place in zip(labels, places, strict=True) if place == g] for g in range(n_groups)}

    def draw(size: tuple[int, int]) -> FloatArray:
        return random.integers(0, 3, size).astype(float) if has_ties else np.asarray(random.normal(size=size) * 4 - 9)

    return Case(task_of(labels, tree), draw((n_rows, n_labels)), draw((n_rows, n_groups)))


def task_of(labels: list[str], tree: dict[str, list[str]]) -> TaskConfig:
    return TaskConfig(
        name="planted",
        fields={"text": FieldConfig(path="text")},
        label_words={label: label for label in labels},
        prompts={"reference": PromptConfig(template="{text}{label}")},
        label_tree=tree,
    )


def joined(given: Case, beam: int, rule: CoarseRule = CoarseRule.SEQUENTIAL) -> FloatArray:
    return join_steps(given.labels_NC, given.groups_NG, groups_of_labels(given.task), CoarseToFine(beam=beam, rule=rule))


def naive_followed(groups: list[float], beam: int) -> list[int]:
    """Return the best groups, the first of equals before the others."""
    return sorted(range(len(groups)), key=lambda g: (-groups[g], g))[:beam]


def naive_log_prob(scores: list[float], place: int) -> float:
    top = max(scores)
    return scores[place] - top - math.log(sum(math.exp(score - top) for score in scores))


@SEEDS
def test_each_label_belongs_to_the_group_that_lists_it(seed: int) -> None:
    given = case(seed)
    assert groups_of_labels(given.task).tolist() == given.group_of_label


@SEEDS
@BEAMS
@for_every(has_ties=[False, True])
def test_the_best_groups_are_followed(seed: int, beam: int, has_ties: bool) -> None:
    given = case(seed, has_ties=has_ties)
    for row, found in zip(given.groups_NG.tolist(), followed_groups(given.groups_NG, beam), strict=True):
        assert sorted(np.flatnonzero(found).tolist()) == sorted(naive_followed(row, beam))


@SEEDS
@BEAMS
@for_every(has_ties=[False, True])
def test_sequential_answers_with_the_best_label_inside_the_followed_groups(seed: int, beam: int, has_ties: bool) -> None:
    given = case(seed, has_ties=has_ties)
    places = given.group_of_label
    for labels, groups, found in zip(given.labels_NC.tolist(), given.groups_NG.tolist(), joined(given, beam), strict=True):
        inside = [c for c, group in enumerate(places) if group in naive_followed(groups, beam)]
        assert int(found.argmax()) == max(inside, key=lambda c: (labels[c], -c))


@SEEDS
@BEAMS
def test_sequential_lifts_the_labels_inside_no_further_than_the_lead_of_their_groups(seed: int, beam: int) -> None:
    given = case(seed)
    places = given.group_of_label
    for labels, groups, found in zip(given.labels_NC.tolist(), given.groups_NG.tolist(), joined(given, beam), strict=True):
        followed = naive_followed(groups, beam)
        inside = [c for c, group in enumerate(places) if group in followed]
        outside = [c for c in range(len(places)) if c not in inside]
        lifts = [found[c] - labels[c] for c in inside]
        assert lifts == pytest.approx([lifts[0]] * len(lifts))
        assert found[outside].tolist() == [labels[c] for c in outside]
        if not outside:
            assert lifts[0] == 0
            continue
        lead = min(groups[g] for g in followed) - max(score for g, score in enumerate(groups) if g not in followed)
        flat_lead = max(labels[c] for c in inside) - max(labels[c] for c in outside)
        assert lifts[0] >= 0
        assert max(found[inside]) - max(found[outside]) == pytest.approx(max(lead, flat_lead), abs=1e-8)


@SEEDS
@BEAMS
def test_marginal_adds_the_log_probabilities_of_group_and_label(seed: int, beam: int) -> None:
    given = case(seed)
    places = given.group_of_label
    for labels, groups, found in zip(
        given.labels_NC.tolist(), given.groups_NG.tolist(), joined(given, beam, MARGINAL), strict=True
    ):
        followed = naive_followed(groups, beam)
        wanted = []
        for label, group in enumerate(places):
            members = [c for c, other in enumerate(places) if other == group]
            within = naive_log_prob([labels[c] for c in members], members.index(label))
            wanted.append(naive_log_prob(groups, group) + within)
        inside = [label for label, group in enumerate(places) if group in followed]
        best = max(wanted[label] for label in inside)
        for label, score in enumerate(wanted):
            assert found[label] == pytest.approx(score if label in inside else min(score, best), abs=1e-8)
            assert label in inside or found[label] < best  # in the race for margins, never for the answer


def test_marginal_margins_know_how_sure_the_coarse_step_was_also_in_a_group_of_one_label() -> None:
    labels, groups = np.array([[-5.0, -6, -1], [-1, -9, -5]]), np.array([[-9.0, -1], [-1, -1.1]])
    scores = join_steps(labels, groups, np.array([0, 0, 1]), CoarseToFine(rule=CoarseRule.MARGINAL))
    assert scores.argmax(axis=1).tolist() == [2, 0]
    sure, unsure = margins(scores)
    assert sure == pytest.approx(8 + math.log(1 + math.exp(-1)))
    assert unsure == pytest.approx(0.1 - math.log(1 + math.exp(-8)), abs=1e-6)


@SEEDS
@BEAMS
def test_marginal_probabilities_sum_to_those_of_the_followed_groups(seed: int, beam: int) -> None:
    given = case(seed)
    wanted = np.where(followed_groups(given.groups_NG, beam), softmax(given.groups_NG), 0).sum(axis=1)
    inside = followed_groups(given.groups_NG, beam)[:, given.group_of_label]
    sums = np.where(inside, np.exp(joined(given, beam, MARGINAL)), 0).sum(axis=1)
    assert sums == pytest.approx(wanted)
    if beam >= given.groups_NG.shape[1]:
        assert sums == pytest.approx(np.ones(len(sums)))


@SEEDS
@BEAMS
@pytest.mark.parametrize("rule", list(CoarseRule))
@pytest.mark.filterwarnings("error")
def test_labels_outside_need_no_scores(seed: int, beam: int, rule: CoarseRule) -> None:
    given = case(seed)
    inside_NC = followed_groups(given.groups_NG, beam)[:, given.group_of_label]
    lazy = Case(given.task, np.where(inside_NC, given.labels_NC, -np.inf), given.groups_NG)
    all_scored, some_scored = joined(given, beam, rule), joined(lazy, beam, rule)
    assert not np.isnan(some_scored).any()
    assert some_scored.argmax(axis=1).tolist() == all_scored.argmax(axis=1).tolist()
    assert np.isneginf(some_scored[~inside_NC]).all()
    if rule is MARGINAL:
        assert some_scored[inside_NC] == pytest.approx(all_scored[inside_NC])


@pytest.mark.parametrize("rule", list(CoarseRule))
@pytest.mark.filterwarnings("error")
def test_no_rows_are_joined(rule: CoarseRule) -> None:
    given = case(0, n_rows=0)
    for beam in (1, 2, 100):
        assert joined(given, beam, rule).shape == (0, len(given.task.labels))


def test_a_beam_over_all_groups_ranks_as_if_there_were_none() -> None:
    given = case(1)
    assert (joined(given, given.groups_NG.shape[1]) == given.labels_NC).all()


def test_a_wider_beam_saves_a_label_whose_group_came_second() -> None:
    task = task_of(["a", "b", "c"], {"x": ["a"], "y": ["b"], "z": ["c"]})
    given = Case(task, np.array([[-3.0, -1.0, -0.5]]), np.array([[-1.0, -1.1, -9.0]]))
    answers = {beam: task.labels[int(joined(given, beam)[0].argmax())] for beam in (1, 2, 3)}
    assert answers == {1: "a", 2: "b", 3: "c"}


def test_marginal_lets_a_sure_label_save_an_unsure_group() -> None:
    task = task_of(["a", "b", "c", "d"], {"x": ["a", "b"], "y": ["c", "d"]})
    given = Case(task, np.array([[-1.0, -1.0, -1.0, -9.0]]), np.log([[0.55, 0.45]]))
    assert task.labels[int(joined(given, 1, MARGINAL)[0].argmax())] == "a"
    assert np.exp(joined(given, 2, MARGINAL)[0]) == pytest.approx([0.275, 0.275, 0.45, 0.0], abs=1e-3)


def test_margins_say_how_sure_the_coarse_step_was() -> None:
    task = task_of(["a", "b"], {"x": ["a"], "y": ["b"]})
    for lead in (0.5, 2.0, 7.0):
        scores = joined(Case(task, np.array([[-5.0, -1.0]]), np.array([[-1.0, -1.0 - lead]])), 1)
        assert margins(scores) == pytest.approx([lead])


@pytest.mark.parametrize("beam", [0, -1])
def test_at_least_one_group_must_be_followed(beam: int) -> None:
    with pytest.raises(ConfigError, match=f"beam: {beam} is out of range; give 1 or more"):
        CoarseToFine(beam=beam)


def losses_of(given: Case, gold: list[str], config: CoarseToFine) -> StepLosses:
    found = join_steps(given.labels_NC, given.groups_NG, groups_of_labels(given.task), config)
    return step_losses(found, given.labels_NC, given.groups_NG, gold, given.task, config)


def test_step_losses_by_hand() -> None:
    task = task_of(["a", "b", "c"], {"x": ["a", "b"], "y": ["c"]})
    labels = np.array([[3.0, 2, 1], [3, 2, 9], [3, 2, 9], [2, 3, 1], [0, 1, 2]])
    groups = np.array([[1.0, 0], [1, 0], [1, 0], [1, 0], [0, 1]])
    gold = ["a", "a", "c", "a", "c"]  # right both ways, mended, spoilt, wrong inside the group, right both ways
    assert losses_of(Case(task, labels, groups), gold, CoarseToFine()) == StepLosses(
        n=5, right=3, lost_at_coarse=1, lost_at_fine=1, right_flat=3, mended=1, spoilt=1
    )


@SEEDS
@BEAMS
@pytest.mark.parametrize("rule", list(CoarseRule))
def test_step_losses_are_counted_row_by_row(seed: int, beam: int, rule: CoarseRule) -> None:
    given = case(seed, n_rows=60)
    gold = np.random.default_rng(seed).choice(given.task.labels, 60).tolist()
    found = losses_of(given, gold, CoarseToFine(beam=beam, rule=rule))
    answers = [given.task.labels[i] for i in joined(given, beam, rule).argmax(axis=1)]
    flat = [given.task.labels[i] for i in given.labels_NC.argmax(axis=1)]
    kept = [
        given.group_of_label[given.task.labels.index(label)] in naive_followed(groups, beam)
        for label, groups in zip(gold, given.groups_NG.tolist(), strict=True)
    ]
    assert found == StepLosses(
        n=60,
        right=sum(a == g for a, g in zip(answers, gold, strict=True)),
        lost_at_coarse=kept.count(False),
        lost_at_fine=sum(k and a != g for k, a, g in zip(kept, answers, gold, strict=True)),
        right_flat=sum(f == g for f, g in zip(flat, gold, strict=True)),
        mended=sum(a == g != f for a, f, g in zip(answers, flat, gold, strict=True)),
        spoilt=sum(f == g != a for a, f, g in zip(answers, flat, gold, strict=True)),
    )
    assert found.right + found.lost_at_coarse + found.lost_at_fine == found.n
    assert found.right - found.right_flat == found.mended - found.spoilt


def test_no_rows_lose_nothing() -> None:
    found = losses_of(case(0, n_rows=0), [], CoarseToFine())
    assert found == StepLosses(n=0, right=0, lost_at_coarse=0, lost_at_fine=0, right_flat=0, mended=0, spoilt=0)
