"""Top-2 routing: the two experts with the largest gate probabilities take the token, weighted by them, renormalised to sum to 1.

Sources: Lepikhin et al. 2020 (GShard), arXiv:2006.16668; Zoph et al. 2022 (ST-MoE), arXiv:2202.08906. The
second expert is always taken; GShard takes it at random in proportion to its weight.
Training: the top two of the token's own logits, from a jittered input if asked for. Inference: the same without jitter.
Looks ahead at: nothing. Balance loss: E * sum_e mean(p_e) * f_e with f_e the share of all routed pairs (GShard counts the first
choices only), 1.0 when even; z-loss on request.
"""

from __future__ import annotations

from torch import Tensor

from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.gates import SoftmaxGate, routing_of
from adapt.model.routers.settings import Top2Config


class Top2Router(SoftmaxGate):
    """Two experts per token, their weights summing to 1."""

    traits = RouterTraits(experts_per_token=2)

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(self.jittered(x_NH, inputs))
        probs_NE = logits_NE.softmax(dim=-1)
        top_N2, expert_N2 = probs_NE.topk(2, dim=-1)
        weight_N2 = top_N2 / top_N2.sum(-1, keepdim=True)
        return routing_of(expert_N2, weight_N2, probs_NE, logits_NE, self.losses(logits_NE))


ROUTERS.register("top2")(RouterEntry(config=Top2Config, build=Top2Router))
