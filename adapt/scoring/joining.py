"""Rows that begin alike: which trees are put into one, so that the beginning that they share is read once.

Prompts often start with the same words in every row (an instruction, `Question: `), and so do many texts. A joined tree attends
under a mask to all of itself, so that its cost grows with its square: rows are joined as far as that is less than they share.

Legend: N trees in the order of their beginnings, K of them in a run.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray
from adapt.scoring.batching import cheapest_runs
from adapt.scoring.layout import POSITIONS_PER_HIDDEN_UNIT
from adapt.scoring.tree import PrefixTree

_WORTH_JOINING = 0.92  # of all rows' tokens: smaller gains go into masks
_MOST_NODES = 1024
_MOST_TREES = 64


def joined_groups(trees: Sequence[PrefixTree], hidden_size: int, most_tokens: int) -> list[list[int]]:
    """Return groups of trees, by place: each group is cheapest as one tree of at most `most_tokens` nodes.

    Each tree is a group of its own where all groups together would spare little. Trees of different domains share nothing, nor do
    such that see all of themselves.
    """
    order = sorted(range(len(trees)), key=lambda place: _beginning(trees[place]))
    sorted_trees = [trees[place] for place in order]
    shared_N = np.asarray([0, *(_shared(one, other) for one, other in zip(sorted_trees, sorted_trees[1:], strict=False))], np.int64)
    sizes_N = np.asarray([len(tree) for tree in sorted_trees], np.int64)
    trunks_N = np.asarray([tree.trunk for tree in sorted_trees], np.int64)
    positions_per_token = POSITIONS_PER_HIDDEN_UNIT * hidden_size

    def costs_to(end: int) -> FloatArray:
        first = max(end - _MOST_TREES, 0)
        # What the last 1, 2, ... trees share with those before them; a run of one shares its trunk with itself.
        within_K = shared_N[first + 1 : end][::-1]
        nodes_K = np.cumsum(sizes_N[first:end][::-1]) - np.concatenate([[0], np.cumsum(within_K)])
        leads_K = np.concatenate([[trunks_N[end - 1]], np.minimum.accumulate(within_K)])
        tails_K = nodes_K - leads_K
        costs_K = nodes_K + (leads_K * leads_K / 2 + tails_K * nodes_K) / positions_per_token
        costs_K[1:][(nodes_K[1:] > min(most_tokens, _MOST_NODES)) | (leads_K[1:] == 0)] = np.inf
        return np.asarray(costs_K)

    runs = cheapest_runs(len(trees), costs_to)
    spared = sum(int(shared_N[run.start + 1 : run.stop].sum()) for run in runs)
    if spared < (1 - _WORTH_JOINING) * int(sizes_N.sum()):
        return [[place] for place in range(len(trees))]
    return [[order[place] for place in run] for run in runs]


def _beginning(tree: PrefixTree) -> tuple[int, bool, bytes]:
    """Return what trees are sorted by, so that neighbours share the longest beginnings."""
    return tree.domain, tree.is_bidirectional, tree.tokens_n[: tree.trunk].astype(">i8").tobytes()


def _shared(one: PrefixTree, other: PrefixTree) -> int:
    """Return how many tokens of their trunks two trees share."""
    if one.domain != other.domain or one.is_bidirectional or other.is_bidirectional:
        return 0
    first, second = _trunks(one, other)
    differs = first != second
    return int(differs.argmax()) if differs.any() else len(first)


def _trunks(one: PrefixTree, other: PrefixTree) -> tuple[IntArray, IntArray]:
    length = min(one.trunk, other.trunk)
    return one.tokens_n[:length], other.tokens_n[:length]
