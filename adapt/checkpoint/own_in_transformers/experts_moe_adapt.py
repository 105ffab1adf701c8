"""Routers, experts and feed-forward parts of a model that moe-adapt writes, for transformers 5.

This file lies next to the weights and needs only torch. A token's experts follow from that token only, whatever the router did in
training: capacity, noise, margins and balance losses are for training, and are not here.

Legend: B rows, T positions, N tokens that are not padding, H hidden size, E experts, k experts per token.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import TYPE_CHECKING

import torch
from torch import Tensor, nn
from torch.nn import functional

if TYPE_CHECKING:
    from .configuration_moe_adapt import MoEAdaptConfig

_GELU = {"gelu_pytorch_tanh": "tanh", "gelu": "none"}
_SMALLEST_SUM = 1e-20
_RESIDUAL_EPS, _RESIDUAL_MULTIPLE, _EXPERT_CHOICE_LAYERS = 1e-5, 4, 6
Picked = tuple[Tensor, Tensor, Tensor]  # experts [N, k], their weights [N, k], the largest probability [N, 1]


class Tokens:
    """What experts are picked by, besides the hidden states: ids, positions and domains of the N tokens that are not padding."""

    def __init__(self, real_BT: Tensor | None, ids_BT: Tensor | None, positions_BT: Tensor, domains_BT: Tensor) -> None:
        self.real_N = None if real_BT is None or bool(real_BT.all()) else real_BT.flatten().nonzero().squeeze(-1)
        self.ids_N = None if ids_BT is None else self.only(ids_BT.flatten())
        self.positions_N = self.only(positions_BT.flatten())
        self.domains_N = self.only(domains_BT.flatten())

    def only(self, flat: Tensor) -> Tensor:
        return flat if self.real_N is None else flat[self.real_N]

    def known_ids(self) -> Tensor:
        if self.ids_N is None:
            raise ValueError("this model's router looks at token ids: give input_ids, not inputs_embeds")
        return self.ids_N


def mixed(values: Tensor, salt: int) -> Tensor:
    """Return int64 hashes of int64 values: the finaliser of SplitMix64."""
    z = values + _signed(salt * 0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def _signed(value: int) -> int:
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(z: Tensor, bits: int) -> Tensor:
    return (z >> bits) & ((1 << (64 - bits)) - 1)


class Router(nn.Module):
    """Picks each token's experts in fp32, by the rule that the configuration names."""

    selection_bias: Tensor

    def __init__(self, config: MoEAdaptConfig, n_experts: int) -> None:
        super().__init__()
        self.name = str(config.router["name"])
        if self.name not in RULES:
            raise ValueError(f"router {self.name!r} is not known here; there are: {', '.join(sorted(RULES))}")
        self.settings = config.router
        self.n_experts = n_experts
        self.rule, is_learned = RULES[self.name]
        if is_learned:
            self.weight = nn.Parameter(torch.empty(n_experts, config.hidden_size, dtype=torch.float32))
        if self.name == "sigmoid_bias":
            self.register_buffer("selection_bias", torch.zeros(n_experts, dtype=torch.float32))
        if self.name == "expert_choice":
            self.expert_residual = ExpertResidual(_EXPERT_CHOICE_LAYERS, config.hidden_size)

    def logits(self, x_NH: Tensor) -> Tensor:
        return functional.linear(x_NH.float(), self.weight.float())

    def forward(self, x_NH: Tensor, tokens: Tokens) -> Picked:
        return self.rule(self, x_NH, tokens)

    def combine(self, out_NH: Tensor, confidence_N1: Tensor) -> Tensor:
        """Send the experts' sum through the router's own network, where it has one, in fp32."""
        if self.name != "expert_choice":
            return out_NH
        return self.expert_residual(out_NH.float(), confidence_N1).to(out_NH.dtype)

    def hashed(self, values: Tensor, salt: str) -> Tensor:
        return mixed(values, int(self.settings[salt]))


