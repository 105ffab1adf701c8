"""Cuts into batches against trying out every cut."""

from __future__ import annotations

import itertools

import numpy as np

from adapt.scoring.batching import batch_cost, batches_of, cheapest_runs
from tests.support.every_case import for_every


def all_cuts(count: int) -> list[list[range]]:
    """Return every way to cut so many things into neighbouring runs."""
    found = []
    for marks in itertools.product([False, True], repeat=count - 1):
        ends = [place + 1 for place, is_cut in enumerate(marks) if is_cut] + [count]
        found.append([range(start, end) for start, end in zip([0, *ends], ends, strict=False)])
    return found


def cost_of(batches: list[range], leads: list[int], tails: list[int], own_cost: int) -> int:
    widths = [max(leads[place] for place in batch) + max(tails[place] for place in batch) for batch in batches]
    return sum(len(batch) * width + own_cost for batch, width in zip(batches, widths, strict=True))


@for_every(seed=range(12))
def test_batches_cost_as_little_as_the_best_of_all_cuts(seed: int) -> None:
    random = np.random.default_rng(seed)
    leads, tails = sorted(random.integers(1, 40, 9).tolist()), random.integers(0, 8, 9).tolist()
    most, own_cost = int(random.integers(30, 200)), int(random.integers(0, 40))
    allowed = [cuts for cuts in all_cuts(9) if all(len(cut) == 1 or cost_of([cut], leads, tails, 0) <= most for cut in cuts)]
    found = batches_of(leads, tails, most, own_cost)
    assert found in allowed
    assert cost_of(found, leads, tails, own_cost) == min(cost_of(cuts, leads, tails, own_cost) for cuts in allowed)


def test_rows_of_very_different_lengths_are_not_padded_to_the_longest() -> None:
    lengths = [10] * 20 + [100] * 2
    assert batches_of(lengths, [0] * 22, 4096, batch_cost("cpu")) == [range(20), range(20, 22)]
    assert batches_of(lengths, [0] * 22, 4096, batch_cost("cuda")) == [range(22)]


def test_nothing_is_cut_into_nothing() -> None:
    assert cheapest_runs(0, lambda end: np.zeros(end)) == []
