"""Routing by a map that nothing learns: one expert per token with weight 1, and certainty as its gate probabilities."""

from __future__ import annotations

import torch
from torch import Tensor

from adapt.model.inputs import RouterTraits, Routing
from adapt.model.routers.contract import Router


class FixedRouter(Router):
    """A router without a gate, and so without a balance loss."""

    traits = RouterTraits(has_balance_loss=False)

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts

    def routed_to(self, expert_N: Tensor) -> Routing:
        ones_N = torch.ones(len(expert_N), device=expert_N.device)
        return Routing(
            token_K=torch.arange(len(expert_N), device=expert_N.device),
            expert_K=expert_N,
            weight_K=ones_N,
            probs_NE=ones_N.new_zeros(len(expert_N), self.n_experts).scatter_(1, expert_N.unsqueeze(-1), ones_N.unsqueeze(-1)),
        )
