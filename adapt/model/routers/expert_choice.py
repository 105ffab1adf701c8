"""Expert choice: every expert picks the tokens it gives most weight to; what they return goes through a residual network.

Legend: N tokens, P picked ranks, S sequences, E experts, H hidden size, K routed (token, expert) pairs.

Sources: Zhou et al. 2022 (Mixture-of-Experts with Expert Choice Routing), arXiv:2202.09368, with one sequence as the
group; expert residual and margin loss after the PAI GPT-MoE family: g, the weighted sum of what the picking experts return, becomes
alpha * net(g) + (1 - alpha) * g with alpha the token's largest gate probability. Margin: Liu et al. 2016, arXiv:1612.02295.
Training: each expert takes the same number of tokens of a sequence, those of largest probability; a token may get several experts
or none. Inference: the arg max of the token's own logits takes it, scaled by its probability.
Looks ahead at: the whole sequence, whose later tokens compete for the same places; a training loss is no language-model loss.
Balance loss: none, loads are equal by construction. Own loss: `margin`, which makes the arg max decisive, as inference needs.
"""

from __future__ import annotations

import torch
from torch import Tensor

from adapt.model.expert_residual import ExpertResidual
from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry, numbered
from adapt.model.routers.gates import routing_of
from adapt.model.routers.margin import MarginGate
from adapt.model.routers.settings import ExpertChoiceConfig

_RESIDUAL_LAYERS = 6


class ExpertChoiceRouter(MarginGate):
    """Experts pick in training, tokens at inference; the residual network runs in both, in fp32."""

    def __init__(self, config: ExpertChoiceConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(config, hidden_size, n_experts)
        self.picks_per_token = config.picks_per_token
        self.expert_residual = ExpertResidual(_RESIDUAL_LAYERS, hidden_size)
        self.traits = RouterTraits(has_balance_loss=False, looks_ahead=True, loss_weights={"margin": config.loss_weight})

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(x_NH)
        probs_NE = logits_NE.softmax(dim=-1)
        if not self.training:
            weight_N1, expert_N1 = probs_NE.max(dim=-1, keepdim=True)
            return routing_of(expert_N1, weight_N1, probs_NE, logits_NE, {})
        token_K, expert_K = _picks(probs_NE.detach(), inputs.sequence_ids_N, self.picks_per_token)
        return Routing(
            token_K=token_K,
            expert_K=expert_K,
            weight_K=probs_NE[token_K, expert_K],
            probs_NE=probs_NE,
            logits_NE=logits_NE,
            losses=self.margin_loss(*self.margin_logits(x_NH, logits_NE, inputs)),
        )

    def combine(self, out_NH: Tensor, routing: Routing) -> Tensor:
        return self.expert_residual(out_NH.float(), routing.probs_NE).to(out_NH.dtype)


def _picks(probs_NE: Tensor, sequence_ids_N: Tensor, picks_per_token: float) -> tuple[Tensor, Tensor]:
    """Return the pairs in which each expert takes its ceil(picks_per_token * size / E) best tokens of every sequence."""
    n_tokens, n_experts = probs_NE.shape
    sequence_N, sizes_S = numbered(sequence_ids_N)
    picks_S = (picks_per_token * sizes_S.double() / n_experts).ceil().clamp_max(sizes_S)
    # Sorted by probability and then, keeping that order, by sequence: each column lists the sequences one after another.
    best_NE = probs_NE.argsort(dim=0, descending=True, stable=True)
    best_NE = best_NE.gather(0, sequence_N[best_NE].argsort(dim=0, stable=True))
    listed_N = sequence_N.sort().values
    rank_N = torch.arange(n_tokens, device=probs_NE.device) - (sizes_S.cumsum(0) - sizes_S)[listed_N]
    token_PE = best_NE[rank_N < picks_S[listed_N]]
    expert_PE = torch.arange(n_experts, device=probs_NE.device).expand_as(token_PE)
    return token_PE.flatten(), expert_PE.flatten()


ROUTERS.register("expert_choice")(RouterEntry(config=ExpertChoiceConfig, build=ExpertChoiceRouter))
