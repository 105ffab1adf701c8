"""The linear gate that learned routers share, and how the top k of its probabilities become a routing.

Legend: N tokens, K routed (token, expert) pairs, H hidden size, E experts, k experts per token.

Sources: input jitter, Fedus, Zoph and Shazeer 2021 (Switch Transformers), appendix C, arXiv:2101.03961; z-loss, the mean of
logsumexp(logits)^2, Zoph et al. 2022 (ST-MoE), equation 5, arXiv:2202.08906.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.hashing import uniform
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import Router
from adapt.model.routers.settings import SoftmaxGateConfig


class LinearGate(Router):
    """A linear map without bias, kept and computed in fp32."""

    def __init__(self, hidden_size: int, n_experts: int) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.empty(n_experts, hidden_size))

    def logits(self, x_NH: Tensor) -> Tensor:
        logits_NE: Tensor = _ExactProduct.apply(x_NH, self.weight)
        return logits_NE


class SoftmaxGate(LinearGate):
    """A linear gate with jitter and z-loss where they are asked for."""

    def __init__(self, config: SoftmaxGateConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(hidden_size, n_experts)
        self.jitter = config.jitter
        self.traits = replace(self.traits, loss_weights={"z": config.z_loss_weight} if config.z_loss_weight else {})

    def jittered(self, x_NH: Tensor, inputs: RouterInputs) -> Tensor:
        if not self.jitter or not self.training:
            return x_NH
        assert inputs.noise_keys_N is not None, "noise is drawn from row keys; give them to collate"
        return x_NH.float() * (1 + self.jitter * (2 * uniform(inputs.noise_keys_N, x_NH.shape[1]) - 1))

    def losses(self, logits_NE: Tensor) -> dict[str, Tensor]:
        is_asked = self.training and "z" in self.traits.loss_weights
        return {"z": logits_NE.logsumexp(-1).square().sum()} if is_asked else {}


class _ExactProduct(torch.autograd.Function):
    """A product in fp32 that keeps its factors as they came: autograd would keep tokens in bf16 once more in fp32."""

    @staticmethod
    def forward(ctx: Any, x_NH: Tensor, weight_EH: Tensor) -> Tensor:
        ctx.save_for_backward(x_NH, weight_EH)
        return functional.linear(x_NH.float(), weight_EH.float())

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor | None, ...]:
        x_NH, weight_EH = ctx.saved_tensors
        dx_NH = (grads[0] @ weight_EH.float()).to(x_NH.dtype) if ctx.needs_input_grad[0] else None
        d_weight_EH = (grads[0].t() @ x_NH.float()).to(weight_EH.dtype) if ctx.needs_input_grad[1] else None
        return dx_NH, d_weight_EH


def routing_of(
    expert_Nk: Tensor,
    weight_Nk: Tensor,
    probs_NE: Tensor,
    logits_NE: Tensor,
    losses: dict[str, Tensor],
    overload: Tensor | None = None,
) -> Routing:
    """Lay out k experts for each token as flat pairs."""
    n_tokens, k = expert_Nk.shape
    return Routing(
        token_K=torch.arange(n_tokens, device=expert_Nk.device).repeat_interleave(k),
        expert_K=expert_Nk.flatten(),
        weight_K=weight_Nk.flatten(),
        probs_NE=probs_NE,
        logits_NE=logits_NE,
        losses=losses,
        overload=overload,
    )
