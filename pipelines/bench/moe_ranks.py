"""What `bench moe` does in the child processes of its row on two ranks: time a layer whose experts they share, over gloo.

Every rank has tokens of its own and computes a dense MLP of equal active size on them, in turn with the shared layer. The ranks
start each step together; a rank's time ends with its own step. Its results are checked against the layer with all experts first.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.core.runtime import rank_from_environment
from adapt.model.exchange import ExpertShare, GroupPeers
from adapt.model.expert_parallel import own_experts
from pipelines.bench.contract import Stopwatch, cpu_seconds, interleaved_medians, wall_seconds
from pipelines.bench.moe_cases import (
    Case,
    LayerWeights,
    Way,
    dense,
    draw_tokens,
    draw_weights,
    our_layer,
    our_weights,
    ours,
    plain_inputs,
)
from pipelines.bench.moe_measure import AGREEMENT, DENSE, OURS, Settings, Timed, difference_of, fullest_of


def time_shared(case: Case, settings: Settings) -> Timed:
    """Time a rank's part of the shared layer against the dense MLP; a collective of all ranks.

    Raises:
        ConfigError: the shared layer and the whole one do not agree; nothing is timed then.
    """
    rank = rank_from_environment()
    torch.distributed.init_process_group("gloo")
    try:
        weights = draw_weights(case)
        x_BTH, gradient_BTH, expert_N = _own_tokens(case, weights, rank.rank, rank.world_size)
        shared = _shared(case, weights, ExpertShare(index=rank.rank, of=rank.world_size), x_BTH)
        difference = _checked(case, shared, ours(case, weights, plain_inputs(x_BTH)), x_BTH, gradient_BTH)
        ways = {DENSE: dense(case), OURS: shared}
        steps = {name: partial(way.timed_step, x_BTH, gradient_BTH) for name, way in ways.items()}
        seconds = interleaved_medians(steps, settings.repeats, _together(cpu_seconds if settings.is_cpu_time else wall_seconds))
    finally:
        torch.distributed.destroy_process_group()
    return Timed(seconds=seconds, difference=difference, fullest=fullest_of(case, expert_N))


def slowest(found: list[Timed]) -> Timed:
    """Return what the slowest rank took for each way."""
    seconds = {name: max(timed.seconds[name] for timed in found) for name in found[0].seconds}
    difference = max(timed.difference or 0.0 for timed in found)
    return replace(found[0], seconds=seconds, difference=difference, fullest=max(timed.fullest for timed in found))


def _own_tokens(case: Case, weights: LayerWeights, rank: int, n_ranks: int) -> tuple[Tensor, Tensor, Tensor]:
    """Return this rank's part of tokens drawn for all ranks, as one row."""
    x_BTH, gradient_BTH, expert_N = draw_tokens(replace(case, tokens=n_ranks * case.tokens), weights)
    own = slice(rank * case.tokens, (rank + 1) * case.tokens)
    x_BTH, gradient_BTH = (tensor.flatten(0, 1)[own].clone().unsqueeze(0) for tensor in (x_BTH, gradient_BTH))
    return x_BTH, gradient_BTH, expert_N[own]


def _shared(case: Case, weights: LayerWeights, share: ExpertShare, x_BTH: Tensor) -> Way:
    """Return the layer with only this rank's experts."""
    layer = own_experts(our_layer(case), share)
    own = share.slice_of(case.experts)
    parts = {name: value[own].clone() if name.startswith("experts.") else value for name, value in our_weights(weights).items()}
    layer.load_state_dict({name: nn.Parameter(value) for name, value in parts.items()}, assign=True)
    world = torch.distributed.group.WORLD
    assert world is not None, "the ranks met before"
    layer.experts.peers = GroupPeers(world)
    inputs = plain_inputs(x_BTH)
    return Way(forward=lambda x: layer(x, inputs)[0], parameters=dict(layer.named_parameters()))


def _checked(case: Case, shared: Way, whole: Way, x_BTH: Tensor, gradient_BTH: Tensor) -> float:
    found, wanted = shared.step(x_BTH, gradient_BTH), whole.step(x_BTH, gradient_BTH)
    shared.clear()
    difference = max(difference_of(one, other) for one, other in zip(wanted, found, strict=True))
    if not difference <= AGREEMENT[case.precision]:
        raise ConfigError(f"bench moe: shared experts give results that differ by {difference:.2e}; figures would mean nothing")
    return difference


def _together(stopwatch: Stopwatch) -> Stopwatch:
    """Let all ranks begin what is timed at once."""

    def timed(way: Callable[[], object]) -> float:
        torch.distributed.barrier()
        return stopwatch(way)

    return timed
