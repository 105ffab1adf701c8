"""Experts: stacked two-layer MLPs applied to routed tokens. They take (x, token, expert, weight) and know no router.

Legend: N tokens, K routed pairs sorted by expert, E experts, H hidden size, F expert width.

On Hopper, torch multiplies all experts' rows by one kernel, which waits for nothing. Elsewhere one `autograd.Function` loops over
the experts that have tokens and writes each weight gradient into its slice of one stacked tensor: indexing `W[e]` under autograd
would build a full zero gradient per expert, O(E^2). Every expert gets a gradient at every step, zeros where it had no tokens, which
the gradient reduction of ZeRO relies on. A rank may own a slice of the experts alone; then tokens travel to their experts' owners
and back.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.activation import Gelu
from adapt.model.exchange import ExpertShare, Peers, run_at_owners

_FEWEST_ROWS = 16
_ALIGNED = 8  # bf16 values in 16 bytes


class Experts(nn.Module):
    """E MLPs of one width: up_EFH, GELU, down_EHF, with biases; where they are shared with `peers`, of `share` alone."""

    peers: Peers | None = None

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
        if self.share.of == 1:
            y_KH = self._run(x_NH[token_K], counts_E)
        else:
            assert self.peers is not None, "a share of the experts computes with its peers; the engine brings them"
            y_KH = run_at_owners(x_NH[token_K], counts_E, self.peers, self.share.of, self._run)
        y_KH = y_KH * weight_K.to(y_KH.dtype).unsqueeze(-1)
        out_NH = torch.zeros_like(x_NH).index_add(0, token_K, y_KH)
        return out_NH, counts_E

    def own(self, share: ExpertShare) -> None:
        """Keep a share of all experts and let go of the others; nothing happens where the share is kept already."""
        if share == self.share:
            return
        assert self.share.of == 1, "experts are shared once"
        for name, parameter in list(self.named_parameters()):
            setattr(self, name, nn.Parameter(parameter.detach()[share.slice_of(self.n_experts)].clone()))
        self.share = share

    def _run(self, x_KH: Tensor, counts_E: Tensor) -> Tensor:
        weights = (self.up_weight, self.up_bias, self.down_weight, self.down_bias)
        if runs_on_grouped_mm(x_KH, self.up_weight):
            return _grouped_mm_mlp(x_KH, counts_E, self.gelu.approximate, *weights)
        y_KH: Tensor = _GroupedMLP.apply(x_KH, counts_E.tolist(), self.gelu.approximate, *weights)
        return y_KH


def count_pairs(expert_K: Tensor, n_experts: int) -> Tensor:
    """Return how many pairs each expert has: what `bincount` does, without waiting for a CUDA device."""
    return expert_K.new_zeros(n_experts).scatter_add_(0, expert_K, torch.ones_like(expert_K))


def runs_on_grouped_mm(x_KH: Tensor, up_EFH: Tensor) -> bool:
    """Whether torch has one kernel for all experts here: bf16 in rows of 16 bytes on compute capability 9; below, it loops too."""
    is_aligned = up_EFH.shape[1] % _ALIGNED == 0 and up_EFH.shape[2] % _ALIGNED == 0
    if not is_aligned or x_KH.device.type != "cuda" or x_KH.dtype is not torch.bfloat16:
        return False
    return torch.cuda.get_device_capability(x_KH.device) >= (9, 0)


def _grouped_mm_mlp(
    x_KH: Tensor, counts_E: Tensor, gelu: str, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor
) -> Tensor:
    """Run all experts at once; nothing waits for the device."""
    ends_E = counts_E.cumsum(0).to(torch.int32)
    inner_KF = functional.grouped_mm(x_KH, up.transpose(1, 2), offs=ends_E) + _spread(up_bias, counts_E, len(x_KH))
    active_KF = functional.gelu(inner_KF, approximate=gelu)
    return functional.grouped_mm(active_KF, down.transpose(1, 2), offs=ends_E) + _spread(down_bias, counts_E, len(x_KH))


def _spread(bias_EF: Tensor, counts_E: Tensor, n_rows: int) -> Tensor:
    """Repeat each expert's bias for each of its rows."""
    return bias_EF.repeat_interleave(counts_E, dim=0, output_size=n_rows)


def one_expert(x_KH: Tensor, gelu: Gelu, up_FH: Tensor, up_bias_F: Tensor, down_HF: Tensor, down_bias_H: Tensor) -> Tensor:
    """Return one expert's outputs [K, H], the same bits as among the stacked ones."""
    weights = (up_FH.unsqueeze(0), up_bias_F.unsqueeze(0), down_HF.unsqueeze(0), down_bias_H.unsqueeze(0))
    y_KH: Tensor = _GroupedMLP.apply(x_KH, [len(x_KH)], gelu.approximate, *weights)
    return y_KH


class _GroupedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_KH: Tensor, counts: list[int], gelu: str, up: Tensor, up_bias: Tensor, down: Tensor, down_bias: Tensor
    ) -> Tensor:
        pre_KF = x_KH.new_empty(len(x_KH), up.shape[1])
        y_KH = torch.empty_like(x_KH)
        for expert, rows in _slices(counts):
            x, pre, y = x_KH[rows], pre_KF[rows], y_KH[rows]
            is_small = len(x) < _FEWEST_ROWS and x.device.type == "cpu"
            if is_small:
                # The last bits of products of so few rows depend on the number of threads: fill them up with zeros.
                x = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - len(x)))
                pre, y = pre.new_empty(_FEWEST_ROWS, pre.shape[1]), torch.empty_like(x)
            torch.addmm(up_bias[expert], x, up[expert].t(), out=pre)
            torch.addmm(down_bias[expert], functional.gelu(pre, approximate=gelu), down[expert].t(), out=y)
            if is_small:
                n_tokens = rows.stop - rows.start
                pre_KF[rows], y_KH[rows] = pre[:n_tokens], y[:n_tokens]
        ctx.save_for_backward(x_KH, pre_KF, up, down)
        ctx.counts, ctx.gelu = counts, gelu
        return y_KH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_KH, pre_KF, up, down = ctx.saved_tensors
        dy_KH = grads[0].contiguous()
        dx_KH = torch.empty_like(x_KH)
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)
        d_up_bias, d_down_bias = up.new_empty(up.shape[:2]), down.new_empty(down.shape[:2])
        for expert, n_tokens in enumerate(ctx.counts):
            if n_tokens == 0:
                for gradient in (d_up, d_down, d_up_bias, d_down_bias):
                    gradient[expert].zero_()
        for expert, rows in _slices(ctx.counts):
            dy, pre = dy_KH[rows], pre_KF[rows]
            active = functional.gelu(pre, approximate=ctx.gelu)
            torch.mm(dy.t(), active, out=d_down[expert])
            torch.sum(dy, dim=0, out=d_down_bias[expert])
            d_pre = torch.ops.aten.gelu_backward(dy @ down[expert], pre, approximate=ctx.gelu)
            torch.mm(d_pre.t(), x_KH[rows], out=d_up[expert])
            torch.sum(d_pre, dim=0, out=d_up_bias[expert])
            torch.mm(d_pre, up[expert], out=dx_KH[rows])
        return dx_KH, None, None, d_up, d_up_bias, d_down, d_down_bias


def _slices(counts: list[int]) -> list[tuple[int, slice]]:
    """Return (expert, rows) for the experts that have tokens."""
    found, start = [], 0
    for expert, n_tokens in enumerate(counts):
        if n_tokens:
            found.append((expert, slice(start, start + n_tokens)))
        start += n_tokens
    return found
