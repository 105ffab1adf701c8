"""How a tree is laid out in a row: all of it in one, a row per candidate, or the trunk first and the rest on its kept past.

Legend: B rows, T positions, P leading positions (of a row or of its past), S tail positions, W = P + S.

`packed`: leading nodes, then the tail under a tree mask; the leading nodes are plain causal, so that no mask covers them.
`rows`: every candidate in a row of its own: reads shared text again, but attends to its own tokens only, which wins where
candidates share little (labels before their text). `cache`: the leading nodes in one pass that keeps keys and values, the
tail in a second one: the same work in two passes, for what is decided between them.

A packed tail attends to all of itself, masked or not, so that its cost grows with its square. Where that is more than reading the
trunk again, its candidates are cut into several rows.
"""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np
import torch

from adapt.model.inputs import ModelInputs, Past
from adapt.scoring.scorer_config import Layout
from adapt.scoring.tree import PrefixTree

# Measured by `python -m pipelines.bench scoring_layouts`: attending to this many positions for each unit of hidden size takes
# about as long as all other work on a token.
POSITIONS_PER_HIDDEN_UNIT = 3.0
_WORTH_CUTTING = 0.75  # of the cost of one row: smaller gains go into padding


def best_layout(tree: PrefixTree, layout: Layout, hidden_size: int) -> Layout:
    """Return `packed` or `rows`, whichever costs less, unless a layout is asked for; readings that see all of themselves take rows.

    Cost is counted in tokens; an attended position costs a fixed share of a token, by hidden size.
    """
    if tree.is_bidirectional:
        return Layout.ROWS
    if layout is not Layout.AUTO:
        return layout
    positions_per_token = POSITIONS_PER_HIDDEN_UNIT * hidden_size
    packed = _packed_cost(tree.trunk, len(tree) - tree.trunk, best_cuts(tree, hidden_size), positions_per_token)
    lengths = tree.lengths_C
    rows = float(lengths.sum()) + float((lengths * lengths).sum()) / 2 / positions_per_token
    return Layout.ROWS if rows < packed else Layout.PACKED


def best_cuts(tree: PrefixTree, hidden_size: int) -> int:
    """Return into how many rows a packed tree is cut, its trunk in each of them: one, unless more cost far less."""
    lead, tail = tree.trunk, len(tree) - tree.trunk
    if tail == 0:
        return 1
    positions_per_token = POSITIONS_PER_HIDDEN_UNIT * hidden_size
    # Each further row costs a trunk; n rows cost tail^2 / n attended positions.
    trunk_cost = lead + lead * lead / 2 / positions_per_token
    cuts = min(round(math.sqrt(tail * tail / positions_per_token / max(trunk_cost, 1.0))), tree.n_candidates)
    costs = [_packed_cost(lead, tail, count, positions_per_token) for count in (1, max(cuts, 1))]
    return cuts if costs[1] < _WORTH_CUTTING * costs[0] else 1


def cut_candidates(tree: PrefixTree, cuts: int) -> list[np.ndarray]:
    """Return each row's candidates by place: neighbours in the tree, in at most `cuts` rows of about as many nodes."""
    last_C = np.zeros(tree.n_candidates, np.int64)
    np.maximum.at(last_C, tree.query_candidates_Q, tree.query_nodes_Q)
    row_C = np.maximum(last_C - tree.trunk, 0) * cuts // max(len(tree) - tree.trunk, 1)
    return [np.flatnonzero(row_C == row) for row in np.unique(row_C)]


def _packed_cost(lead: int, tail: int, cuts: int, positions_per_token: float) -> float:
    """Return the cost of a packed tree in tokens, cut into rows of equal tails."""
    attended = cuts * lead * lead / 2 + tail * (lead + tail / cuts)
    return cuts * lead + tail + attended / positions_per_token


def packed_inputs(trees: Sequence[PrefixTree], starts: Sequence[int]) -> ModelInputs:
    """Lay out each tree in one row: its nodes before `start`, padded to the longest, then the rest under a tree mask."""
    lead, tail = max(starts), _longest_tail(trees, starts)
    columns = [_columns(tree, start, lead) for tree, start in zip(trees, starts, strict=True)]
    return _inputs(trees, columns, lead + tail, None if tail == 0 else _mask(trees, starts, lead, tail))


def leading_inputs(trees: Sequence[PrefixTree], starts: Sequence[int]) -> ModelInputs:
    """Lay out only the nodes before `start`, plain causal, to be kept as a past."""
    nodes = [np.arange(start) for start in starts]
    return _inputs(trees, nodes, max(starts), None, keeps_past=True)


def tail_inputs(trees: Sequence[PrefixTree], starts: Sequence[int], past: Past) -> ModelInputs:
    """Lay out the nodes from `start` on, as rows that go on from the past of the nodes before."""
    tail = _longest_tail(trees, starts)
    columns = [np.arange(start, len(tree)) - start for tree, start in zip(trees, starts, strict=True)]
    return _inputs(trees, columns, tail, _mask(trees, starts, len(past), tail), firsts=starts, past=past)


def columns_of(trees: Sequence[PrefixTree], starts: Sequence[int], lead: int) -> list[np.ndarray]:
    """Return, for each tree, the column of every node when the tail begins at column `lead`."""
    return [_columns(tree, start, lead) for tree, start in zip(trees, starts, strict=True)]


def _columns(tree: PrefixTree, start: int, lead: int) -> np.ndarray:
    nodes = np.arange(len(tree))
    return np.where(nodes < start, nodes, nodes - start + lead)


def _longest_tail(trees: Sequence[PrefixTree], starts: Sequence[int]) -> int:
    return max(len(tree) - start for tree, start in zip(trees, starts, strict=True))


def _mask(trees: Sequence[PrefixTree], starts: Sequence[int], lead: int, tail: int) -> torch.Tensor:
    mask_BSW = np.zeros((len(trees), tail, lead + tail), dtype=bool)
    mask_BSW[:, np.arange(tail), lead + np.arange(tail)] = True  # padding attends to itself: no empty softmax
    for row, (tree, start) in enumerate(zip(trees, starts, strict=True)):
        size = len(tree) - start
        mask_BSW[row, :size, :start] = True
        mask_BSW[row, :size, lead : lead + size] = tree.ancestors_from(start)
    return torch.from_numpy(mask_BSW)


def _inputs(
    trees: Sequence[PrefixTree],
    columns: Sequence[np.ndarray],
    width: int,
    mask_BSW: torch.Tensor | None,
    *,
    firsts: Sequence[int] | None = None,
    past: Past | None = None,
    keeps_past: bool = False,
) -> ModelInputs:
    """Put the nodes from `firsts` (0) on, as many as there are columns, into their columns."""
    ids, positions, documents, domains = (np.zeros((len(trees), width), np.int64) for _ in range(4))
    for row, (tree, places) in enumerate(zip(trees, columns, strict=True)):
        first = 0 if firsts is None else firsts[row]
        nodes = slice(first, first + len(places))
        ids[row, places], positions[row, places] = tree.tokens_n[nodes], tree.depths_n[nodes]
        documents[row, places], domains[row, places] = 1, tree.domain
    return ModelInputs(
        ids_BT=torch.from_numpy(ids),
        positions_BT=torch.from_numpy(positions),
        documents_BT=torch.from_numpy(documents),
        domains_BT=torch.from_numpy(domains),
        mask_BSW=mask_BSW,
        is_packed=False,
        past=past,
        keeps_past=keeps_past,
    )
