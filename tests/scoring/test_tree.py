"""Prefix trees: what candidates share is one node, each node sees its ancestors, queries stand where targets did."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span, join_parts, read_with_targets
from adapt.scoring.tree import PrefixTree, build_tree
from tests.support.every_case import for_every

MASK = 9
EVERY = frozenset(Span)
many_seeds = for_every(seed=range(12))


def reading(ids: list[int], form: LabelForm = LabelForm.CLM, label: slice | None = None) -> Reading:
    """Return a text whose label is a slice of it (the last token by default), the rest being context and prompt."""
    place = slice(len(ids) - 1, len(ids)) if label is None else label
    kinds = [Span.CONTEXT if i < 2 else Span.PROMPT for i in range(len(ids))]
    for i in range(*place.indices(len(ids))):
        kinds[i] = Span.LABEL
    return read_with_targets(join_parts([([token], kind) for token, kind in zip(ids, kinds, strict=True)]), form, MASK)


def random_readings(seed: int) -> list[Reading]:
    """Return candidates over three tokens, so that they share prefixes of every length; some are the same."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(int(random.integers(1, 9))):
        length = int(random.integers(2, 12))
        form = list(LabelForm)[int(random.integers(2))]
        start = int(random.integers(1, length))
        label = slice(start, int(random.integers(start + 1, length + 1)))
        found.append(reading(random.integers(1, 4, length).tolist(), form, label))
    return found


def read_part(one: Reading, kinds: frozenset[Span] = EVERY) -> list[int]:
    """Return the inputs up to the last position that predicts something of a wanted kind; at least the first."""
    asked = [i for i in range(len(one)) if one.targets_T[i] != NO_TARGET and Span(int(one.kinds_T[i])) in kinds]
    return one.inputs_T[: max(asked, default=0) + 1].tolist()


def parents(tree: PrefixTree) -> list[int]:
    """Return each node's parent, -1 at a root: the last node before it that is one less deep."""
    found = []
    for node, depth in enumerate(tree.depths_n.tolist()):
        above = np.flatnonzero(tree.depths_n[:node] == depth - 1)
        found.append(int(above[-1]) if len(above) else -1)
    return found


def ancestors(tree: PrefixTree, node: int) -> list[int]:
    """Return a node and all above it, the root first."""
    above, found = parents(tree), []
    while node >= 0:
        found.append(node)
        node = above[node]
    return found[::-1]


def path(tree: PrefixTree, node: int) -> tuple[int, ...]:
    return tuple(int(tree.tokens_n[above]) for above in ancestors(tree, node))


@many_seeds
def test_shared_prefixes_are_one_node_each(seed: int) -> None:
    readings = random_readings(seed)
    tree = build_tree(readings, EVERY)
    prefixes = {tuple(read_part(r)[: end + 1]) for r in readings for end in range(len(read_part(r)))}
    paths = [path(tree, node) for node in range(len(tree))]
    assert len(paths) == len(set(paths)) == len(prefixes)
    assert set(paths) == prefixes


@many_seeds
def test_a_node_behind_a_part_of_the_trunk_descends_from_it_and_from_its_own_branch(seed: int) -> None:
    tree = build_tree(random_readings(seed), EVERY)
    for start in range(tree.trunk + 1):
        found = tree.ancestors_from(start)
        assert found.shape == (len(tree) - start, len(tree) - start)
        for node in range(start, len(tree)):
            seen = [*range(start), *(np.flatnonzero(found[node - start]) + start).tolist()]
            assert seen == ancestors(tree, node)


@many_seeds
def test_depths_are_positions(seed: int) -> None:
    tree = build_tree(random_readings(seed), EVERY)
    assert tree.depths_n.tolist() == [len(ancestors(tree, node)) - 1 for node in range(len(tree))]


