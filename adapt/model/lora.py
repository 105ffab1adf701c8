"""LoRA on a Hugging Face base, by PEFT: the only file that imports it. Only training needs it; opening what was trained does not.

PEFT puts factors beside the targeted matrices: beside linear layers as modules, beside routed experts and routers, which
transformers keeps as bare parameters, by `target_parameters`. Everything else is frozen. The factors' first values come from a
seed and the parameters' names, so that ranks and restarts begin alike.
"""

from __future__ import annotations

import math
from collections.abc import Mapping
from typing import Any

import torch

from adapt.core.errors import ConfigError
from adapt.core.runtime import seed_for
from adapt.model.hf import PREFIX, HFModel
from adapt.model.inputs import ModelInputs, ModelOutput
from adapt.model.lora_config import QUANTIZED_BITS, LoraConfig, LoraLayout, LoraTarget, TargetFactors
from adapt.model.low_rank import layer_free, targeted, trained_by_group
from adapt.model.quantized_base import quantize_base

_ADAPTER = "default"
_STORED_PREFIX = "base_model.model."
_PARAMETERS = (LoraTarget.EXPERTS, LoraTarget.ROUTER)
# PEFT takes modules of these names in some families for experts from before transformers fused them, and would rename the targets.
_TAKEN_FOR_EXPERTS = ("deepseek_v2", "deepseek_v3", "glm4_moe")


def import_peft() -> Any:
    """Import PEFT.

    Raises:
        ConfigError: it is not installed.
    """
    try:
        import peft
    except ImportError as error:
        raise ConfigError(
            f"continue_pretrain.trains=lora: needs the package peft ({error}); install it with `pip install 'moe-adapt[hf]'`"
        ) from error
    return peft


def add_lora(model: HFModel, config: LoraConfig, seed: int) -> dict[LoraTarget, int]:
    """Put factors beside the targeted matrices and freeze everything else; return how many numbers are trained by group.

    Raises:
        ConfigError: PEFT is not installed, or the model has no parameter of a group that the settings name.
    """
    peft = import_peft()
    shapes = {name.removeprefix(PREFIX): tuple(p.shape) for name, p in model.named_parameters()}
    groups = targeted(shapes, config, "this model")
    if config.base_bits in QUANTIZED_BITS:
        quantize_base(model, config.base_bits)
    bare = {*_PARAMETERS, *([LoraTarget.MLP] if model.causal.config.model_type in _TAKEN_FOR_EXPERTS else [])}
    modules = [name.removesuffix(".weight") for name, group in groups.items() if group not in bare]
    settings = peft.LoraConfig(
        r=config.rank,
        lora_alpha=config.alpha,
        lora_dropout=0.0,  # a step must not depend on how its batch was cut
        target_modules=layer_free(modules),
        target_parameters=layer_free(name for name, group in groups.items() if group in bare),
        task_type="CAUSAL_LM",
    )
    peft.inject_adapter_in_model(settings, model.causal, adapter_name=_ADAPTER)
    model.lora = _layout(model, shapes, config, _plain(settings))
    assert set(model.lora.targets) == set(groups), "PEFT changed other tensors than those that were targeted"
    _fill(model, seed)
    return trained_by_group(shapes, groups, config.rank)


class WithoutFactors:
    """A model as if it had no factors: the base that it came from, without another copy of its weights."""

    def __init__(self, model: HFModel) -> None:
        self._model = model

    def __call__(self, inputs: ModelInputs) -> ModelOutput:
        from peft.helpers import rescale_adapter_scale

        with rescale_adapter_scale(self._model.causal, 0.0):
            output: ModelOutput = self._model(inputs)
        return output

    def logits(self, hidden_NH: torch.Tensor) -> torch.Tensor:
        return self._model.logits(hidden_NH)  # no group of targets has the output table


def _layout(model: HFModel, shapes: Mapping[str, tuple[int, ...]], config: LoraConfig, peft: Mapping[str, Any]) -> LoraLayout:
    """Find which factors belong to which tensor. Wrappers of several parameters of one module are nested."""
    targets: dict[str, TargetFactors] = {}
    for place, module in model.causal.named_modules():
        if not hasattr(module, "lora_A") or _ADAPTER not in module.lora_A:
            continue
        inner = place
        while inner.endswith(".base_layer"):
            inner = inner.removesuffix(".base_layer")
        tensor = f"{inner}.{getattr(module, 'parameter_name', 'weight')}"
        stored = f"{_STORED_PREFIX}{place}"
        targets[tensor] = TargetFactors(
            shape=shapes[tensor],
            a=f"{stored}.lora_A.weight",
            b=f"{stored}.lora_B.weight",
            is_transposed=len(shapes[tensor]) == 3 and bool(getattr(module.get_base_layer(), "is_transposed", False)),
        )
    trained = [name for name, parameter in model.named_parameters() if parameter.requires_grad]
    stored_as = {name: _STORED_PREFIX + name.removeprefix(PREFIX).replace(f".{_ADAPTER}.", ".") for name in trained}
    return LoraLayout(scale=config.scale, targets=targets, stored_as=stored_as, peft=peft)


@torch.no_grad()
def _fill(model: HFModel, seed: int) -> None:
    """Draw A as PEFT does, from a uniform distribution with the bound 1 / sqrt(inputs), and set B to 0."""
    assert model.lora is not None
    for name, parameter in model.named_parameters():
        if not parameter.requires_grad:
            continue
        parameter.data = parameter.data.float()  # PEFT gives factors the base's format
        if ".lora_B." in name:
            parameter.zero_()
            continue
        bound = 1 / math.sqrt(parameter.shape[1])
        generator = torch.Generator().manual_seed(seed_for(seed, "lora", name))
        parameter.copy_(torch.empty(parameter.shape).uniform_(-bound, bound, generator=generator))


def _plain(settings: Any) -> dict[str, Any]:
    """Return PEFT's settings as they are stored, sets in a fixed order."""
    plain = {name: sorted(value) if isinstance(value, set) else value for name, value in settings.to_dict().items()}
    return plain | {"inference_mode": True}
