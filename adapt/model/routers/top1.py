"""Top-1 routing: the expert with the largest gate probability takes the token, its output scaled by that probability.

Source: Fedus, Zoph and Shazeer 2021 (Switch Transformers), section 2.1 and equations 1-2, arXiv:2101.03961.
Training: the arg max of the token's own logits, from a jittered input if asked for. Inference: the same without jitter.
Looks ahead at: nothing. Balance loss: E * sum_e mean(p_e) * f_e, f_e the share of tokens (equation 4); z-loss on request.
"""

from __future__ import annotations

from torch import Tensor

from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.gates import SoftmaxGate, routing_of
from adapt.model.routers.settings import Top1Config


class Top1Router(SoftmaxGate):
    """One expert per token, weighted by its probability."""

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(self.jittered(x_NH, inputs))
        probs_NE = logits_NE.softmax(dim=-1)
        weight_N1, expert_N1 = probs_NE.max(dim=-1, keepdim=True)
        return routing_of(expert_N1, weight_N1, probs_NE, logits_NE, self.losses(logits_NE))


ROUTERS.register("top1")(RouterEntry(config=Top1Config, build=Top1Router))
