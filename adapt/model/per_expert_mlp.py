"""Stacked MLPs applied to routed tokens, products an expert at a time, with a backward pass of its own.

Legend: N tokens, K routed pairs sorted by expert, E experts, H hidden size, F expert width.

Indexing `W[e]` under autograd would build a full zero gradient per expert, O(E^2); here each weight gradient is written into its
slice of one stacked tensor, zeros for experts without tokens. Kept for the backward pass are the tokens and the values before GELU;
those behind it only where they are few beside the weights' gradients, elsewhere they are computed again. Rows are picked out of the
tokens again, and a pair's weight gets its gradient from <dout, down a + b> = <down^T dout, a> + <dout, b>, so that no expert's
output is kept. What is not a product is done for groups of neighbouring experts at once, which are as large as memory allows.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.config import Gelu

_FEWEST_ROWS = 16
_KEPT_SHARE = 1 / 4  # of the weights' gradients: values behind GELU up to so many are kept
_GROUP_SHARE = 1 / 64  # of the weights' gradients: values before GELU of a group of experts


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


@dataclass(frozen=True)
class _Group:
    """Neighbouring experts, how many pairs each has, and where these are."""

    experts: range
    counts: list[int]
    rows: slice

    def each(self, stacked: Sequence[Tensor], pairs: Sequence[Tensor]) -> Iterator[tuple[Tensor, ...]]:
        """Yield slices of stacked weights and of the group's pairs, of each expert that has any."""
        of_experts = zip(*(weight[self.experts.start : self.experts.stop].unbind(0) for weight in stacked), strict=True)
        of_pairs = zip(*(tensor.split(self.counts) for tensor in pairs), strict=True)
        return (owned + taken for owned, taken, n in zip(of_experts, of_pairs, self.counts, strict=True) if n)


class _LoopedMLP(torch.autograd.Function):
    @staticmethod
    def forward(
        ctx: Any, x_NH: Tensor, token_K: Tensor, weight_K: Tensor, counts: Sequence[int], gelu: str, *weights: Tensor
    ) -> Tensor:
        up, up_bias, down, down_bias = weights
        pre_KF = x_NH.new_empty(len(token_K), up.shape[1])
        y_KH = x_NH.new_empty(len(token_K), x_NH.shape[1])
        keeps_active = pre_KF.numel() <= _KEPT_SHARE * (up.numel() + down.numel())
        groups = _groups(counts, most_rows=int(_GROUP_SHARE * (up.numel() + down.numel())) // up.shape[1])
        kept_active: list[Tensor | None] = []
        for group in groups:
            x, pre, y = x_NH.index_select(0, token_K[group.rows]), pre_KF[group.rows], y_KH[group.rows]
            for up_FH, up_bias_F, x_of, pre_of in group.each((up, up_bias), (x, pre)):
                _affine(x_of, up_FH, up_bias_F, pre_of)
            active = functional.gelu(pre, approximate=gelu)
            for down_HF, down_bias_H, active_of, y_of in group.each((down, down_bias), (active, y)):
                _affine(active_of, down_HF, down_bias_H, y_of)
            kept_active.append(active if keeps_active else None)
        ctx.save_for_backward(x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active)
        ctx.groups, ctx.gelu = groups, gelu
        return torch.zeros_like(x_NH).index_add_(0, token_K, y_KH.mul_(_column(weight_K, y_KH)))

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, token_K, weight_K, pre_KF, up, down, down_bias, *kept_active = ctx.saved_tensors
        dx_NH, d_weight_K = torch.zeros_like(x_NH), torch.zeros_like(weight_K)
        d_up, d_down = torch.empty_like(up), torch.empty_like(down)
        d_up_bias, d_down_bias = up.new_empty(up.shape[:2]), torch.empty_like(down_bias)
        column_K1 = _column(weight_K, x_NH)
        for group, active in zip(ctx.groups, kept_active, strict=True):
            for expert, n_rows in zip(group.experts, group.counts, strict=True):
                if n_rows == 0:
                    for gradient in (d_up, d_down, d_up_bias, d_down_bias):
                        gradient[expert].zero_()
            token, weight, pre = token_K[group.rows], column_K1[group.rows], pre_KF[group.rows]
            dout = grads[0].index_select(0, token)
            if active is None:
                active = functional.gelu(pre, approximate=ctx.gelu)
            dy, d_pre = dout * weight, torch.empty_like(pre)
            of_bias = dout.new_empty(len(dout))
            each = group.each((down, down_bias, d_down, d_down_bias), (dout, dy, active, d_pre, of_bias))
            for down_HF, down_bias_H, d_down_HF, d_down_bias_H, dout_of, dy_of, active_of, d_pre_of, of_bias_of in each:
                # Of an output with weight 1: weights are multiplied into what has H columns, not F.
                torch.mm(dout_of, down_HF, out=d_pre_of)
                torch.mm(dy_of.t(), active_of, out=d_down_HF)
                torch.sum(dy_of, dim=0, out=d_down_bias_H)
                torch.sum(dout_of * down_bias_H, dim=-1, out=of_bias_of)
            if ctx.needs_input_grad[2]:
                d_weight_K[group.rows] = (active * d_pre).sum(-1) + of_bias
            del active, dy
            torch.ops.aten.gelu_backward.grad_input(d_pre, pre, approximate=ctx.gelu, grad_input=d_pre)
            x, dx = x_NH.index_select(0, token).mul_(weight), dout
            for up_FH, d_up_FH, d_up_bias_F, weight_of, x_of, d_pre_of, dx_of in group.each(
                (up, d_up, d_up_bias), (weight, x, d_pre, dx)
            ):
                torch.mm(d_pre_of.t(), x_of, out=d_up_FH)
                torch.mm(weight_of.t(), d_pre_of, out=d_up_bias_F.unsqueeze(0))
                torch.mm(d_pre_of, up_FH, out=dx_of)
            dx_NH.index_add_(0, token, dx.mul_(weight))
        return dx_NH, None, d_weight_K, None, None, d_up, d_up_bias, d_down, d_down_bias


def _affine(x: Tensor, weight: Tensor, bias: Tensor, out: Tensor) -> None:
    """Write x @ weight^T + bias to `out`, the same bits with any number of threads."""
    n_rows = len(x)
    if n_rows >= _FEWEST_ROWS or x.device.type != "cpu":
        torch.addmm(bias, x, weight.t(), out=out)
        return
    # The last bits of products of so few rows depend on the number of threads: fill them up with zeros.
    x = functional.pad(x, (0, 0, 0, _FEWEST_ROWS - n_rows))
    out.copy_(torch.addmm(bias, x, weight.t())[:n_rows])


def _column(weight: Tensor, like: Tensor) -> Tensor:
    return weight.to(like.dtype).unsqueeze(-1)


def _groups(counts: Sequence[int], most_rows: int) -> list[_Group]:
    """Put neighbouring experts together up to so many pairs; an expert with more is a group of its own."""
    groups: list[_Group] = []
    first = start = n_rows = 0
    for expert, count in enumerate(counts):
        if expert > first and n_rows + count > most_rows:
            groups.append(_Group(range(first, expert), list(counts[first:expert]), slice(start, start + n_rows)))
            first, start, n_rows = expert, start + n_rows, 0
        n_rows += count
    return [*groups, _Group(range(first, len(counts)), list(counts[first:]), slice(start, start + n_rows))]
