"""Experts: stacked two-layer MLPs applied to routed tokens. They take (x, token, expert, weight) and know no router.

Legend: N tokens, K routed pairs sorted by expert, E experts, H hidden size, F expert width.

Where one kernel multiplies all experts' rows (`grouped_gemm`), it does; elsewhere they are multiplied one by one (`looped_mlp`).
Every expert gets a gradient at every step, zeros where it had no tokens, which the gradient reduction of ZeRO relies on. A rank may
own only a slice of the experts; then tokens travel to their experts' owners and back.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from adapt.model.config import Gelu
from adapt.model.exchange import ExpertShare, Peers, run_at_owners
from adapt.model.grouped_gemm import GroupedGemm, gemm_for, grouped_rows
from adapt.model.per_expert_mlp import looped_mlp, looped_rows


class Experts(nn.Module):
    """E MLPs of one width: up_EFH, GELU, down_EHF, with biases; where they are shared with `peers`, only those of `share`.

    `brought_gemm` is a product that the engine brings for GPUs without one of torch's.
    """

    peers: Peers | None = None
    brought_gemm: GroupedGemm | None = None

    def __init__(self, n_experts: int, hidden_size: int, width: int, gelu: Gelu = Gelu.TANH) -> None:
        super().__init__()
        self.gelu = gelu
        self.n_experts = n_experts
        self.share = ExpertShare()
        self.up_weight = nn.Parameter(torch.empty(n_experts, width, hidden_size))
        self.up_bias = nn.Parameter(torch.empty(n_experts, width))
        self.down_weight = nn.Parameter(torch.empty(n_experts, hidden_size, width))
        self.down_bias = nn.Parameter(torch.empty(n_experts, hidden_size))

    def forward(self, x_NH: Tensor, token_K: Tensor, expert_K: Tensor, weight_K: Tensor) -> tuple[Tensor, Tensor]:
        """Return the weighted sum of expert outputs for each token, and how many tokens each expert took."""
        order_K = torch.argsort(expert_K, stable=True)
        counts_E = count_pairs(expert_K, self.n_experts)
        token_K, weight_K = token_K[order_K], weight_K[order_K]
        if self.share.of == 1 and gemm_for(x_NH, self.up_weight, self.brought_gemm) is None:
            return looped_mlp(x_NH, token_K, weight_K, counts_E.tolist(), self.gelu, self._weights()), counts_E
        if self.share.of == 1:
            y_KH = self._run(x_NH[token_K], counts_E)
        else:
            assert self.peers is not None, "a share of the experts computes with its peers; the engine brings them"
            y_KH = run_at_owners(x_NH[token_K], counts_E, self.peers, self.share.of, self._run)
        y_KH = y_KH * weight_K.to(y_KH.dtype).unsqueeze(-1)
        return torch.zeros_like(x_NH).index_add_(0, token_K, y_KH), counts_E

    def own(self, share: ExpertShare) -> None:
        """Keep a share of all experts and let go of the others; nothing happens where the share is kept already."""
        if share == self.share:
            return
        assert self.share.of == 1, "experts are shared once"
        for name, parameter in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(parameter.detach()[share.slice_of(self.n_experts)].clone()))
        self.share = share

    def _run(self, x_KH: Tensor, counts_E: Tensor) -> Tensor:
        """Return the output of each row, unweighted; rows are sorted by expert."""
        gemm = gemm_for(x_KH, self.up_weight, self.brought_gemm)
        if gemm is None:
            return looped_rows(x_KH, counts_E.tolist(), self.gelu, self._weights())
        return grouped_rows(x_KH, counts_E, self.gelu, self._weights(), gemm)

    def _weights(self) -> tuple[Tensor, Tensor, Tensor, Tensor]:
        return self.up_weight, self.up_bias, self.down_weight, self.down_bias


def count_pairs(expert_K: Tensor, n_experts: int) -> Tensor:
    """Return how many pairs each expert has: what `bincount` does, without waiting for a CUDA device."""
    return expert_K.new_zeros(n_experts).scatter_add_(0, expert_K, torch.ones_like(expert_K))
