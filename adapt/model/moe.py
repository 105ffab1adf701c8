"""The feed-forward part of a block: a dense MLP, or a router with its experts and, beside them, a residual dense MLP.

Legend: B rows, T positions, N tokens that are not padding, H hidden size.

Residual MoE: out = c0 * experts(x) + c1 * mlp(x) with (c0, c1) = softmax of a small linear map of x (Rajbhandari et al. 2022,
DeepSpeed-MoE, section 4.1.2, arXiv:2201.05596). Padding is taken out before routing and never reaches an expert or a statistic.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.model.activation import Gelu
from adapt.model.expert_residual import ExpertResidual
from adapt.model.experts import Experts
from adapt.model.inputs import LayerRouting, ModelInputs, RouterInputs
from adapt.model.routers.contract import RouterConfig, build_router


class DenseMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, hidden_size: int, width: int, gelu: Gelu = Gelu.TANH) -> None:
        super().__init__()
        self.gelu = gelu
        self.up = nn.Linear(hidden_size, width)
        self.down = nn.Linear(width, hidden_size)

    def forward(self, x: Tensor) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate=self.gelu.approximate))


class MoELayer(nn.Module):
    """A routed layer; `is_residual` adds the dense MLP beside the routed expert, `expert_residual_layers` a network behind it."""

    def __init__(
        self,
        hidden_size: int,
        width: int,
        n_experts: int,
        router: RouterConfig,
        is_residual: bool,
        gelu: Gelu = Gelu.TANH,
        expert_residual_layers: int = 0,
    ) -> None:
        super().__init__()
        self.router = build_router(router, hidden_size, n_experts)
        self.experts = Experts(n_experts, hidden_size, width, gelu)
        self.expert_residual = ExpertResidual(expert_residual_layers, hidden_size) if expert_residual_layers else None
        self.residual_mlp = DenseMLP(hidden_size, width, gelu) if is_residual else None
        self.residual_mix = nn.Linear(hidden_size, 2) if is_residual else None

    def forward(self, x_BTH: Tensor, inputs: ModelInputs) -> tuple[Tensor, LayerRouting]:
        flat = x_BTH.flatten(0, 1)
        documents = inputs.documents_BT.flatten()
        real_N = documents.nonzero().squeeze(-1)
        rows, positions = inputs.ids_BT.shape
        row_of = torch.arange(rows, device=flat.device).repeat_interleave(positions)
        # Documents are numbered within a row; rows hold at most T of them, so this numbers them across the batch.
        sequences = row_of * (positions + 1) + documents
        router_inputs = RouterInputs(
            token_ids_N=inputs.ids_BT.flatten()[real_N],
            sequence_ids_N=sequences[real_N],
            domain_ids_N=None if inputs.domains_BT is None else inputs.domains_BT.flatten()[real_N],
            step=inputs.step,
        )
        x_NH = flat[real_N]
        routing = self.router.route(x_NH, router_inputs)
        out_NH, counts_E = self.experts(x_NH, routing.token_K, routing.expert_K, routing.weight_K)
        out_NH = self.router.combine(out_NH, routing)
        if self.expert_residual is not None:
            out_NH = self.expert_residual(out_NH, routing.probs_NE)
        out = torch.zeros_like(flat).index_copy(0, real_N, out_NH).view_as(x_BTH)
        if self.residual_mlp is not None and self.residual_mix is not None:
            mix = self.residual_mix(x_BTH).softmax(dim=-1)
            out = out * mix[..., :1] + self.residual_mlp(x_BTH) * mix[..., 1:]
        report = LayerRouting(
            probs_NE=routing.probs_NE,
            counts_E=counts_E,
            expert_K=routing.expert_K,
            token_K=routing.token_K,
            sequence_ids_N=router_inputs.sequence_ids_N,
            losses=routing.losses,
        )
        return out, report
