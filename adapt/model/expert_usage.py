"""How much each expert says over a text: the weight that its output has for a token on average, by layer.

Legend: N tokens, E experts, K routed pairs, k experts per token.

What experts are given is watched, since only that holds for every router and family: own experts take (x, token, expert, weight),
those of transformers (x, experts, weights). Rows are read one by one, so that no padding is counted.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor, nn

from adapt.model.batches import Batch
from adapt.model.experts import Experts
from adapt.model.inputs import CausalBase
from adapt.model.moe import MoELayer

_HF_EXPERTS, _HF_SHARED_GATE = ".mlp.experts", ".mlp.shared_expert_gate"


@dataclass(frozen=True, kw_only=True)
class LayerUsage:
    """Of a layer: the mean weight of each expert's output (0 where it had no token), each one's share of the routed pairs, and the
    mean weight of the dense part next to the experts, none where there is none."""

    weight_E: Tensor
    share_E: Tensor
    dense_weight: float | None = None


@dataclass
class _Sums:
    """Sums over the tokens that a layer has seen."""

    weight_E: Tensor
    count_E: Tensor
    tokens: int = 0
    experts_weight: float = 0.0
    dense_weight: float = 0.0
    mixed: int = 0


@dataclass
class _Watch:
    layers: dict[str, _Sums] = field(default_factory=dict)

    def pairs(self, layer: str, n_experts: int, tokens: int, expert_K: Tensor, weight_K: Tensor) -> None:
        if layer not in self.layers:
            self.layers[layer] = _Sums(torch.zeros(n_experts, dtype=torch.float64), torch.zeros(n_experts, dtype=torch.float64))
        sums = self.layers[layer]
        expert_K, weight_K = expert_K.cpu().flatten(), weight_K.detach().double().cpu().flatten()
        sums.weight_E.index_add_(0, expert_K, weight_K)
        sums.count_E.index_add_(0, expert_K, torch.ones_like(weight_K))
        sums.tokens += tokens

    def mix(self, layer: str, experts_N: Tensor, dense_N: Tensor) -> None:
        sums = self.layers[layer]
        sums.experts_weight += float(experts_N.detach().double().sum())
        sums.dense_weight += float(dense_N.detach().double().sum())
        sums.mixed += experts_N.numel()


@torch.no_grad()
def usage_of(model: CausalBase, batches: Iterable[Batch]) -> list[LayerUsage]:
    """Return the usage of each sparse layer, in order, over batches of one row without padding."""
    watch = _Watch()
    assert isinstance(model, nn.Module), "a base is a module"
    with _watched(model, watch):
        for batch in batches:
            model(batch.inputs)
    found = []
    for sums in watch.layers.values():
        weight_E = sums.weight_E / max(sums.tokens, 1)
        dense = None
        if sums.mixed:
            weight_E, dense = weight_E * (sums.experts_weight / sums.mixed), sums.dense_weight / sums.mixed
        found.append(LayerUsage(weight_E=weight_E, share_E=sums.count_E / sums.count_E.sum().clamp_min(1), dense_weight=dense))
    return found


@contextmanager
def _watched(model: nn.Module, watch: _Watch) -> Iterator[None]:
    hooks: list[Any] = []
    for name, module in model.named_modules():
        if isinstance(module, MoELayer):
            hooks += _of_own_layer(name, module, watch)
        elif name.endswith(_HF_EXPERTS) and not isinstance(module, Experts):
            hooks.append(module.register_forward_pre_hook(_hf_pairs(name.removesuffix(".experts"), watch)))
        elif name.endswith(_HF_SHARED_GATE):
            hooks.append(module.register_forward_hook(_hf_gate(name.removesuffix(".shared_expert_gate"), watch)))
    try:
        yield
    finally:
        for hook in hooks:
            hook.remove()


def _of_own_layer(name: str, layer: MoELayer, watch: _Watch) -> Iterator[Any]:
    def pairs(experts: Experts, given: tuple[Any, ...]) -> None:
        x_NH, _, expert_K, weight_K = given
        watch.pairs(name, experts.n_experts, len(x_NH), expert_K, weight_K)

    def mix(_: nn.Module, given: Any, logits: Tensor) -> None:
        c = logits.softmax(dim=-1)
        watch.mix(name, c[..., 0], c[..., 1])

    yield layer.experts.register_forward_pre_hook(pairs)
    if layer.residual_mix is not None:
        yield layer.residual_mix.register_forward_hook(mix)


def _hf_pairs(layer: str, watch: _Watch) -> Any:
    def pairs(experts: Any, given: tuple[Any, ...]) -> None:
        x_NH, expert_Nk, weight_Nk = given
        watch.pairs(layer, int(experts.num_experts), len(x_NH), expert_Nk, weight_Nk)

    return pairs


def _hf_gate(layer: str, watch: _Watch) -> Any:
    def gate(_: nn.Module, given: Any, logits: Tensor) -> None:
        dense = logits.sigmoid()
        watch.mix(layer, torch.ones_like(dense), dense)

    return gate
