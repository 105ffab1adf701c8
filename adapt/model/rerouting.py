"""What may happen to a routing after its router: tokens dropped for want of room, or experts shifted to even out random weights.

Legend: N tokens, K routed (token, expert) pairs, E experts.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapt.model.hashing import mixed
from adapt.model.inputs import RouterInputs, Routing


def spread_evenly(routing: Routing, inputs: RouterInputs, n_experts: int, layer: int) -> Routing:
    """Return the routing with each token's experts shifted round by a hash of what the token is; weights and probabilities stay.

    For measuring what random weights cost: their routers send nearly all tokens to a few experts. A token's experts stay different
    from one another, and depend only on its id, position and layer, so a score still does not depend on its neighbours.
    """
    shift_N = mixed(mixed(inputs.token_ids_N, layer) ^ inputs.positions_N, salt=3) % n_experts
    return replace(routing, expert_K=(routing.expert_K + shift_N[routing.token_K]) % n_experts, overload=None)


def within_capacity(routing: Routing, inputs: RouterInputs, n_experts: int, factor: float) -> Routing:
    """Keep the pairs that find room: ceil(factor * pairs / E) for each expert in a sequence of so many pairs (tokens times k).

    An expert takes tokens in order of position and drops what comes later. So a token's fate depends on the tokens before it and on
    the sequence's length. Source: Fedus, Zoph and Shazeer 2021, section 2.2 and equation 3, arXiv:2101.03961, with one sequence as
    the group, so that what is dropped does not depend on the batch.
    """
    sequence_K = inputs.sequence_ids_N[routing.token_K]
    queue_K = sequence_K * n_experts + routing.expert_K
    # Pairs are unique, so this orders them by queue and, within it, by position.
    order_K = (queue_K * len(inputs.sequence_ids_N) + routing.token_K).argsort()
    place_K = torch.empty_like(order_K)
    place_K[order_K] = _places_in_runs(queue_K[order_K])
    room_K = (factor * _run_lengths(sequence_K).double() / n_experts).ceil()
    kept_K = (place_K < room_K).nonzero().squeeze(-1)
    return replace(routing, token_K=routing.token_K[kept_K], expert_K=routing.expert_K[kept_K], weight_K=routing.weight_K[kept_K])


def _places_in_runs(sorted_K: Tensor) -> Tensor:
    """Count each element's equals before it."""
    return torch.arange(len(sorted_K), device=sorted_K.device) - torch.searchsorted(sorted_K, sorted_K)


def _run_lengths(values_K: Tensor) -> Tensor:
    """Count each element's equals, itself included."""
    sorted_K = values_K.sort().values
    return torch.searchsorted(sorted_K, values_K, right=True) - torch.searchsorted(sorted_K, values_K)
