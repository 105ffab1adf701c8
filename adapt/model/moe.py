"""The feed-forward part of a block: a dense MLP, or a router with its experts and, beside them, a residual dense MLP.

Legend: B rows, T positions, N tokens that are not padding, H hidden size.

Residual MoE: out = c0 * experts(x) + c1 * mlp(x) with (c0, c1) = softmax of a small linear map of x (Rajbhandari et al. 2022,
DeepSpeed-MoE, section 4.1.2, arXiv:2201.05596). Padding is taken out before routing and never reaches an expert or a statistic.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.config import Gelu
from adapt.model.expert_residual import ExpertResidual
from adapt.model.experts import Experts, count_pairs
from adapt.model.hashing import mixed
from adapt.model.inputs import LayerRouting, ModelInputs, RouterInputs, Routing
from adapt.model.rerouting import spread_evenly, within_capacity
from adapt.model.routers.contract import build_router
from adapt.model.routers.settings import RouterConfig


class DenseMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, hidden_size: int, width: int, gelu: Gelu = Gelu.TANH) -> None:
        super().__init__()
        self.gelu = gelu
        self.up = nn.Linear(hidden_size, width)
        self.down = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate=self.gelu.approximate))


@dataclass(frozen=True, kw_only=True)
class Sent:
    """Real tokens on their way to the experts: what the router decided, and what of it capacity left."""

    real_N: Tensor
    x_NH: Tensor
    router_inputs: RouterInputs
    routing: Routing
    kept: Routing


class MoELayer(nn.Module):
    """A routed layer; `is_residual` adds the dense MLP beside the routed experts, `expert_residual_layers` a network behind them.

    Capacity, where set, is for training only. `is_even` spreads tokens evenly whatever the router says.
    """

    def __init__(
        self,
        hidden_size: int,
        width: int,
        n_experts: int,
        router: RouterConfig,
        is_residual: bool,
        layer: int = 0,
        capacity_factor: float | None = None,
        gelu: Gelu = Gelu.TANH,
        expert_residual_layers: int = 0,
        is_even: bool = False,
    ) -> None:
        super().__init__()
        self.layer = layer
        self.is_even = is_even
        self.capacity_factor = capacity_factor
        self.router = build_router(router, hidden_size, n_experts)
        self.experts = Experts(n_experts, hidden_size, width, gelu)
        self.expert_residual = ExpertResidual(expert_residual_layers, hidden_size) if expert_residual_layers else None
        self.residual_mlp = DenseMLP(hidden_size, width, gelu) if is_residual else None
        self.residual_mix = nn.Linear(hidden_size, 2) if is_residual else None

    def forward(self, x_BTH: Tensor, inputs: ModelInputs) -> tuple[Tensor, LayerRouting]:
        sent = self.send(x_BTH, inputs)
        out_NH, kept_E = self.experts(sent.x_NH, sent.kept.token_K, sent.kept.expert_K, sent.kept.weight_K)
        return self.gather(x_BTH, sent, out_NH, kept_E)

    def send(self, x_BTH: Tensor, inputs: ModelInputs) -> Sent:
        """Decide which tokens go to which experts."""
        flat = x_BTH.flatten(0, 1)
        real_N = inputs.token_places().real_N
        router_inputs = self._router_inputs(inputs, real_N)
        x_NH = flat if len(real_N) == len(flat) else flat[real_N]
        routing = kept = self.router.route(x_NH, router_inputs)
        if self.is_even:
            routing = kept = spread_evenly(routing, router_inputs, self.experts.n_experts, self.layer)
        if self.training and self.capacity_factor is not None:
            kept = within_capacity(routing, router_inputs, self.experts.n_experts, self.capacity_factor)
        return Sent(real_N=real_N, x_NH=x_NH, router_inputs=router_inputs, routing=routing, kept=kept)

    def gather(self, x_BTH: Tensor, sent: Sent, out_NH: Tensor, kept_E: Tensor) -> tuple[Tensor, LayerRouting]:
        """Put the experts' outputs for the tokens sent, so many of them per expert, back in place, with what goes beside them."""
        routing, kept = sent.routing, sent.kept
        counts_E = kept_E if kept is routing else count_pairs(routing.expert_K, self.experts.n_experts)
        out_NH = self.router.combine(out_NH, kept)
        if self.expert_residual is not None:
            out_NH = self.expert_residual(out_NH, routing.probs_NE)
        out = out_NH.view_as(x_BTH) if len(out_NH) == x_BTH.shape[:2].numel() else _padded(out_NH, sent.real_N, x_BTH)
        if self.residual_mlp is not None and self.residual_mix is not None:
            mix = self.residual_mix(x_BTH).softmax(dim=-1)
            out = out * mix[..., :1] + self.residual_mlp(x_BTH) * mix[..., 1:]
        report = LayerRouting(
            probs_NE=routing.probs_NE,
            logits_NE=routing.logits_NE,
            counts_E=counts_E,
            dropped=(counts_E - kept_E).sum(),
            expert_K=routing.expert_K,
            token_K=routing.token_K,
            sequence_ids_N=sent.router_inputs.sequence_ids_N,
            losses=routing.losses,
            overload=routing.overload,
        )
        return out, report

    def _router_inputs(self, inputs: ModelInputs, real_N: Tensor) -> RouterInputs:
        """Take padding out and number the documents across the batch."""
        positions = inputs.ids_BT.shape[1]
        row_N, column_N = real_N // positions, real_N % positions
        domains_BT = torch.zeros_like(inputs.ids_BT) if inputs.domains_BT is None else inputs.domains_BT
        noise_keys_N = None
        if inputs.row_keys_B is not None:
            noise_keys_N = mixed(mixed(inputs.row_keys_B, self.layer)[row_N] ^ column_N, salt=0)
        return RouterInputs(
            token_ids_N=inputs.ids_BT.flatten()[real_N],
            # Documents are numbered within a row; rows hold at most T of them.
            sequence_ids_N=row_N * (positions + 1) + inputs.documents_BT.flatten()[real_N],
            positions_N=inputs.positions_BT.flatten()[real_N],
            domain_ids_N=domains_BT.flatten()[real_N],
            step=inputs.step,
            noise_keys_N=noise_keys_N,
        )


def _padded(out_NH: Tensor, real_N: Tensor, like_BTH: Tensor) -> Tensor:
    """Put tokens' outputs at their places, and zeros at those of padding. (`index_copy_` would keep them for the backward pass.)"""
    return torch.zeros_like(like_BTH.flatten(0, 1)).index_put_((real_N,), out_NH).view_as(like_BTH)
