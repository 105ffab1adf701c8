"""The expert-residual network: residual layers behind the experts' combined output, mixed in by the gate's confidence.

Legend: N tokens, E experts, H hidden size.

Each layer is x + down(relu(up(norm(x)))), with a norm of its own eps; the result is alpha * network(g) + (1 - alpha) * g, where g
is the gated expert output and alpha the token's largest gate probability. Source: the public PAI GPT-MoE code (ModelScope, six
layers of width 4H); its down weights start at 0, so that an untrained network changes nothing. It knows no router, and computes in
the format of what it is given: behind a router in fp32 whatever its weights are in.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

_WIDTH_MULTIPLE = 4
_NORM_EPS = 1e-5


class _ResidualLayer(nn.Module):
    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=_NORM_EPS)
        self.up = nn.Linear(hidden_size, _WIDTH_MULTIPLE * hidden_size)
        self.down = nn.Linear(_WIDTH_MULTIPLE * hidden_size, hidden_size)

    def forward(self, x_NH: Tensor) -> Tensor:
        norm, up, down = self.norm, self.up, self.down
        normed = functional.layer_norm(x_NH, x_NH.shape[-1:], norm.weight.to(x_NH), norm.bias.to(x_NH), norm.eps)
        inner = torch.relu(functional.linear(normed, up.weight.to(x_NH), up.bias.to(x_NH)))
        return x_NH + functional.linear(inner, down.weight.to(x_NH), down.bias.to(x_NH))


class ExpertResidual(nn.Module):
    """`n_layers` residual layers over the experts' combined output, mixed in by the largest gate probability."""

    def __init__(self, n_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(_ResidualLayer(hidden_size) for _ in range(n_layers)))

    def forward(self, gated_NH: Tensor, probs_NE: Tensor) -> Tensor:
        alpha_N1 = probs_NE.amax(dim=-1, keepdim=True).to(gated_NH.dtype)
        return alpha_N1 * self.layers(gated_NH) + (1 - alpha_N1) * gated_NH


def starts_at_zero(name: str) -> bool:
    """Whether a parameter of this module is 0 in an untrained model."""
    return ".expert_residual." in name and name.endswith("down.weight")
