"""The candidates of one example as a prefix tree: what they share is read once, each branch sees only its own ancestors.

Legend: n nodes (tokens) of the tree, Q queries.

A node is an input token at a depth; two candidates share it when their inputs agree up to there. A query
asks, at a node, for the log-probability of a target token: next-token targets and in-place masked targets are the same thing
here, so one tree serves label-last and label-first prompts, tails after the label, blanks in the text, and both label forms.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.spans import NO_TARGET, IntArray, Reading, Span


@dataclass(frozen=True, kw_only=True, eq=False)
class PrefixTree:
    """Nodes in depth-first order (a parent before its children), and the queries of every candidate."""

    tokens_n: IntArray
    depths_n: IntArray
    parents_n: IntArray  # -1 at the root
    query_nodes_Q: IntArray
    query_targets_Q: IntArray
    query_candidates_Q: IntArray
    query_kinds_Q: IntArray
    n_candidates: int
    trunk: int  # how many leading nodes form a single chain
    domain: int

    def __len__(self) -> int:
        return len(self.tokens_n)

    def visibility(self) -> np.ndarray:
        """Return a boolean [n, n] array: which node (first axis) may attend to which (second axis)."""
        n = len(self)
        seen = np.zeros((n, n), dtype=bool)
        trunk = self.trunk
        seen[:trunk, :trunk] = np.tril(np.ones((trunk, trunk), dtype=bool))
        for node in range(trunk, n):
            parent = self.parents_n[node]
            if parent >= 0:
                seen[node] = seen[parent]
            seen[node, node] = True
        return seen


def build_tree(readings: Sequence[Reading], kinds: frozenset[Span]) -> PrefixTree:
    """Merge the candidates of one example into a tree, with a query for every target of a wanted kind."""
    tokens: list[int] = []
    depths: list[int] = []
    parents: list[int] = []
    children: dict[tuple[int, int], int] = {}
    queries: list[tuple[int, int, int, int]] = []
    wanted = {int(kind) for kind in kinds}
    for candidate, reading in enumerate(readings):
        node = -1
        path = np.empty(len(reading), np.int64)
        for depth, token in enumerate(reading.inputs_T.tolist()):
            child = children.get((node, token))
            if child is None:
                child = len(tokens)
                children[node, token] = child
                tokens.append(token)
                depths.append(depth)
                parents.append(node)
            node = path[depth] = child
        asked = (reading.targets_T != NO_TARGET) & np.isin(reading.kinds_T, list(wanted))
        for place in np.flatnonzero(asked):
            queries.append((int(path[place]), int(reading.targets_T[place]), candidate, int(reading.kinds_T[place])))
    parents_n = np.asarray(parents, np.int64)
    is_chain = parents_n == np.arange(len(tokens)) - 1
    trunk = len(tokens) if is_chain.all() else int(is_chain.argmin())
    columns = np.asarray(queries, np.int64).reshape(-1, 4)
    return PrefixTree(
        tokens_n=np.asarray(tokens, np.int64),
        depths_n=np.asarray(depths, np.int64),
        parents_n=parents_n,
        query_nodes_Q=columns[:, 0],
        query_targets_Q=columns[:, 1],
        query_candidates_Q=columns[:, 2],
        query_kinds_Q=columns[:, 3],
        n_candidates=len(readings),
        trunk=trunk,
        domain=readings[0].domain,
    )
