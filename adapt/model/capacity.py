"""Capacity: an expert takes only so many tokens of a sequence, in order of position; what comes later is dropped.

Legend: N tokens, K routed (token, expert) pairs, E experts.

Source: Fedus, Zoph and Shazeer 2021, section 2.2 and equation 3, arXiv:2101.03961, with one sequence as the group, so that what is
dropped does not depend on the batch. A token's fate depends on the tokens before it and on the sequence's length.
"""

from __future__ import annotations

from dataclasses import replace

import torch
from torch import Tensor

from adapt.model.inputs import RouterInputs, Routing


def within_capacity(routing: Routing, inputs: RouterInputs, n_experts: int, factor: float) -> Routing:
    """Keep the pairs that find room: ceil(factor * pairs / E) for each expert in a sequence of so many pairs (tokens times k)."""
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
