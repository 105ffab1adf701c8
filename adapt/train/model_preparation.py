"""What is done to a model on its way into DeepSpeed: what stays in fp32.

DeepSpeed rounds every parameter of a model to one format. Routers stay in fp32, since a rounded router sends tokens elsewhere and
small updates would not reach it. DeepSpeed lays the parameters of an optimizer's group out in one flat tensor, so routers have
groups of their own; those stand behind the others, because the first group's format is what DeepSpeed takes for the model's.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.model.buffers import named_state
from adapt.model.routers.contract import Router


def exact_state(model: nn.Module) -> dict[str, Tensor]:
    """Return copies of a model's state by name, before it is rounded; frozen weights that are views of files are not rounded."""
    is_mapped = getattr(model, "mapped", None) is not None
    return {
        name: tensor.detach().clone()
        for name, tensor in named_state(model)
        if not (is_mapped and isinstance(tensor, nn.Parameter) and not tensor.requires_grad)
    }


def router_parameters(model: nn.Module) -> dict[str, nn.Parameter]:
    """Return the parameters of this project's routers, which are fp32 whatever the others are in, by name."""
    own = {id(p) for module in model.modules() if isinstance(module, Router) for p in module.parameters()}
    return {name: parameter for name, parameter in model.named_parameters() if id(parameter) in own}


def groups_by_format(groups: Sequence[Mapping[str, Any]], exact: Collection[nn.Parameter]) -> list[dict[str, Any]]:
    """Split an optimizer's groups into those of parameters that are rounded and, behind them, those of the exact ones."""
    names = {id(parameter) for parameter in exact}
    split = [
        {**group, "params": [parameter for parameter in group["params"] if (id(parameter) in names) is is_exact]}
        for is_exact in (False, True)
        for group in groups
    ]
    return [group for group in split if group["params"]]


def check_is_scaled(groups: Sequence[Mapping[str, Any]], exact: Collection[nn.Parameter]) -> None:
    """Raise ConfigError where fp16 would train only exact parameters: DeepSpeed scales no loss whose weights are all fp32."""
    names = {id(parameter) for parameter in exact}
    if all(id(parameter) in names for group in groups for parameter in group["params"]):
        raise ConfigError(
            "engine.precision: fp16 scales the loss of fp16 weights; routers, which alone are trained, are fp32; use bf16 or fp32"
        )


@contextmanager
def kept_exact(model: nn.Module, values: Mapping[str, Tensor], device: torch.device) -> Iterator[None]:
    """Put parameters back to these values, in their format, once DeepSpeed has rounded the model in the block.

    Between rounding a model and laying its parameters out, DeepSpeed calls what its modules have as `set_deepspeed_parallelism`.
    """
    if not values:
        yield
        return
    parameters = dict(model.named_parameters())
    own = getattr(model, "set_deepspeed_parallelism", None)

    def put_back(*arguments: bool) -> None:
        if own is not None:
            own(*arguments)
        for name, value in values.items():
            parameters[name].data = value.to(device)

    object.__setattr__(model, "set_deepspeed_parallelism", put_back)
    try:
        yield
    finally:
        object.__delattr__(model, "set_deepspeed_parallelism")
    rounded = [name for name, value in values.items() if parameters[name].dtype is not value.dtype]
    assert not rounded, f"{rounded[0]} was rounded: this version of DeepSpeed rounds a model later than the versions before"
