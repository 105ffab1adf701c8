"""Top-1 routing: the expert with the largest gate probability takes the token, its output scaled by that probability.

Source: Fedus, Zoph and Shazeer 2021 (Switch Transformers), section 2.1 and equations 1-2, arXiv:2101.03961. Inference rule: the
arg max of the token's own logits, as in training; it looks ahead at nothing. Balance loss: E * sum_e mean(p_e) * f_e.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, Router, RouterConfig, RouterEntry


@dataclass(frozen=True, kw_only=True)
class Top1Config(RouterConfig):
    """Settings of top-1 routing (none of its own)."""

    name: str = "top1"


class Top1Router(Router):
    """A linear gate without bias, kept and computed in fp32."""

    def __init__(self, config: Top1Config, hidden_size: int, n_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, hidden_size))

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = functional.linear(x_NH.float(), self.weight.float())
        probs_NE = logits_NE.softmax(dim=-1)
        weight_N, expert_N = probs_NE.max(dim=-1)
        token_N = torch.arange(len(x_NH), device=x_NH.device)
        return Routing(token_K=token_N, expert_K=expert_N, weight_K=weight_N, probs_NE=probs_NE)


ROUTERS.register("top1")(RouterEntry(config=Top1Config, build=Top1Router))
