"""The peers of `bench moe`: DeepSpeed's MoE layer and two of transformers', over the same weights and without gates.

DeepSpeed: `deepspeed.moe.layer.MoE` (Rajbhandari et al. 2022), top-1, with its capacity of 1.0 that drops tokens, and without.
Switch: `SwitchTransformersSparseMLP` with a capacity that drops nothing. grouped_mm: transformers' `grouped_mm` experts
implementation on its only experts without a gate (NemotronH's, so that active FLOPs equal those of the dense MLP) behind
OLMoE's router, top-1. None has biases but DeepSpeed's, whose expert is this project's MLP. Nothing here imports a package
before it is asked for.
"""

from __future__ import annotations

import importlib
import importlib.util
from collections.abc import Callable, Iterable
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor, nn

from adapt.core.errors import AdaptError
from adapt.model.moe import DenseMLP
from pipelines.bench.moe_cases import Case, LayerWeights, Way

_ACTIVATION = "gelu_pytorch_tanh"


@dataclass(frozen=True, kw_only=True)
class Peer:
    """Another package's layer."""

    package: str
    build: Callable[[Case, LayerWeights], Way]


def build_peer(name: str, case: Case, weights: LayerWeights) -> Way | str:
    """Return a peer's way, or the reason why it cannot be measured."""
    peer = PEERS[name]
    if importlib.util.find_spec(peer.package) is None:
        return f"{peer.package} is not installed"
    try:
        return peer.build(case, weights)
    except (AdaptError, ImportError, AttributeError) as error:  # what a version of the package lacks
        return f"{peer.package}: {str(error).splitlines()[0]}"


def _deepspeed(drops: bool) -> Callable[[Case, LayerWeights], Way]:
    def build(case: Case, weights: LayerWeights) -> Way:
        importlib.import_module("adapt.train.engine")  # imports DeepSpeed quietly, for the device there is
        made = importlib.import_module("deepspeed.moe.layer")
        with torch.device("meta"):
            expert = DenseMLP(case.hidden, case.ffn)
            # Random token selection decides who is dropped; where nobody is, it would only cost time.
            layer = made.MoE(case.hidden, expert, num_experts=case.experts, k=1, drop_tokens=drops, use_rts=drops)
        inner = layer.deepspeed_moe
        inner.gate.wg.weight = _owned(weights.router_EH)
        for index, theirs in enumerate(inner.experts.deepspeed_experts):
            _share(theirs.up, weights.up_EFH[index], weights.up_bias_EF[index])
            _share(theirs.down, weights.down_EHF[index], weights.down_bias_EH[index])
        return Way(forward=lambda x_BTH: layer(x_BTH)[0], parameters=_parameters(layer.named_parameters()), drops=drops)

    return build


def _switch(case: Case, weights: LayerWeights) -> Way:
    made = importlib.import_module("transformers.models.switch_transformers.modeling_switch_transformers")
    config = SimpleNamespace(
        hidden_size=case.hidden,
        d_model=case.hidden,
        d_ff=case.ffn,
        num_experts=case.experts,
        expert_capacity=case.tokens,
        dense_act_fn=_ACTIVATION,
        dropout_rate=0.0,
        router_bias=False,
        router_jitter_noise=0.0,
        router_ignore_padding_tokens=False,
        router_dtype="float32",
    )
    with torch.device("meta"):
        layer = made.SwitchTransformersSparseMLP(config)
    layer.router.classifier.weight = _owned(weights.router_EH)
    for index in range(case.experts):
        theirs = layer.experts[f"expert_{index}"]
        _share(theirs.wi, weights.up_EFH[index])
        _share(theirs.wo, weights.down_EHF[index])
    return Way(forward=layer, parameters=_parameters(layer.named_parameters()))


def _grouped_mm(case: Case, weights: LayerWeights) -> Way:
    nemotron = importlib.import_module("transformers.models.nemotron_h.modeling_nemotron_h")
    olmoe = importlib.import_module("transformers.models.olmoe.modeling_olmoe")
    config = SimpleNamespace(
        hidden_size=case.hidden,
        moe_intermediate_size=case.ffn,
        moe_latent_size=None,
        n_routed_experts=case.experts,
        num_experts=case.experts,
        num_experts_per_tok=1,
        norm_topk_prob=False,
        mlp_hidden_act=_ACTIVATION,
        _experts_implementation="grouped_mm",
    )
    with torch.device("meta"):
        experts, router = nemotron.NemotronHExperts(config), olmoe.OlmoeTopKRouter(config)
    if getattr(experts, "has_gate", True):
        raise AttributeError("no experts implementation without a gate")
    router.weight = _owned(weights.router_EH)
    experts.up_proj, experts.down_proj = _owned(weights.up_EFH), _owned(weights.down_EHF)

    def forward(x_BTH: Tensor) -> Tensor:
        x_NH = x_BTH.flatten(0, 1)
        _, scores_NK, experts_NK = router(x_NH)
        return experts(x_NH, experts_NK, scores_NK).view_as(x_BTH)

    return Way(forward=forward, parameters=_parameters([*experts.named_parameters(), *router.named_parameters()]))


PEERS = {
    "deepspeed drop": Peer(package="deepspeed", build=_deepspeed(drops=True)),
    "deepspeed": Peer(package="deepspeed", build=_deepspeed(drops=False)),
    "hf switch": Peer(package="transformers", build=_switch),
    "hf grouped_mm": Peer(package="transformers", build=_grouped_mm),
}


def _owned(weight: Tensor) -> nn.Parameter:
    """Return a parameter of its own over shared memory: a layer may cast or clear it without touching the others'."""
    return nn.Parameter(weight.view_as(weight))


def _share(linear: nn.Linear, weight: Tensor, bias: Tensor | None = None) -> None:
    linear.weight = _owned(weight)
    if bias is not None:
        linear.bias = _owned(bias)


def _parameters(named: Iterable[tuple[str, Any]]) -> dict[str, nn.Parameter]:
    """Return parameters by name.

    Raises:
        AttributeError: one was not given a weight: this version of the package has more of them.
    """
    parameters = dict(named)
    for name, parameter in parameters.items():
        if parameter.is_meta:
            raise AttributeError(f"its layer has a weight '{name}' that this benchmark does not know")
    return parameters
