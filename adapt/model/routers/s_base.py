"""S-BASE: in training a sequence's tokens are spread evenly over the experts by optimal transport with an entropy term (Sinkhorn).

Legend: N tokens, S sequences, E experts.

Sources: Clark et al. 2022 (Unified Scaling Laws for Routed Language Models), arXiv:2202.01169; BASE layers, which solve the
same assignment exactly: Lewis et al. 2021, arXiv:2103.16716. One sequence is the group.
Training: the arg max of the token's row of a transport plan in which no expert has more than ceil(tokens / E); the output is scaled
by that expert's plain softmax probability. (With exactly tokens / E, as in the paper, a sequence shorter than E would say nothing.)
Inference: the arg max of the token's own logits.
Looks ahead at: the whole sequence, over which the plan is balanced; a training loss is no language-model loss.
Balance loss: none, the plan is even already.
"""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapt.model.inputs import RouterInputs, RouterTraits, Routing
from adapt.model.routers.contract import ROUTERS, RouterEntry
from adapt.model.routers.gates import LinearGate, routing_of
from adapt.model.routers.groups import numbered
from adapt.model.routers.settings import SBaseConfig


class SBaseRouter(LinearGate):
    """One expert per token, evenly over a sequence in training."""

    traits = RouterTraits(has_balance_loss=False, looks_ahead=True)

    def __init__(self, config: SBaseConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(hidden_size, n_experts)
        self.config = config

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        logits_NE = self.logits(x_NH)
        probs_NE = logits_NE.softmax(dim=-1)
        plan_NE = self._log_plan(logits_NE, inputs.sequence_ids_N) if self.training else logits_NE
        expert_N1 = plan_NE.argmax(dim=-1, keepdim=True)
        return routing_of(expert_N1, probs_NE.gather(1, expert_N1), probs_NE, logits_NE, {})

    @torch.no_grad()
    def _log_plan(self, logits_NE: Tensor, sequence_ids_N: Tensor) -> Tensor:
        """Scale rows to sum to 1 and columns down to a sequence's ceil(tokens / E), by turns; in logarithms and fp64."""
        sequence_N, sizes_S = numbered(sequence_ids_N)
        scores_NE = logits_NE.double() / self.config.temperature
        room_S1 = (sizes_S.double() / logits_NE.shape[1]).ceil().log().unsqueeze(-1)
        column_SE = torch.zeros(len(sizes_S), logits_NE.shape[1], dtype=torch.float64, device=logits_NE.device)
        for _ in range(self.config.iterations):
            row_N1 = -(scores_NE + column_SE[sequence_N]).logsumexp(dim=-1, keepdim=True)
            column_SE = (room_S1 - _logsumexp_by_sequence(scores_NE + row_N1, sequence_N, len(sizes_S))).clamp_max(0)
        return scores_NE + column_SE[sequence_N]


def _logsumexp_by_sequence(values_NE: Tensor, sequence_N: Tensor, n_sequences: int) -> Tensor:
    shape = (n_sequences, values_NE.shape[1])
    index_NE = sequence_N.unsqueeze(-1).expand_as(values_NE)
    largest_SE = values_NE.new_full(shape, -math.inf).scatter_reduce(0, index_NE, values_NE, "amax")
    sums_SE = values_NE.new_zeros(shape).index_add(0, sequence_N, (values_NE - largest_SE[sequence_N]).exp())
    return largest_SE + sums_SE.log()


ROUTERS.register("s_base")(RouterEntry(config=SBaseConfig, build=SBaseRouter))
