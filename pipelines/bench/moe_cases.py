"""What `bench moe` measures on: cases, weights and routed inputs, and this project's ways to compute a layer of them.

Legend: B rows, T positions, N tokens, E experts, H hidden size, F FFN width, K routed pairs sorted by expert.

All ways compute the same function of the same weights, so that they can be checked against each other before they are timed.
Inputs are drawn so that the router itself sends every token where the case wants it: the router's rows are orthonormal, and a
token carries twice the row of its expert beside noise. Biases are zero, since some peers have none.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn
from torch.nn import functional

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import seed_for
from adapt.model.grouped_gemm import wants_brought
from adapt.model.inputs import ModelInputs, RouterInputs
from adapt.model.moe import DenseMLP, MoELayer
from adapt.model.routers.contract import all_routers, build_router

_FULLEST = 9.0  # times the mean, in a skewed case
_PULL, _NOISE = 2.0, 0.1  # of the logits
_ROW = 256

Forward = Callable[[Tensor], Tensor]


@dataclass(frozen=True, kw_only=True)
class Case:
    """One layer and its tokens. Skewed: experts are taken by Zipf's law, the first by nine times the mean."""

    experts: int
    tokens: int
    precision: Precision
    hidden: int = 512
    ffn: int = 2048
    is_skewed: bool = False
    device: str = "cpu"

    def __post_init__(self) -> None:
        if self.experts > self.hidden:
            raise ConfigError(
                f"bench moe: {self.experts} experts are more than hidden={self.hidden}; routing needs as many dimensions"
            )
        if self.is_skewed and self.experts <= _FULLEST:
            raise ConfigError(f"bench moe: {self.experts} experts cannot be skewed to {_FULLEST:g} times the mean; take 10 or more")

    @property
    def dtype(self) -> torch.dtype:
        return self.precision.dtype


@dataclass(frozen=True, kw_only=True)
class LayerWeights:
    """A routed layer's weights, to be shared by all ways that compute it."""

    router_EH: Tensor
    up_EFH: Tensor
    up_bias_EF: Tensor
    down_EHF: Tensor
    down_bias_EH: Tensor


@dataclass(frozen=True, kw_only=True)
class Way:
    """A way to compute the layer: [B, T, H] to [B, T, H], its parameters by name, and whether it leaves tokens out."""

    forward: Forward
    parameters: Mapping[str, nn.Parameter]
    drops: bool = False

    def step(self, x_BTH: Tensor, gradient_BTH: Tensor) -> tuple[Tensor, Tensor]:
        """Run forward and backward; return the output and the input's gradient, the weights' gradients are left in place."""
        x_BTH = x_BTH.detach().clone().requires_grad_()
        out = self.forward(x_BTH)
        out.backward(gradient_BTH)
        assert x_BTH.grad is not None
        return out.detach(), x_BTH.grad

    def timed_step(self, x_BTH: Tensor, gradient_BTH: Tensor) -> None:
        """Run `step` and let its gradients go: the allocator keeps their memory for the next one."""
        self.step(x_BTH, gradient_BTH)
        self.clear()

    def clear(self) -> None:
        for parameter in self.parameters.values():
            parameter.grad = None


@torch.no_grad()
def draw_weights(case: Case) -> LayerWeights:
    """Draw a case's weights, the same at every call on one device."""
    n_experts, hidden, ffn = case.experts, case.hidden, case.ffn
    source = torch.Generator(case.device).manual_seed(seed_for("bench moe", n_experts, hidden, ffn))

    def normal(*shape: int) -> Tensor:
        return torch.empty(shape, device=case.device, dtype=case.dtype).normal_(0.0, shape[-1] ** -0.5, generator=source)

    square = torch.empty(hidden, n_experts, device=case.device).normal_(generator=source)
    return LayerWeights(
        router_EH=torch.linalg.qr(square)[0].t().contiguous().to(case.dtype),
        up_EFH=normal(n_experts, ffn, hidden),
        up_bias_EF=torch.zeros(n_experts, ffn, device=case.device, dtype=case.dtype),
        down_EHF=normal(n_experts, hidden, ffn),
        down_bias_EH=torch.zeros(n_experts, hidden, device=case.device, dtype=case.dtype),
    )


