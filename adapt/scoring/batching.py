"""Which rows are computed together: the cuts of a sorted list that cost least, padding and a batch's own cost counted.

A batch is as wide as its longest row, so a batch of rows of very different lengths is mostly padding; a batch of few rows pays the
reading of all weights for few tokens. Cost is counted in tokens.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import IntArray

# A pass through the layers costs about this many tokens besides its tokens: on a CPU the reading of weights, on other devices
# mostly the launching of kernels (`python -m pipelines.bench one_token`).
_BATCH_COST = {"cpu": 32}
_LAUNCHED_BATCH_COST = 2048


def batch_cost(device_type: str) -> int:
    """Return what a batch costs besides its tokens, in tokens."""
    return _BATCH_COST.get(device_type, _LAUNCHED_BATCH_COST)


def cheapest_runs(count: int, costs_to: Callable[[int], FloatArray]) -> list[range]:
    """Cut `count` things into neighbouring runs of the least total cost (by dynamic programming).

    `costs_to(end)` has the costs of the runs that end before `end`, the shortest (of one thing) first; it may leave out long ones.
    """
    best = np.zeros(count + 1)
    length = np.zeros(count + 1, np.int64)
    for end in range(1, count + 1):
        costs = costs_to(end)
        totals = costs + best[end - np.arange(1, len(costs) + 1)]
        length[end] = 1 + int(totals.argmin())
        best[end] = totals[length[end] - 1]
    runs, end = [], count
    while end:
        runs.append(range(end - int(length[end]), end))
        end -= int(length[end])
    return runs[::-1]


def batches_of(leads: Sequence[int], tails: Sequence[int], most_tokens: int, own_cost: int) -> list[range]:
    """Cut rows, in their order, into batches of at most `most_tokens` padded tokens, or of one row.

    A batch is as wide as its longest lead and its longest tail together; it costs its padded tokens and `own_cost`.
    """
    leads_N, tails_N = np.asarray(leads, np.int64), np.asarray(tails, np.int64)

    def costs_to(end: int) -> FloatArray:
        first = max(end - max(most_tokens // max(int(leads_N[end - 1] + tails_N[end - 1]), 1), 1), 0)
        tokens = np.arange(1, end - first + 1) * (_longest_back(leads_N, first, end) + _longest_back(tails_N, first, end))
        allowed = max(int(np.searchsorted(tokens, most_tokens, side="right")), 1)  # tokens grow with every row
        return (tokens[:allowed] + own_cost).astype(np.float64)

    return cheapest_runs(len(leads_N), costs_to)


def _longest_back(values_N: IntArray, first: int, end: int) -> IntArray:
    """Return the largest of the last 1, 2, ... values before `end`."""
    return np.maximum.accumulate(values_N[first:end][::-1])
