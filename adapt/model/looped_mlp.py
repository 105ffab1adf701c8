"""Stacked MLPs applied to routed tokens, an expert at a time, with a backward pass of its own.

Legend: N tokens, K routed pairs sorted by expert, E experts, H hidden size, F expert width.

Indexing `W[e]` under autograd would build a full zero gradient per expert, O(E^2); here each weight gradient is written into its
slice of one stacked tensor, zeros for experts without tokens. Kept for the backward pass are the tokens and the values before GELU;
those behind it only where they are few beside the weights' gradients, elsewhere they are computed again. Rows are picked out of the
tokens again, and a pair's weight gets its gradient from <dout, down a + b> = <down^T dout, a> + <dout, b>, so that no expert's
output is kept.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.activation import Gelu

_FEWEST_ROWS = 16
_KEPT_SHARE = 1 / 4  # of the weights' gradients: values behind GELU up to so many are kept


def looped_mlp(
    x_NH: Tensor, token_K: Tensor, weight_K: Tensor, counts: Sequence[int], gelu: Gelu, weights: Sequence[Tensor]
) -> Tensor:
    """Return each token's weighted sum of outputs [N, H] of its experts, whose `counts` say how many pairs each has.

    `weights` are up_EFH, its bias, down_EHF and its bias.
    """
    out_NH: Tensor = _LoopedMLP.apply(x_NH, token_K, weight_K, counts, gelu.approximate, *weights)
    return out_NH


def looped_rows(x_KH: Tensor, counts: Sequence[int], gelu: Gelu, weights: Sequence[Tensor]) -> Tensor:
    """Return each row's own output [K, H], unweighted; rows are sorted by expert."""
    return looped_mlp(x_KH, torch.arange(len(x_KH), device=x_KH.device), x_KH.new_ones(len(x_KH)), counts, gelu, weights)


def one_expert(x_KH: Tensor, gelu: Gelu, up_FH: Tensor, up_bias_F: Tensor, down_HF: Tensor, down_bias_H: Tensor) -> Tensor:
    """Return one expert's outputs [K, H], the same bits as among the stacked ones."""
    return looped_rows(x_KH, [len(x_KH)], gelu, [weight.unsqueeze(0) for weight in (up_FH, up_bias_F, down_HF, down_bias_H)])


class _LoopedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, token_K: Tensor, weight_K: Tensor, counts: Sequence[int], gelu: str, *weights: Tensor
    ) -> Tensor:
        up, up_bias, down, down_bias = weights
        pre_KF = x_NH.new_empty(len(token_K), up.shape[1])
        keeps_active = pre_KF.numel() <= _KEPT_SHARE * (up.numel() + down.numel())
        kept_active: list[Tensor | None] = []
        out_NH = torch.zeros_like(x_NH)
        for expert, rows in _slices(counts):
            token, pre = token_K[rows], pre_KF[rows]
            x = x_NH.index_select(0, token)
            n_rows = len(x)
            is_small = n_rows < _FEWEST_ROWS and x.device.type == "cpu"
            if is_small:
                # The last bits of products of so few rows depend on the number of threads: fill them up with zeros.
                x = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - n_rows))
                pre = pre.new_empty(_FEWEST_ROWS, pre.shape[1])
            torch.addmm(up_bias[expert], x, up[expert].t(), out=pre)
            active = functional.gelu(pre, approximate=gelu)
            y = torch.addmm(down_bias[expert], active, down[expert].t())[:n_rows]
            if is_small:
                pre_KF[rows] = pre[:n_rows]
            kept_active.append(active[:n_rows] if keeps_active else None)
            out_NH.index_add_(0, token, y.mul_(_column(weight_K[rows], y)))
        ctx.save_for_backward(x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active)
        ctx.counts, ctx.gelu = counts, gelu
        return out_NH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active = ctx.saved_tensors
        dx_NH, d_weight_K = torch.zeros_like(x_NH), torch.zeros_like(weight_K)
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)
        d_up_bias, d_down_bias = up.new_empty(up.shape[:2]), torch.empty_like(down_bias)
        for expert, n_rows in enumerate(ctx.counts):
            if n_rows == 0:
                for gradient in (d_up, d_down, d_up_bias, d_down_bias):
                    gradient[expert].zero_()
        for (expert, rows), active in zip(_slices(ctx.counts), kept_active, strict=True):
            token, pre = token_K[rows], pre_KF[rows]
            dout = grads[0].index_select(0, token)
            weight = _column(weight_K[rows], dout)
            if active is None:
                active = functional.gelu(pre, approximate=ctx.gelu)
            d_pre = dout @ down[expert]  # of an output with weight 1; weights are multiplied into what has H columns, not F
            dy = dout * weight
            torch.mm(dy.t(), active, out=d_down[expert])
            torch.sum(dy, dim=0, out=d_down_bias[expert])
            if ctx.needs_input_grad[2]:
                d_weight_K[rows] = ((active * d_pre).sum(-1) + (dout * down_bias[expert]).sum(-1)).to(d_weight_K.dtype)
            del active, dy
            torch.ops.aten.gelu_backward.grad_input(d_pre, pre, approximate=ctx.gelu, grad_input=d_pre)
            torch.mm(d_pre.t(), x_NH.index_select(0, token).mul_(weight), out=d_up[expert])
            torch.mm(weight.t(), d_pre, out=d_up_bias[expert].unsqueeze(0))
            dx_NH.index_add_(0, token, (d_pre @ up[expert]).mul_(weight))
        return dx_NH, None, d_weight_K, None, None, d_up, d_up_bias, d_down, d_down_bias


def _column(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like.dtype).unsqueeze(-1)


def _slices(counts: Sequence[int]) -> Iterator[tuple[int, slice]]:
    """Yield (expert, rows) for the experts that have tokens."""
    start = 0
    for expert, n_rows in enumerate(counts):
        if n_rows:
            yield expert, slice(start, start + n_rows)
        start += n_rows
