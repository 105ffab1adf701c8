"""The large-margin form of a gate's logits: a token must lie m times closer to its target expert's direction to be worth as much.

Legend: N tokens, H hidden size, E experts.

Source: Liu et al. 2016 (Large-Margin Softmax, "L-softmax"), equations 4-6, arXiv:1612.02295. The target's logit |w||x| cos(theta)
becomes |w||x| psi(theta), psi = (-1)^k cos(m theta) - 2k for theta in [k pi / m, (k + 1) pi / m], blended with the plain logit as
(margin + beta * plain) / (1 + beta). cos(m theta) is the Chebyshev polynomial T_m(cos theta); k is a constant to the gradient.
beta starts high and decays with the global step, so that training starts from plain softmax. (Large Margin Deep Networks, Elsayed
et al. 2018, arXiv:1803.05598, which some descriptions cite, is another method: it bounds distances to the decision boundary.)
"""

from __future__ import annotations

import math

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.inputs import RouterInputs
from adapt.model.routers.gates import LinearGate
from adapt.model.routers.settings import MarginConfig, MarginTarget


class MarginGate(LinearGate):
    """A linear gate that knows its logits' margin form."""

    def __init__(self, config: MarginConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(hidden_size, n_experts)
        self.config = config

    def margin_logits(self, x_NH: Tensor, logits_NE: Tensor, inputs: RouterInputs) -> tuple[Tensor, Tensor]:
        """Return the logits with each token's target in its margin form, and the targets."""
        assert inputs.step is not None, "the margin is annealed by the global step"
        config = self.config
        is_routed = config.target is MarginTarget.ROUTED
        target_N = logits_NE.argmax(-1) if is_routed else inputs.positions_N % logits_NE.shape[1]
        plain_N = logits_NE.gather(1, target_N.unsqueeze(-1)).squeeze(-1)
        norms_N = x_NH.float().norm(dim=-1) * self.weight.float().norm(dim=-1)[target_N]
        margin_N = norms_N * _psi(plain_N / norms_N.clamp_min(1e-10), config.margin)
        beta = config.beta_start * config.beta_decay**inputs.step
        blended_N = (margin_N + beta * plain_N) / (1 + beta)
        return logits_NE.scatter(1, target_N.unsqueeze(-1), blended_N.unsqueeze(-1)), target_N

    def margin_loss(self, logits_NE: Tensor, target_N: Tensor) -> dict[str, Tensor]:
        return {"margin": functional.cross_entropy(logits_NE, target_N, reduction="sum")}


def _psi(cosine_N: Tensor, margin: int) -> Tensor:
    bounds = [math.cos(k * math.pi / margin) for k in range(1, margin)]
    k_N = sum(((cosine_N < bound).detach().long() for bound in bounds), torch.zeros_like(cosine_N, dtype=torch.int64))
    previous_N, current_N = torch.ones_like(cosine_N), cosine_N
    for _ in range(margin - 1):
        previous_N, current_N = current_N, 2 * cosine_N * current_N - previous_N
    return (1 - 2 * (k_N % 2)) * current_N - 2 * k_N