@many_seeds
@for_every(kinds=[EVERY, frozenset({Span.LABEL}), frozenset({Span.CONTEXT, Span.PROMPT}), frozenset()])
def test_queries_stand_at_the_nodes_of_their_targets(seed: int, kinds: frozenset[Span]) -> None:
    readings = random_readings(seed)
    tree = build_tree(readings, kinds)
    found = sorted(
        (int(candidate), path(tree, int(node)), int(target), int(kind))
        for candidate, node, target, kind in zip(
            tree.query_candidates_Q, tree.query_nodes_Q, tree.query_targets_Q, tree.query_kinds_Q, strict=True
        )
    )
    wanted = sorted(
        (candidate, tuple(r.inputs_T[: place + 1].tolist()), int(r.targets_T[place]), int(r.kinds_T[place]))
        for candidate, r in enumerate(readings)
        for place in range(len(r))
        if r.targets_T[place] != NO_TARGET and Span(int(r.kinds_T[place])) in kinds
    )
    assert found == wanted
    assert tree.n_candidates == len(readings)
    assert tree.lengths_C.tolist() == [len(read_part(r, kinds)) for r in readings]


@many_seeds
def test_the_trunk_is_the_longest_chain_that_all_candidates_share(seed: int) -> None:
    readings = random_readings(seed)
    tree = build_tree(readings, EVERY)
    assert parents(tree)[: tree.trunk] == list(range(-1, tree.trunk - 1))
    prefixes = {tuple(read_part(r)[: tree.trunk]) for r in readings}
    assert len(prefixes) == 1 or tree.trunk == len(tree)
    if tree.trunk < len(tree):
        assert len({tuple(read_part(r)[: tree.trunk + 1]) for r in readings}) > 1


@pytest.mark.parametrize("form", list(LabelForm))
def test_a_single_candidate_is_a_chain_up_to_its_last_query(form: LabelForm) -> None:
    one = reading([2, 5, 3, 7, 5], form)
    tree = build_tree([one], EVERY)
    assert tree.tokens_n.tolist() == ([2, 5, 3, 7] if form is LabelForm.CLM else [2, 5, 3, 7, MASK])
    assert tree.trunk == len(tree)


def test_candidates_that_differ_at_the_end_share_all_but_their_ends() -> None:
    tree = build_tree([reading([2, 5, 3, 7, 6]), reading([2, 5, 3, 8, 6]), reading([2, 5, 3, 8, 8, 6])], EVERY)
    assert tree.tokens_n.tolist() == [2, 5, 3, 7, 8, 8]
    assert parents(tree) == [-1, 0, 1, 2, 2, 4]
    assert tree.trunk == 3


def test_labels_of_one_token_need_no_node_of_their_own() -> None:
    tree = build_tree([reading([2, 5, 3, label]) for label in (7, 8, 4)], EVERY)
    assert tree.tokens_n.tolist() == [2, 5, 3]
    assert tree.trunk == 3
    asked = zip(tree.query_nodes_Q.tolist(), tree.query_targets_Q.tolist(), strict=True)
    assert [(node, target) for node, target in asked if node == 2] == [(2, 7), (2, 8), (2, 4)]


def test_masked_labels_of_one_length_share_every_node() -> None:
    tree = build_tree([reading([2, 5, 3, label, 6], LabelForm.MLM, slice(3, 4)) for label in (7, 8, 4)], frozenset({Span.LABEL}))
    assert tree.tokens_n.tolist() == [2, 5, 3, MASK]
    assert tree.query_nodes_Q.tolist() == [3, 3, 3]
    assert tree.query_targets_Q.tolist() == [7, 8, 4]
    assert tree.query_candidates_Q.tolist() == [0, 1, 2]


def test_candidates_without_a_shared_token_do_not_see_each_other() -> None:
    tree = build_tree([reading([2, 5, 6]), reading([3, 5, 6])], EVERY)
    assert parents(tree) == [-1, 0, -1, 2]
    assert tree.trunk == 0
    assert not tree.ancestors_from(0)[2:, :2].any()


def test_the_same_candidate_twice_adds_no_node_but_asks_again() -> None:
    tree = build_tree([reading([2, 5, 3])] * 2, EVERY)
    assert len(tree) == 2
    assert tree.query_candidates_Q.tolist() == [0, 0, 1, 1]
