"""LAMB: Adam whose update of each tensor is scaled to the tensor's own norm, so that large batches keep a large learning rate.

Source: You et al. 2020, "Large Batch Optimization for Deep Learning", Algorithm 2 (arXiv:1904.00962), with bias correction. Experts
lie stacked in one tensor; each of them has norms of its own, as if it were a tensor by itself. Norms over a piece of a tensor would
be others, which is why this optimizer is refused where ZeRO cuts tensors into flat partitions.

Legend: E experts.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import torch
from torch import Tensor


class Lamb(torch.optim.Optimizer):
    """LAMB over the parameters of `groups`; those in `stacked` (by id) have a norm for each slice of their first dimension."""

    def __init__(
        self, groups: Iterable[dict[str, Any]], lr: float, betas: tuple[float, float], eps: float, stacked: frozenset[int]
    ) -> None:
        super().__init__(groups, {"lr": lr, "betas": betas, "eps": eps, "weight_decay": 0.0})
        self._stacked = stacked

    @torch.no_grad()
    def step(self, closure: Any = None) -> None:  # type: ignore[override]
        """Update every parameter that has a gradient."""
        for group in self.param_groups:
            for parameter in group["params"]:
                if parameter.grad is not None:
                    self._update(parameter, group)

    def _update(self, parameter: Tensor, group: dict[str, Any]) -> None:
        state = self.state[parameter]
        if not state:
            state.update(step=torch.tensor(0.0), exp_avg=torch.zeros_like(parameter), exp_avg_sq=torch.zeros_like(parameter))
        beta1, beta2 = group["betas"]
        state["step"] += 1
        state["exp_avg"].lerp_(parameter.grad, 1 - beta1)
        state["exp_avg_sq"].mul_(beta2).addcmul_(parameter.grad, parameter.grad, value=1 - beta2)
        mean = state["exp_avg"] / (1 - beta1 ** float(state["step"]))
        spread = state["exp_avg_sq"] / (1 - beta2 ** float(state["step"]))
        update = mean / (spread.sqrt() + group["eps"]) + group["weight_decay"] * parameter
        parameter.sub_(update * self._trust(parameter, update), alpha=group["lr"])

    def _trust(self, parameter: Tensor, update: Tensor) -> Tensor:
        """Return ||w|| / ||update|| of the tensor, or of each slice; 1 where either is 0."""
        own = tuple(range(1 if id(parameter) in self._stacked else 0, parameter.dim()))
        weight_norm = torch.linalg.vector_norm(parameter, dim=own, keepdim=True)
        update_norm = torch.linalg.vector_norm(update, dim=own, keepdim=True)
        ratio = weight_norm / update_norm.clamp_min(torch.finfo(update.dtype).tiny)
        return torch.where((weight_norm > 0) & (update_norm > 0), ratio, torch.ones_like(ratio))