@torch.no_grad()
def draw_tokens(case: Case, weights: LayerWeights) -> tuple[Tensor, Tensor, Tensor]:
    """Return inputs [B, T, H], an incoming gradient of their shape, and the expert of each token."""
    source = torch.Generator(case.device).manual_seed(seed_for("bench moe tokens", case.tokens, case.is_skewed))
    shares = _zipf_shares(case.experts) if case.is_skewed else torch.full((case.experts,), 1.0 / case.experts)
    expert_N = torch.multinomial(shares.to(case.device), case.tokens, replacement=True, generator=source)
    noise_NH, gradient_NH = (torch.empty(case.tokens, case.hidden, device=case.device).normal_(generator=source) for _ in range(2))
    router_EH = weights.router_EH.float()
    seen_NE = noise_NH @ router_EH.t()
    wanted_NE = _NOISE * seen_NE + _PULL * functional.one_hot(expert_N, case.experts)
    x_NH = noise_NH + (wanted_NE - seen_NE) @ router_EH
    shape = (case.tokens // _ROW, _ROW, case.hidden) if case.tokens % _ROW == 0 else (1, case.tokens, case.hidden)
    return x_NH.view(shape).to(case.dtype), gradient_NH.view(shape).to(case.dtype), expert_N


def our_layer(case: Case) -> MoELayer:
    """Return this project's layer on the meta device."""
    with torch.device("meta"):
        return MoELayer(case.hidden, case.ffn, case.experts, all_routers().get("top1").config(), is_residual=False)


def our_weights(weights: LayerWeights) -> dict[str, Tensor]:
    """Return the weights by the names of this project's layer."""
    return {
        "router.weight": weights.router_EH,
        "experts.up_weight": weights.up_EFH,
        "experts.up_bias": weights.up_bias_EF,
        "experts.down_weight": weights.down_EHF,
        "experts.down_bias": weights.down_bias_EH,
    }


def plain_inputs(x_BTH: Tensor) -> ModelInputs:
    """Return what a layer reads of its batch beside hidden states: every row is one document, nothing is padding."""
    ids_BT = torch.zeros(x_BTH.shape[:2], dtype=torch.int64, device=x_BTH.device)
    positions_BT = torch.arange(x_BTH.shape[1], device=x_BTH.device).expand_as(ids_BT)
    return ModelInputs(ids_BT=ids_BT, positions_BT=positions_BT, documents_BT=torch.ones_like(ids_BT), is_packed=False)


def ours(case: Case, weights: LayerWeights, inputs: ModelInputs) -> Way:
    """This project's layer."""
    layer = our_layer(case)
    layer.load_state_dict(our_weights(weights), assign=True)
    device = torch.device(case.device)
    if wants_brought(device):
        from adapt.train.brought_gemm import bring_gemm  # imports DeepSpeed, which only this process needs

        bring_gemm(layer, device)
    return Way(forward=lambda x_BTH: layer(x_BTH, inputs)[0], parameters=dict(layer.named_parameters()))


def dense(case: Case) -> Way:
    """The baseline: a dense MLP that does for every token what one expert does."""
    torch.manual_seed(seed_for("bench moe dense"))
    layer = DenseMLP(case.hidden, case.ffn).to(case.device, case.dtype)
    return Way(forward=layer, parameters=dict(layer.named_parameters()))


def loop(case: Case, weights: LayerWeights) -> Way:
    """What one writes first: a Python loop over the experts that indexes the stacked weights under autograd."""
    router, owned = _router_and_weights(case, weights)
    up, up_bias, down, down_bias = (owned[f"experts.{name}"] for name in ("up_weight", "up_bias", "down_weight", "down_bias"))

    def forward(x_BTH: Tensor) -> Tensor:
        x_NH = x_BTH.flatten(0, 1)
        weight_N, expert_N = router(x_NH)
        out_NH = torch.zeros_like(x_NH)
        for expert in range(case.experts):
            token_K = (expert_N == expert).nonzero().squeeze(-1)
            active = functional.gelu(functional.linear(x_NH[token_K], up[expert], up_bias[expert]), approximate="tanh")
            y_KH = functional.linear(active, down[expert], down_bias[expert])
            out_NH = out_NH.index_add(0, token_K, y_KH * weight_N[token_K].to(y_KH.dtype).unsqueeze(-1))
        return out_NH.view_as(x_BTH)

    return Way(forward=forward, parameters=owned)


def bare_grouped_mm(case: Case, weights: LayerWeights) -> Way:
    """Sort, two `torch.nn.functional.grouped_mm` without biases, put back by the inverse permutation."""
    router, owned = _router_and_weights(case, weights)
    up, down = owned["experts.up_weight"], owned["experts.down_weight"]

    def forward(x_BTH: Tensor) -> Tensor:
        x_NH = x_BTH.flatten(0, 1)
        weight_N, expert_N = router(x_NH)
        order_K = torch.argsort(expert_N)
        ends_E = torch.bincount(expert_N, minlength=case.experts).cumsum(0).int()
        pre_KF = functional.grouped_mm(x_NH[order_K], up.transpose(-2, -1), offs=ends_E)
        active_KF = functional.gelu(pre_KF, approximate="tanh")
        y_KH = functional.grouped_mm(active_KF, down.transpose(-2, -1), offs=ends_E)
        y_KH = y_KH * weight_N[order_K].to(y_KH.dtype).unsqueeze(-1)
        back_N = torch.empty_like(order_K)
        back_N[order_K] = torch.arange(len(order_K), device=order_K.device)
        return y_KH[back_N].view_as(x_BTH)

    biases = ("experts.up_bias", "experts.down_bias")
    return Way(forward=forward, parameters={name: value for name, value in owned.items() if name not in biases})


def step_bytes(case: Case, weights: LayerWeights) -> int:
    """Return what a step of the layer has to hold: inputs, outputs and saved activations, and its weights' gradients."""
    activations = case.tokens * (2 * case.hidden + case.ffn)
    gradients = sum(weight.numel() for weight in our_weights(weights).values())
    return (activations + gradients) * case.dtype.itemsize


def _router_and_weights(
    case: Case, weights: LayerWeights
) -> tuple[Callable[[Tensor], tuple[Tensor, Tensor]], dict[str, nn.Parameter]]:
    """Return this project's router as a function to (weight, expert) of each token, and parameters over the shared weights."""
    owned = {name: nn.Parameter(value.view_as(value)) for name, value in our_weights(weights).items()}
    with torch.device("meta"):
        router = build_router(all_routers().get("top1").config(), case.hidden, case.experts)
    router.weight = owned["router.weight"]
    ids_N = torch.zeros(case.tokens, dtype=torch.int64, device=case.device)

    def route(x_NH: Tensor) -> tuple[Tensor, Tensor]:
        inputs = RouterInputs(token_ids_N=ids_N, sequence_ids_N=ids_N, positions_N=ids_N, domain_ids_N=ids_N)
        routing = router.route(x_NH, inputs)
        return routing.weight_K, routing.expert_K

    return route, owned


def _zipf_shares(n_experts: int) -> Tensor:
    """Return shares that fall as rank ** -s, with the s that gives the first one nine times the mean."""
    ranks = torch.arange(1, n_experts + 1, dtype=torch.float64)
    low, high = 0.0, 16.0
    for _ in range(60):
        middle = (low + high) / 2
        shares = ranks**-middle
        low, high = (middle, high) if float(shares[0] / shares.sum()) < _FULLEST / n_experts else (low, middle)
    return (shares / shares.sum()).float()
