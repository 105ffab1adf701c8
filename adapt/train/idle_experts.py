"""Where experts lie in flat parameters, and which of them had no tokens in a step: those whose gradient is 0 everywhere.

An update that leaves them out reads neither their moments nor their weights. AdamW would let their moments decay, move weights by
them, and decay the weights; here all of them stay until the expert has tokens again. The bias correction goes on by the step.

Legend of a run: its first element and the one after its last, of a flat tensor.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

Runs = Sequence[tuple[int, int]]


def runs_of_stack(stack: Tensor, offset: int = 0) -> Runs:
    """Return the run of each expert of a stack whose first element is number `offset`."""
    each = stack[0].numel()
    return [(offset + expert * each, offset + (expert + 1) * each) for expert in range(len(stack))]


def runs_in_partitions(zero: Any, stacks: Collection[int]) -> dict[Tensor, Runs]:
    """Return the runs in this rank's partitions of ZeRO's flat groups, of the parameters whose ids are in `stacks`."""
    found: dict[Tensor, Runs] = {}
    for index, partition in enumerate(zero.single_partition_of_fp32_groups):
        start = torch.distributed.get_rank(zero.real_dp_process_group[index]) * partition.numel()
        laid_out = zip(zero.round_robin_bit16_groups[index], zero.round_robin_bit16_offsets[index], strict=True)
        runs = [run for stack, offset in laid_out if id(stack) in stacks for run in runs_of_stack(stack, offset - start)]
        found[partition] = [(max(first, 0), min(last, partition.numel())) for first, last in runs if last > 0]
        found[partition] = [(first, last) for first, last in found[partition] if first < last]
    return found


def idle_of(gradient: Tensor, runs: Runs) -> Runs:
    """Return those runs in which a contiguous gradient is 0."""
    flat = gradient.view(-1)
    return [(first, last) for first, last in runs if not flat[first:last].any()]


def busy_parts(first: int, last: int, idle: Runs) -> Iterator[tuple[int, int]]:
    """Yield what is left of elements [first, last) without idle runs, which are in order."""
    for idle_first, idle_last in idle:
        if idle_first > first:
            yield first, min(idle_first, last)
        first = max(first, idle_last)
        if first >= last:
            return
    yield first, last
