"""Routing by a map that nothing learns: one expert per token with weight 1, and certainty as its gate probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.inputs import RouterTraits, Routing
from adapt.model.routers.contract import Router


class FixedRouter(Router):
    """A router without a gate, and so without a balance loss."""

    traits = RouterTraits(has_balance_loss=False)

    def __init__(self, n_experts: int) -> None:
        super().__init__()
        self.n_experts = n_experts

    def routed_to(self, expert_N: Tensor) -> Routing:
        return Routing(
            token_K=torch.arange(len(expert_N), device=expert_N.device),
            expert_K=expert_N,
            weight_K=torch.ones(len(expert_N), device=expert_N.device),
            probs_NE=functional.one_hot(expert_N, self.n_experts).float(),
        )
