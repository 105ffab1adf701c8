"""Sigmoid scores with a bias per expert that balances loads without a loss.

Sources: Wang et al. 2024 (Auxiliary-Loss-Free Load Balancing), algorithm 1, arXiv:2408.15664; DeepSeek-V3,
arXiv:2412.19437.
Training: the top k of sigmoid(logit) + bias, weighted by the sigmoid scores without bias, renormalised to sum to 1 (a single expert
keeps its score as weight). After every step the bias of an expert that had fewer tokens than the mean grows by a fixed rate, the
others' fall. Inference: the same rule with the last bias, which is saved with the weights.
Looks ahead at: nothing within a step. Balance loss: none. Gate probabilities, for statistics: the scores over their sum.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.gates import LinearGate, routing_of
from adapt.model.routers.settings import SigmoidBiasConfig

_SMALLEST_SUM = 1e-20


class SigmoidBiasRouter(LinearGate):
    """The top k of biased scores; `selection_bias` is state, not a parameter.

    Raises:
        ConfigError: a token cannot have that many experts.
    """

    selection_bias: Tensor

    def __init__(self, config: SigmoidBiasConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(hidden_size, n_experts)
        if not 1 <= config.experts_per_token <= n_experts:
            raise ConfigError(
                f"model.router.experts_per_token: {config.experts_per_token} is not from 1 to the {n_experts} experts of a layer"
            )
        self.rate = config.rate
        self.traits = RouterTraits(has_balance_loss=False, experts_per_token=config.experts_per_token)
        self.register_buffer("selection_bias", torch.zeros(n_experts))

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(x_NH)
        scores_NE = logits_NE.sigmoid()
        k = self.traits.experts_per_token
        expert_Nk = (scores_NE.detach() + self.selection_bias).topk(k, dim=-1).indices
        weight_Nk = scores_NE.gather(1, expert_Nk)
        if k > 1:
            weight_Nk = weight_Nk / weight_Nk.sum(-1, keepdim=True).clamp_min(_SMALLEST_SUM)
        probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True).clamp_min(_SMALLEST_SUM)
        return routing_of(expert_Nk, weight_Nk, probs_NE, logits_NE, {})

    @torch.no_grad()
    def after_step(self, counts_E: Tensor) -> None:
        lacking_E = (counts_E.mean() - counts_E).sign()
        self.selection_bias += self.rate * lacking_E.to(self.selection_bias)


ROUTERS.register("sigmoid_bias")(RouterEntry(config=SigmoidBiasConfig, build=SigmoidBiasRouter))
