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
        up, _, down, down_bias = weights
        pre_KF = x_NH.new_empty(len(token_K), up.shape[1])
        keeps_active = pre_KF.numel() <= _KEPT_SHARE * (up.numel() + down.numel())
        kept_active: list[Tensor | None] = []
        out_NH = torch.zeros_like(x_NH)
        rows = _by_expert(counts, token_K, _column(weight_K, x_NH), pre_KF)
        for n_rows, (token, weight, pre), (up_FH, up_bias_F, down_HF, down_bias_H) in zip(
            counts, rows, _stacked(weights), strict=True
        ):
            if not n_rows:
                kept_active.append(None)
                continue
            x, wide = x_NH.index_select(0, token), pre
            is_small = n_rows < _FEWEST_ROWS and x.device.type == "cpu"
            if is_small:
                # The last bits of products of so few rows depend on the number of threads: fill them up with zeros.
                x = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - n_rows))
                wide = pre.new_empty(_FEWEST_ROWS, pre.shape[1])
            torch.addmm(up_bias_F, x, up_FH.t(), out=wide)
            active = functional.gelu(wide, approximate=gelu)
            y = torch.addmm(down_bias_H, active, down_HF.t())[:n_rows]
            if is_small:
                pre.copy_(wide[:n_rows])
            kept_active.append(active[:n_rows] if keeps_active else None)
            out_NH.index_add_(0, token, y.mul_(weight))
        ctx.save_for_backward(x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active)
        ctx.counts, ctx.gelu = counts, gelu
        return out_NH

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active = ctx.saved_tensors
        dx_NH, d_weight_K = torch.zeros_like(x_NH), torch.zeros_like(weight_K)
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)
        d_up_bias, d_down_bias = up.new_empty(up.shape[:2]), torch.empty_like(down_bias)
        rows = _by_expert(ctx.counts, token_K, _column(weight_K, x_NH), pre_KF, d_weight_K)
        each = zip(
            ctx.counts,
            rows,
            _stacked((up, down, down_bias)),
            _stacked((d_up, d_up_bias, d_down, d_down_bias)),
            kept_active,
            strict=True,
        )
        for n_rows, (token, weight, pre, d_weight), (up_FH, down_HF, down_bias_H), gradients, active in each:
            if not n_rows:
                for gradient in gradients:
                    gradient.zero_()
                continue
            d_up_FH, d_up_bias_F, d_down_HF, d_down_bias_H = gradients
            dout = grads[0].index_select(0, token)
            if active is None:
                active = functional.gelu(pre, approximate=ctx.gelu)
            d_pre = dout @ down_HF  # of an output with weight 1; weights are multiplied into what has H columns, not F
            dy = dout * weight
            torch.mm(dy.t(), active, out=d_down_HF)
            torch.sum(dy, dim=0, out=d_down_bias_H)
            if ctx.needs_input_grad[2]:
                d_weight.copy_((active * d_pre).sum(-1) + dout @ down_bias_H)
            del active, dy
            torch.ops.aten.gelu_backward.grad_input(d_pre, pre, approximate=ctx.gelu, grad_input=d_pre)
            torch.mm(d_pre.t(), x_NH.index_select(0, token).mul_(weight), out=d_up_FH)
            torch.mm(weight.t(), d_pre, out=d_up_bias_F.unsqueeze(0))
            dx_NH.index_add_(0, token, (d_pre @ up_FH).mul_(weight))
        return dx_NH, None, d_weight_K, None, None, d_up, d_up_bias, d_down, d_down_bias


def _column(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like.dtype).unsqueeze(-1)


def _by_expert(counts: Sequence[int], *tensors: Tensor) -> Iterator[tuple[Tensor, ...]]:
    """Cut tensors of pairs into each expert's own; one call for all costs less than a slice for each."""
    return zip(*(tensor.split(list(counts)) for tensor in tensors), strict=True)


def _stacked(weights: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
    """Take stacked tensors apart."""
    return zip(*(weight.unbind(0) for weight in weights), strict=True)