def _largest_probability(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    weight_N1, expert_N1 = router.logits(x_NH).softmax(dim=-1).max(dim=-1, keepdim=True)
    return expert_N1, weight_N1, weight_N1


def _largest_logit(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    logits_NE = router.logits(x_NH)
    probs_NE, expert_N1 = logits_NE.softmax(dim=-1), logits_NE.argmax(dim=-1, keepdim=True)
    return expert_N1, probs_NE.gather(1, expert_N1), probs_NE.amax(dim=-1, keepdim=True)


def _top_two(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    probs_NE = router.logits(x_NH).softmax(dim=-1)
    top_N2, expert_N2 = probs_NE.topk(2, dim=-1)
    return expert_N2, top_N2 / top_N2.sum(-1, keepdim=True), probs_NE.amax(dim=-1, keepdim=True)


def _biased_sigmoids(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    k = int(router.settings["experts_per_token"])
    scores_NE = router.logits(x_NH).sigmoid()
    expert_Nk = (scores_NE + router.selection_bias.float()).topk(k, dim=-1).indices
    weight_Nk = scores_NE.gather(1, expert_Nk)
    if k > 1:
        weight_Nk = weight_Nk / weight_Nk.sum(-1, keepdim=True).clamp_min(_SMALLEST_SUM)
    probs_NE = scores_NE / scores_NE.sum(-1, keepdim=True).clamp_min(_SMALLEST_SUM)
    return expert_Nk, weight_Nk, probs_NE.amax(dim=-1, keepdim=True)


def _by_token(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    return _certain(router.hashed(tokens.known_ids(), "seed") % router.n_experts)


def _by_token_in_group(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    n_groups = int(router.settings["groups"])
    group_N = tokens.domains_N % n_groups
    first_N = group_N * router.n_experts // n_groups
    size_N = (group_N + 1) * router.n_experts // n_groups - first_N
    return _certain(first_N + mixed(router.hashed(tokens.known_ids(), "seed") ^ group_N, salt=1) % size_N)


def _by_domain(router: Router, x_NH: Tensor, tokens: Tokens) -> Picked:
    return _certain(tokens.domains_N % router.n_experts)


def _certain(expert_N: Tensor) -> Picked:
    ones_N1 = torch.ones(len(expert_N), 1, device=expert_N.device)
    return expert_N.unsqueeze(-1), ones_N1, ones_N1


RULES: dict[str, tuple[Callable[[Router, Tensor, Tokens], Picked], bool]] = {
    "top1": (_largest_probability, True),
    "expert_choice": (_largest_probability, True),
    "large_margin": (_largest_logit, True),
    "s_base": (_largest_logit, True),
    "top2": (_top_two, True),
    "sigmoid_bias": (_biased_sigmoids, True),
    "hash": (_by_token, False),
    "random_groups": (_by_token_in_group, False),
    "hard": (_by_domain, False),
}


class ResidualLayer(nn.Module):
    """x + down(relu(up(norm(x)))), in the number format of x."""

    def __init__(self, hidden_size: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(hidden_size, eps=_RESIDUAL_EPS)
        self.up = nn.Linear(hidden_size, _RESIDUAL_MULTIPLE * hidden_size)
        self.down = nn.Linear(_RESIDUAL_MULTIPLE * hidden_size, hidden_size)

    def forward(self, x_NH: Tensor) -> Tensor:
        norm, up, down = self.norm, self.up, self.down
        normed_NH = functional.layer_norm(x_NH, x_NH.shape[-1:], norm.weight.to(x_NH), norm.bias.to(x_NH), norm.eps)
        inner = torch.relu(functional.linear(normed_NH, up.weight.to(x_NH), up.bias.to(x_NH)))
        return x_NH + functional.linear(inner, down.weight.to(x_NH), down.bias.to(x_NH))


class ExpertResidual(nn.Module):
    """A network behind the experts' sum, mixed in by the token's largest gate probability."""

    def __init__(self, n_layers: int, hidden_size: int) -> None:
        super().__init__()
        self.layers = nn.Sequential(*(ResidualLayer(hidden_size) for _ in range(n_layers)))

    def forward(self, gated_NH: Tensor, confidence_N1: Tensor) -> Tensor:
        alpha_N1 = confidence_N1.to(gated_NH.dtype)
        return alpha_N1 * self.layers(gated_NH) + (1 - alpha_N1) * gated_NH


class Experts(nn.Module):
    """E two-layer MLPs, stacked."""

    def __init__(self, config: MoEAdaptConfig, n_experts: int) -> None:
        super().__init__()
        hidden, width = config.hidden_size, config.intermediate_size
        self.gelu = _GELU[config.hidden_act]
        self.up_weight = nn.Parameter(torch.empty(n_experts, width, hidden))
        self.up_bias = nn.Parameter(torch.empty(n_experts, width))
        self.down_weight = nn.Parameter(torch.empty(n_experts, hidden, width))
        self.down_bias = nn.Parameter(torch.empty(n_experts, hidden))

    def forward(self, x_NH: Tensor, expert_Nk: Tensor, weight_Nk: Tensor) -> Tensor:
        """Return each token's weighted sum of its experts' outputs."""
        out_NH = torch.zeros_like(x_NH)
        for expert in expert_Nk.unique().tolist():
            token, place = (expert_Nk == expert).nonzero(as_tuple=True)
            inner = functional.linear(x_NH[token], self.up_weight[expert], self.up_bias[expert])
            active = functional.gelu(inner, approximate=self.gelu)
            y = functional.linear(active, self.down_weight[expert], self.down_bias[expert])
            out_NH.index_add_(0, token, y * weight_Nk[token, place].to(y.dtype).unsqueeze(-1))
        return out_NH


class DenseMLP(nn.Module):
    """Linear, GELU, Linear."""

    def __init__(self, config: MoEAdaptConfig) -> None:
        super().__init__()
        self.gelu = _GELU[config.hidden_act]
        self.up = nn.Linear(config.hidden_size, config.intermediate_size)
        self.down = nn.Linear(config.intermediate_size, config.hidden_size)

    def forward(self, x: Tensor, tokens: Tokens) -> Tensor:
        return self.down(functional.gelu(self.up(x), approximate=self.gelu))


class MoELayer(nn.Module):
    """A router and its experts, with a parallel dense MLP and a residual network after them where the configuration says so."""

    def __init__(self, config: MoEAdaptConfig, layer: int, n_experts: int) -> None:
        super().__init__()
        hidden = config.hidden_size
        self.layer, self.n_experts, self.is_even = layer, n_experts, config.even_routing
        self.router = Router(config, n_experts)
        self.experts = Experts(config, n_experts)
        self.expert_residual = ExpertResidual(config.expert_residual_layers, hidden) if config.expert_residual_layers else None
        self.residual_mlp = DenseMLP(config) if config.is_residual else None
        self.residual_mix = nn.Linear(hidden, 2) if config.is_residual else None

    def forward(self, x_BTH: Tensor, tokens: Tokens) -> Tensor:
        flat = x_BTH.flatten(0, 1)
        x_NH = tokens.only(flat)
        expert_Nk, weight_Nk, confidence_N1 = self.router(x_NH, tokens)
        if self.is_even:
            shift_N = mixed(mixed(tokens.known_ids(), self.layer) ^ tokens.positions_N, salt=3) % self.n_experts
            expert_Nk = (expert_Nk + shift_N.unsqueeze(-1)) % self.n_experts
        out_NH = self.router.combine(self.experts(x_NH, expert_Nk, weight_Nk), confidence_N1)
        if self.expert_residual is not None:
            out_NH = self.expert_residual(out_NH, confidence_N1)
        if tokens.real_N is not None:
            out_NH = torch.zeros_like(flat).index_put_((tokens.real_N,), out_NH)
        out = out_NH.view_as(x_BTH)
        if self.residual_mlp is None or self.residual_mix is None:
            return out
        mix = self.residual_mix(x_BTH).softmax(dim=-1)
        return out * mix[..., :1] + self.residual_mlp(x_BTH, tokens) * mix[..., 1:]
