"""Negative log-likelihood of targets under logits, in fp32, a block of rows at a time.

Legend: N positions with a target, V vocabulary.

The logits of one step are the largest thing there is; written out in fp32 with their softmax and its gradient they would pass
through memory six times. Here a block stays in the cache, and only logits in their own dtype and one number per row are kept.
"""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import torch
from torch import Tensor

from adapt.core.allocator import given_back

_CPU_ELEMENTS = 1 << 19  # 2 MB of fp32: a core's share of cache
_GPU_ELEMENTS = 1 << 26


def nll_of_logits(logits_NV: Tensor, targets_N: Tensor) -> Tensor:
    """Return the fp32 negative log-likelihood [N] of each row's target; differentiable once."""
    nll_N: Tensor = _LogitsNLL.apply(logits_NV, targets_N)
    return nll_N


class _LogitsNLL(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, logits_NV: Tensor, targets_N: Tensor) -> Tensor:
        total_N = torch.empty(len(targets_N), dtype=torch.float32, device=logits_NV.device)
        picked_N = logits_NV.gather(1, targets_N.unsqueeze(1)).squeeze(1).float()
        for rows in _blocks(logits_NV):
            torch.logsumexp(logits_NV[rows].float(), dim=1, out=total_N[rows])
        ctx.save_for_backward(logits_NV, targets_N, total_N)
        return total_N - picked_N

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, None]:
        logits_NV, targets_N, total_N = ctx.saved_tensors
        grad_N = grads[0].float()
        with given_back():
            out_NV = torch.empty_like(logits_NV)
        for rows in _blocks(logits_NV):
            block = (logits_NV[rows].float() - total_N[rows].unsqueeze(1)).exp_()
            block.scatter_add_(1, targets_N[rows].unsqueeze(1), block.new_full((len(block), 1), -1.0))
            torch.mul(block, grad_N[rows].unsqueeze(1), out=block)
            out_NV[rows] = block
        return out_NV, None


def _blocks(logits_NV: Tensor) -> Iterator[slice]:
    """Cut rows so that a block in fp32 stays in the cache."""
    elements = _CPU_ELEMENTS if logits_NV.device.type == "cpu" else _GPU_ELEMENTS
    size = max(elements // max(logits_NV.shape[1], 1), 1)
    for start in range(0, len(logits_NV), size):
        yield slice(start, start + size)
