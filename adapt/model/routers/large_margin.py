"""Top-1 routing whose gate is trained with a large margin, so that experts' directions come to lie apart.

Sources: Liu et al. 2016 (L-softmax), arXiv:1612.02295, for the margin (`adapt.model.routers.margin`); Fedus, Zoph and Shazeer 2021,
arXiv:2101.03961, for the routing.
Training: the arg max of the token's own plain logits, since a margin could flip it; the margin enters the probability that scales
the expert's output, a cross-entropy loss of its own, or both. Inference: top-1 on plain logits, without any margin.
Looks ahead at: nothing. Balance loss: E * sum_e mean(p_e) * f_e on the plain probabilities. Own loss: `margin`.
"""

from __future__ import annotations

from torch import Tensor

from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.gates import routing_of
from adapt.model.routers.margin import MarginGate
from adapt.model.routers.settings import LargeMarginConfig, MarginEffect


class LargeMarginRouter(MarginGate):
    """One expert per token; the margin acts in training only."""

    def __init__(self, config: LargeMarginConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(config, hidden_size, n_experts)
        self.effect = config.effect
        self.traits = RouterTraits(loss_weights={} if self.effect is MarginEffect.GATE else {"margin": config.loss_weight})

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(x_NH)
        probs_NE = gate_NE = logits_NE.softmax(dim=-1)
        expert_N1 = logits_NE.argmax(dim=-1, keepdim=True)
        losses = {}
        if self.training:
            margin_NE, target_N = self.margin_logits(x_NH, logits_NE, inputs)
            if self.effect is not MarginEffect.LOSS:
                gate_NE = margin_NE.softmax(dim=-1)
            if self.effect is not MarginEffect.GATE:
                losses = self.margin_loss(margin_NE, target_N)
        return routing_of(expert_N1, gate_NE.gather(1, expert_N1), probs_NE, logits_NE, losses)


ROUTERS.register("large_margin")(RouterEntry(config=LargeMarginConfig, build=LargeMarginRouter))
