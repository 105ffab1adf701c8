"""The candidates of one example as a prefix tree: what they share is read once, each branch sees only its own ancestors.

Legend: C candidates, L positions of the longest, n nodes (tokens) of the tree, S the last of them, Q queries.

A node is an input token at a depth; two candidates share it when their inputs agree up to there. A query
asks, at a node, for the log-probability of a target token: next-token targets and in-place masked targets are the same thing
here, so one tree serves label-last and label-first prompts, tails after the label, blanks in the text, and both label forms.
The leading chain that all candidates share is the trunk; the rest is the tail.

Readings that see all of themselves share nothing but what is equal as a whole: masked labels of equally many tokens. There is no
trunk then, and every node sees every other.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.spans import NO_TARGET, IntArray, Reading, Span


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixTree:
    """Nodes in depth-first order (the trunk, then branch by branch), and the queries of every candidate."""

    tokens_n: IntArray
    depths_n: IntArray
    query_nodes_Q: IntArray
    query_targets_Q: IntArray
    query_candidates_Q: IntArray
    query_kinds_Q: IntArray
    lengths_C: IntArray  # of candidates up to their last query
    trunk: int
    domain: int
    is_bidirectional: bool = False

    def __len__(self) -> int:
        return len(self.tokens_n)

    @property
    def n_candidates(self) -> int:
        return len(self.lengths_C)

    def ancestors_from(self, start: int) -> np.ndarray:
        """Return a boolean [S, S] array over the nodes from `start` (at most the trunk) on: which descends from, or is, which."""
        depths_S = self.depths_n[start:]
        size = len(depths_S)
        if self.is_bidirectional:
            return np.ones((size, size), dtype=bool)
        place_S = np.arange(size)
        # In depth-first order a node's descendants follow it up to the next node that is not deeper.
        ends_S = np.full(size, size)
        for place in range(size - 1, -1, -1):
            end = place + 1
            while end < size and depths_S[end] > depths_S[place]:
                end = ends_S[end]
            ends_S[place] = end
        return (place_S[None, :] <= place_S[:, None]) & (place_S[:, None] < ends_S[None, :])


def build_tree(readings: Sequence[Reading], kinds: frozenset[Span]) -> PrefixTree:
    """Merge the candidates of one example into a tree, with a query for every target of a wanted kind.

    A candidate ends at its last query: tokens after it (a label's last one, mostly) are asked for nothing and, unless it is read
    bidirectionally, seen by nobody.
    """
    is_bidirectional = readings[0].is_bidirectional
    targets_CL = _stacked([reading.targets_T for reading in readings], NO_TARGET)
    kinds_CL = _stacked([reading.kinds_T for reading in readings], int(Span.CONTEXT))
    is_asked_CL = (targets_CL != NO_TARGET) & np.isin(kinds_CL, [int(kind) for kind in kinds])
    lengths_C = (
        np.asarray([len(reading) for reading in readings])
        if is_bidirectional
        else np.maximum((is_asked_CL * np.arange(1, targets_CL.shape[1] + 1)).max(axis=1), 1)
    )
    inputs_CL = _stacked([reading.inputs_T[:length] for reading, length in zip(readings, lengths_C, strict=True)], -1)
    order = np.lexsort(inputs_CL.T[::-1])
    sorted_CL = inputs_CL[order]
    # A candidate shares its first `shared` tokens with the one before it in sorted order, and owns the nodes after them.
    shared_C = np.zeros(len(readings), np.int64)
    if len(readings) > 1:
        differs = sorted_CL[1:] != sorted_CL[:-1]
        shared_C[1:] = np.where(differs.any(axis=1), differs.argmax(axis=1), lengths_C[order][1:])
    depth_L = np.arange(inputs_CL.shape[1])
    is_new_CL = (depth_L >= shared_C[:, None]) & (depth_L < lengths_C[order][:, None])
    number_CL = np.cumsum(is_new_CL).reshape(is_new_CL.shape) - 1
    node_CL = np.empty_like(number_CL)
    node_CL[order] = np.maximum.accumulate(np.where(is_new_CL, number_CL, 0), axis=0)
    asked = np.nonzero(is_asked_CL)
    depths_n = np.broadcast_to(depth_L, is_new_CL.shape)[is_new_CL]
    return PrefixTree(
        tokens_n=sorted_CL[is_new_CL],
        depths_n=depths_n,
        query_nodes_Q=node_CL[asked],
        query_targets_Q=targets_CL[asked],
        query_candidates_Q=asked[0].astype(np.int64),
        query_kinds_Q=kinds_CL[asked],
        lengths_C=lengths_C,
        # All of it, where each candidate is a beginning of the longest.
        trunk=0 if is_bidirectional else len(depths_n) if len(depths_n) == lengths_C.max() else int(shared_C[1:].min()),
        domain=readings[0].domain,
        is_bidirectional=is_bidirectional,
    )


def _stacked(arrays: Sequence[IntArray], filling: int) -> IntArray:
    table = np.full((len(arrays), max(len(array) for array in arrays)), filling, np.int64)
    for row, array in zip(table, arrays, strict=True):
        row[: len(array)] = array
    return table
