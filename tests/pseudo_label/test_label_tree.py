"""A proposed tree finds planted groups, holds every label once, keeps to the sizes asked for, and does not depend on order."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import numpy.typing as npt
import pytest
import yaml

from adapt.core.errors import ConfigError
from pseudo_label.label_tree import (
    GroupSizes,
    adjusted_rand_index,
    group_labels,
    likeness_of_mistakes,
    likeness_of_scores,
    likeness_of_vectors,
    mean_likeness,
    name_groups,
    tree_yaml,
)
from pseudo_label.tasks import load_task
from tests.support.every_case import for_every

Floats = npt.NDArray[np.float64]
SIZES = [
    GroupSizes(groups=2),
    GroupSizes(groups=5),
    GroupSizes(groups=16),
    GroupSizes(groups=4, most=5),
    GroupSizes(groups=6, most=3),
    GroupSizes(groups=4, least=4),
    GroupSizes(groups=8, least=2, most=3),
    GroupSizes(groups=3, least=5, most=6),
]


def planted(sizes: list[int], seed: int) -> tuple[list[str], list[list[str]], npt.NDArray[np.int64]]:
    """Return shuffled labels, the groups they are from, and each label's group."""
    random = np.random.default_rng(seed)
    group = random.permutation(np.repeat(np.arange(len(sizes)), sizes))
    labels = [f"label {i}" for i in random.permutation(len(group))]
    return labels, [[labels[i] for i in np.flatnonzero(group == g)] for g in range(len(sizes))], group


def random_likeness(n_labels: int, seed: int) -> Floats:
    return likeness_of_vectors(np.random.default_rng(seed).normal(size=(n_labels, 6)))


def as_sets(groups: list[list[str]]) -> set[frozenset[str]]:
    return {frozenset(group) for group in groups}


@for_every(seed=range(4), sizes=[[3, 3], [2, 7, 4], [1, 5, 5, 9], [4] * 12])
def test_planted_groups_of_vectors_are_found(sizes: list[int], seed: int) -> None:
    labels, groups, group = planted(sizes, seed)
    random = np.random.default_rng(seed)
    centres = random.normal(size=(len(sizes), 40))
    vectors = 30 * random.normal(size=40) + centres[group] + 0.2 * random.normal(size=(len(labels), 40))
    found = group_labels(labels, likeness_of_vectors(vectors), GroupSizes(groups=len(sizes)))
    assert as_sets(found) == as_sets(groups)
    assert adjusted_rand_index(found, groups) == 1.0


@for_every(seed=range(4))
def test_labels_that_rise_on_the_same_rows_are_grouped(seed: int) -> None:
    labels, groups, group = planted([3, 4, 5], seed)
    random = np.random.default_rng(seed)
    scores = random.normal(size=(300, 3))[:, group] + 0.5 * random.normal(size=(300, 12)) + 10 * random.normal(size=12)
    assert as_sets(group_labels(labels, likeness_of_scores(scores), GroupSizes(groups=3))) == as_sets(groups)


@for_every(sizes=SIZES, seed=range(3))
def test_every_label_is_in_exactly_one_group_of_an_allowed_size(sizes: GroupSizes, seed: int) -> None:
    labels = [f"label {i}" for i in range(17)]
    found = group_labels(labels, random_likeness(17, seed), sizes)
    assert sorted(label for group in found for label in group) == sorted(labels)
    assert len(found) == sizes.groups
    assert all(sizes.least <= len(group) <= (sizes.most or 17) for group in found)


@for_every(sizes=SIZES)
@pytest.mark.parametrize("is_tied", [False, True])
def test_the_order_of_labels_does_not_matter(sizes: GroupSizes, is_tied: bool) -> None:
    labels = [f"label {i}" for i in range(17)]
    likeness = np.ones((17, 17)) if is_tied else random_likeness(17, 7)
    words = {label: f"word of {label}" for label in labels}
    expected = name_groups(group_labels(labels, likeness, sizes), labels, likeness, words)
    for seed in range(3):
        order = np.random.default_rng(seed).permutation(17)
        shuffled = [labels[i] for i in order]
        again = likeness[np.ix_(order, order)]
        groups = group_labels(shuffled, again, sizes)
        assert [sorted(group, key=shuffled.index) for group in groups] == groups, "labels come in the order given"
        tree = name_groups(groups, shuffled, again, words)
        assert {word: set(group) for word, group in tree.items()} == {word: set(group) for word, group in expected.items()}


