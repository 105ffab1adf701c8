"""S-BASE: in training a sequence's tokens are spread evenly over the experts by optimal transport with an entropy term (Sinkhorn).

Legend: N tokens, S sequences, E experts.

Sources: Clark et al. 2022 (Unified Scaling Laws for Routed Language Models), arXiv:2202.01169; BASE layers, which solve the
same assignment exactly: Lewis et al. 2021, arXiv:2103.16716. One sequence is the group. Plain rounds of Sinkhorn converge more
slowly the larger the logits are, so the temperature falls from a mild one to its own (Schmitzer 2019, arXiv:1610.06519), and rounds
are overrelaxed (Thibault et al. 2021, arXiv:1711.01851).
Training: the arg max of the token's row of a transport plan in which no expert has more than ceil(tokens / E); the output is scaled
by that expert's plain softmax probability. (With exactly tokens / E, as in the paper, a sequence shorter than E would say nothing.)
A plan divides a token between experts and the arg max does not, so some experts have a few more: `overload` says how many.
Inference: the arg max of the token's own logits.
Looks ahead at: the whole sequence, over which the plan is balanced; a training loss is no language-model loss.
Balance loss: none, the plan is even already.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry, numbered
from adapt.model.routers.gates import LinearGate, routing_of
from adapt.model.routers.settings import SBaseConfig

_MILD = 8  # temperatures between a token's largest and smallest logit, where the search begins
_MOST_AT_A_TEMPERATURE = 100  # rounds, before the last temperature
_RELAXATION = 1.5
_ASKED_EVERY = 8  # rounds after which a device is asked whether all sequences are done
_LEAST_MASS = 1e-300


class SBaseRouter(LinearGate):
    """One expert per token, evenly over a sequence in training."""

    traits = RouterTraits(has_balance_loss=False, looks_ahead=True)

    def __init__(self, config: SBaseConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(hidden_size, n_experts)
        self.config = config

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(x_NH)
        probs_NE = logits_NE.softmax(dim=-1)
        if not self.training:
            expert_N1 = logits_NE.argmax(dim=-1, keepdim=True)
            return routing_of(expert_N1, probs_NE.gather(1, expert_N1), probs_NE, logits_NE, {})
        sequence_N, sizes_S = numbered(inputs.sequence_ids_N)
        room_S1 = (sizes_S.double() / logits_NE.shape[1]).ceil().unsqueeze(-1)
        expert_N1 = self._planned(logits_NE.detach().double(), sequence_N, sizes_S, room_S1).argmax(dim=-1, keepdim=True)
        overload = _overload(expert_N1.squeeze(-1), sequence_N, room_S1, logits_NE.shape[1])
        return routing_of(expert_N1, probs_NE.gather(1, expert_N1), probs_NE, logits_NE, {}, overload)

    @torch.no_grad()
    def _planned(self, logits_NE: Tensor, sequence_N: Tensor, sizes_S: Tensor, room_S1: Tensor) -> Tensor:
        """Return logits with every expert's price in a token's sequence taken off, whose softmax over the temperature is the plan.

        Prices fall where experts have room and rise where they have too much. A sequence's temperature is halved when its plan is
        good enough at the present one; each sequence goes its own way, whatever else is in the batch.
        """
        config = self.config
        spread_N = logits_NE.amax(-1) - logits_NE.amin(-1)
        heat_S = spread_N.new_zeros(len(sizes_S)).scatter_reduce(0, sequence_N, spread_N, "amax") / _MILD
        heat_S = heat_S.clamp_min(config.temperature)
        price_SE = logits_NE.new_zeros(len(sizes_S), logits_NE.shape[1])
        n_rounds_S = torch.zeros_like(sizes_S)
        for done in range(config.iterations):
            plan_NE = ((logits_NE - price_SE[sequence_N]) / heat_S[sequence_N].unsqueeze(-1)).softmax(dim=-1)
            mass_SE = torch.zeros_like(price_SE).index_add_(0, sequence_N, plan_NE)
            is_good_S = (mass_SE - room_S1).clamp_min(0).sum(-1) <= config.tolerance * sizes_S
            is_last_S = heat_S <= config.temperature
            if done % _ASKED_EVERY == 0 and bool((is_good_S & is_last_S).all()):
                break
            moved_SE = price_SE + _RELAXATION * heat_S.unsqueeze(-1) * (mass_SE.clamp_min(_LEAST_MASS) / room_S1).log()
            price_SE = torch.where(is_good_S.unsqueeze(-1), price_SE, moved_SE.clamp_min(0))
            n_rounds_S = n_rounds_S + 1
            is_cooled_S = (is_good_S | (n_rounds_S >= _MOST_AT_A_TEMPERATURE)) & ~is_last_S
            heat_S = torch.where(is_cooled_S, (heat_S / 2).clamp_min(config.temperature), heat_S)
            n_rounds_S = n_rounds_S.masked_fill(is_cooled_S, 0)
        return logits_NE - price_SE[sequence_N]


def _overload(expert_N: Tensor, sequence_N: Tensor, room_S1: Tensor, n_experts: int) -> Tensor:
    """Count the tokens above what experts have room for in their sequence."""
    counts_SE = room_S1.new_zeros(len(room_S1) * n_experts).index_add_(
        0, sequence_N * n_experts + expert_N, room_S1.new_ones(len(expert_N))
    )
    return (counts_SE.view(len(room_S1), n_experts) - room_S1).clamp_min(0).sum()


ROUTERS.register("s_base")(RouterEntry(config=SBaseConfig, build=SBaseRouter))
