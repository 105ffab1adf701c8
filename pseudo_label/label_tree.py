"""Proposing a label tree: how alike labels are, groups of labels that are alike, and a word for each group.

Legend: C labels, H hidden size, N rows, X either of the last two.

Labels are alike when their words' vectors point the same way, what all of them share taken off, or when the same rows raise their
scores. Groups are made by average linkage (Sokal and Michener 1958): the two groups whose labels are most alike on average become
one, until as few are left as were asked for. A group is called after its member nearest to its centre, so that words differ and a
tokenizer that knows the labels knows them too. Labels are taken in the order of their names: the task's order changes nothing.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import yaml

from adapt.core.errors import ConfigError
from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray

_DECIMALS = 9  # what differs by rounding only is equal


class TreeSource(enum.Enum):
    """Where likeness comes from: what the model holds of the label words, or what it mistakes for what."""

    EMBEDDINGS = "embeddings"
    CONFUSIONS = "confusions"


@dataclass(frozen=True, kw_only=True)
class GroupSizes:
    """How many groups, and how many labels each may have."""

    groups: int
    least: int = 1
    most: int | None = None

    def check(self, n_labels: int, where: str) -> None:
        """Raise ConfigError where so many labels cannot be grouped like this."""
        if n_labels < 3:
            raise ConfigError(f"{where}: has {n_labels} labels; a tree of groups needs at least 3")
        if not 2 <= self.groups < n_labels:
            raise ConfigError(f"label_tree.groups: {self.groups} groups of {n_labels} labels ({where}); take 2 to {n_labels - 1}")
        if self.least < 1 or self.least * self.groups > n_labels:
            raise ConfigError(
                f"label_tree.min_size: {self.groups} groups of at least {self.least} out of {n_labels} labels ({where}); "
                f"take 1 to {n_labels // self.groups}"
            )
        if self.most is not None and self.most * self.groups < n_labels:
            raise ConfigError(
                f"label_tree.max_size: {self.groups} groups of at most {self.most} hold no {n_labels} labels ({where}); "
                f"take at least {-(-n_labels // self.groups)}"
            )


def likeness_of_vectors(vectors_CH: FloatArray) -> FloatArray:
    """Return the cosines [C, C] between labels' vectors, the mean of all of them taken off."""
    return _cosines(vectors_CH - vectors_CH.mean(axis=0))


def likeness_of_scores(scores_NC: FloatArray) -> FloatArray:
    """Return the correlations [C, C] over rows between labels' scores; a score that never changes is like no other."""
    return _cosines((scores_NC - scores_NC.mean(axis=0)).T)


def likeness_of_mistakes(predicted: IntArray, gold: IntArray, n_labels: int) -> FloatArray:
    """Return [C, C]: the share of one label's rows taken for the other, both ways averaged; 1 on the diagonal."""
    counts = np.zeros((n_labels, n_labels))
    np.add.at(counts, (gold, predicted), 1.0)
    shares = counts / np.maximum(counts.sum(axis=1, keepdims=True), 1.0)
    likeness = _symmetric((shares + shares.T) / 2)
    np.fill_diagonal(likeness, 1.0)
    return likeness


def group_labels(labels: Sequence[str], likeness_CC: FloatArray, sizes: GroupSizes) -> list[list[str]]:
    """Put every label into exactly one group; groups, and labels in them, come in the order of the labels given."""
    order = sorted(range(len(labels)), key=lambda place: labels[place])
    groups = _merged(likeness_CC[np.ix_(order, order)], sizes)
    places = sorted(sorted(order[member] for member in group) for group in groups)
    return [[labels[place] for place in group] for group in places]


def name_groups(
    groups: Sequence[Sequence[str]], labels: Sequence[str], likeness_CC: FloatArray, words: Mapping[str, str]
) -> dict[str, list[str]]:
    """Return the tree: groups by the word of the member most like the others of its group, the first by name of equals."""
    place = {label: index for index, label in enumerate(labels)}
    tree = {}
    for group in groups:
        members = sorted(group)
        inside = likeness_CC[np.ix_([place[m] for m in members], [place[m] for m in members])]
        centre = members[int(np.round(inside.mean(axis=1), _DECIMALS).argmax())]
        assert words[centre] not in tree, "label words differ"
        tree[words[centre]] = list(group)
    return tree


def mean_likeness(groups: Sequence[Sequence[str]], labels: Sequence[str], likeness_CC: FloatArray) -> tuple[float, float]:
    """Return the mean likeness of two labels of one group, and of two of different groups; 0 where there are no such two."""
    group_C = _places(groups, labels)
    together = group_C[:, None] == group_C[None, :]
    inside, between = likeness_CC[together & ~np.eye(len(labels), dtype=bool)], likeness_CC[~together]
    return float(inside.sum() / max(inside.size, 1)), float(between.sum() / max(between.size, 1))