def test_each_group_is_called_after_its_centre() -> None:
    labels = ["a", "b", "c", "x", "y", "z"]
    angles = np.radians([0, 20, 50, 180, 200, 260])
    likeness = np.cos(angles[:, None] - angles[None, :])
    groups = group_labels(labels, likeness, GroupSizes(groups=2))
    tree = name_groups(groups, labels, likeness, {label: label.upper() for label in labels})
    assert tree == {"B": ["a", "b", "c"], "Y": ["x", "y", "z"]}
    inside, between = mean_likeness(groups, labels, likeness)
    assert inside > 0 > between


def test_labels_with_equal_or_empty_vectors_are_grouped_too() -> None:
    labels = list("abcd")
    for vectors in (np.zeros((4, 3)), np.ones((4, 3)), np.asarray([[0.0], [0.0], [1.0], [1.0]])):
        found = group_labels(labels, likeness_of_vectors(vectors), GroupSizes(groups=2))
        assert sorted(label for group in found for label in group) == labels
    constant = np.asarray([[1.0, 2.0, 5.0], [1.0, 3.0, 4.0]])
    assert likeness_of_scores(constant).tolist() == [[0, 0, 0], [0, 1, -1], [0, -1, 1]]


def test_mistakes_count_both_ways_by_the_share_of_a_labels_rows() -> None:
    gold, predicted = np.asarray([0, 0, 0, 0, 1, 1]), np.asarray([0, 1, 1, 1, 0, 1])
    likeness = likeness_of_mistakes(predicted, gold, 3)
    assert likeness.tolist() == [[1, 0.625, 0], [0.625, 1, 0], [0, 0, 1]]


def test_the_adjusted_rand_index_of_known_groupings() -> None:
    assert adjusted_rand_index([["a", "b"], ["c", "d"]], [["d", "c"], ["b", "a"]]) == 1.0
    assert adjusted_rand_index([["a", "b"], ["c", "d"]], [["a", "c"], ["b", "d"]]) == pytest.approx(-0.5)
    assert adjusted_rand_index([["a", "b", "c", "d"]], [["a"], ["b"], ["c"], ["d"]]) == 0.0
    assert adjusted_rand_index([["a", "b", "c"]], [["a", "b", "c"]]) == 1.0
    random = np.random.default_rng(0)
    labels = [str(i) for i in range(60)]
    by_chance = []
    for _ in range(200):
        one, other = (random.integers(6, size=60) for _ in range(2))
        groupings = [[[labels[i] for i in np.flatnonzero(g == k)] for k in range(6)] for g in (one, other)]
        by_chance.append(adjusted_rand_index(*groupings))
    assert abs(np.mean(by_chance)) < 0.01


def test_a_tree_can_be_pasted_into_a_task_file(tmp_path: Path) -> None:
    words = {"100": "故事", "true": "是", "no": "否", "a: b": "冒号", "007": "零零七"}
    groups = [["100", "no"], ["true", "a: b", "007"]]
    tree = name_groups(groups, list(words), np.ones((5, 5)), words)
    task = {"fields": {"s": {"path": "s"}}, "label_words": words, "prompts": {"reference": {"template": "{s}{label}"}}}
    text = yaml.safe_dump(task, allow_unicode=True) + tree_yaml(tree, "a proposal")
    (tmp_path / "mine.yaml").write_text(text, encoding="utf-8")
    loaded = load_task("mine", [tmp_path])
    assert loaded.label_tree == tree
    assert text.count("\n  ") > 2


@pytest.mark.parametrize(
    ("sizes", "n_labels", "words"),
    [
        (GroupSizes(groups=2), 2, "at least 3"),
        (GroupSizes(groups=1), 9, "take 2 to 8"),
        (GroupSizes(groups=9), 9, "take 2 to 8"),
        (GroupSizes(groups=4, least=3), 9, "min_size.*take 1 to 2"),
        (GroupSizes(groups=4, least=0), 9, "min_size"),
        (GroupSizes(groups=4, most=2), 9, "max_size.*at least 3"),
    ],
)
def test_sizes_that_cannot_be_are_refused(sizes: GroupSizes, n_labels: int, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        sizes.check(n_labels, "task 'mine'")