def adjusted_rand_index(first: Sequence[Sequence[str]], second: Sequence[Sequence[str]]) -> float:
    """Return how two groupings of the same labels agree: 1 the same, 0 as by chance (Hubert and Arabie 1985)."""
    labels = sorted(label for group in first for label in group)
    table = np.zeros((len(first), len(second)))
    np.add.at(table, (_places(first, labels), _places(second, labels)), 1.0)
    together, rows, columns = (float(_pairs(n).sum()) for n in (table, table.sum(axis=1), table.sum(axis=0)))
    by_chance = rows * columns / max(float(_pairs(np.asarray(len(labels), float))), 1.0)
    most = (rows + columns) / 2
    return 1.0 if most == by_chance else (together - by_chance) / (most - by_chance)


def tree_yaml(tree: Mapping[str, Sequence[str]], comment: str) -> str:
    """Return a tree as a piece of a task file, one line a group."""
    plain = {"label_tree": {word: list(labels) for word, labels in tree.items()}}
    text = yaml.safe_dump(plain, allow_unicode=True, sort_keys=False, default_flow_style=None, width=1 << 20)
    return f"# {comment}\n{text}"


def _merged(likeness_CC: FloatArray, sizes: GroupSizes) -> list[list[int]]:
    """Merge the most alike groups until few enough are left, then mend those that are too small."""
    groups = [[place] for place in range(len(likeness_CC))]
    sums = np.array(likeness_CC, dtype=float)  # summed likeness of the labels of two groups
    while len(groups) > sizes.groups:
        count = np.asarray([len(group) for group in groups], float)
        means = np.round(sums / np.outer(count, count), _DECIMALS)
        may_merge = np.triu(np.ones(sums.shape, dtype=bool), 1)
        if sizes.most is not None:
            may_merge &= count[:, None] + count[None, :] <= sizes.most
        if not may_merge.any():
            return _mended(_dissolved(groups, likeness_CC, sizes), likeness_CC, sizes)
        one, other = np.unravel_index(np.where(may_merge, means, -np.inf).argmax(), means.shape)
        groups[one] += groups.pop(other)
        sums[one] += sums[other]
        sums[:, one] += sums[:, other]
        sums = np.delete(np.delete(sums, other, axis=0), other, axis=1)
    return _mended(groups, likeness_CC, sizes)


def _dissolved(groups: list[list[int]], likeness_CC: FloatArray, sizes: GroupSizes) -> list[list[int]]:
    """Break up the smallest groups, whose labels go where they are most alike and there is room."""
    assert sizes.most is not None, "only a bound stops merging"
    ordered = sorted(groups, key=lambda group: (-len(group), min(group)))
    kept, homeless = [list(group) for group in ordered[: sizes.groups]], [m for group in ordered[sizes.groups :] for m in group]
    while homeless:
        open_groups = [group for group in kept if len(group) < sizes.most]
        likeness, member, home = max(
            ((_mean(likeness_CC, m, group), -m, -g) for m in homeless for g, group in enumerate(open_groups)),
        )
        open_groups[-home].append(-member)
        homeless.remove(-member)
    return kept


def _mended(groups: list[list[int]], likeness_CC: FloatArray, sizes: GroupSizes) -> list[list[int]]:
    """Give groups that are too small the most alike labels of groups that can spare one."""
    groups = [list(group) for group in groups]
    while small := [group for group in groups if len(group) < sizes.least]:
        group = min(small, key=lambda g: (len(g), min(g)))
        spare = [(m, giver) for giver in groups if len(giver) > sizes.least for m in giver]
        member, giver = max(spare, key=lambda item: (_mean(likeness_CC, item[0], group), -item[0]))
        giver.remove(member)
        group.append(member)
    return groups


def _mean(likeness_CC: FloatArray, member: int, group: Sequence[int]) -> float:
    return round(float(likeness_CC[member, list(group)].mean()), _DECIMALS)


def _places(groups: Sequence[Sequence[str]], labels: Sequence[str]) -> IntArray:
    place = {label: index for index, group in enumerate(groups) for label in group}
    return np.asarray([place[label] for label in labels], np.int64)


def _pairs(counts: FloatArray) -> FloatArray:
    return counts * (counts - 1) / 2


def _cosines(vectors_CX: FloatArray) -> FloatArray:
    length = np.linalg.norm(vectors_CX, axis=1, keepdims=True)
    unit = np.divide(vectors_CX, length, out=np.zeros_like(vectors_CX), where=length > 0)
    return _symmetric(unit @ unit.T)


def _symmetric(likeness_CC: FloatArray) -> FloatArray:
    return np.asarray(np.round((likeness_CC + likeness_CC.T) / 2, _DECIMALS))
