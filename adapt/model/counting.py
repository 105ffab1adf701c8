"""Parameter counts by kind, from names only: nothing is allocated."""

from __future__ import annotations

import math
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path

from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT
from adapt.model.hf import shapes_of

KINDS = ("embedding", "attention", "mlp", "residual mix", "norm", "router", "experts")


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Counts of one model. `active` is what one token uses at inference, `largest` the largest parameter's."""

    by_kind: dict[str, int]
    total: int
    active: int
    largest: int

    @property
    def dense(self) -> int:
        """Everything outside routers, experts and the residual mix: the dense part."""
        return self.total - sum(self.by_kind[kind] for kind in ("router", "experts", "residual mix"))


def kind_of(name: str) -> str:
    """Return the kind of a parameter by its name."""
    if ".experts." in name:
        return "experts"
    if ".router." in name:
        return "router"
    if "residual_mix" in name:
        return "residual mix"
    if "norm" in name:
        return "norm"
    if name.startswith(("embedding", "positions")):
        return "embedding"
    return "attention" if ".attention." in name else "mlp"


def hf_kind_of(name: str) -> str:
    """Return the kind of a Hugging Face model's parameter by its name; shared experts are part of the dense MLP."""
    if ".experts." in name:
        return "experts"
    if ".mlp.gate." in name or ".mlp.router." in name:
        return "router"
    if "norm" in name or ".ln_" in name:
        return "norm"
    if any(part in name for part in ("embed_tokens", "lm_head", ".wte.", ".wpe.")):
        return "embedding"
    return "attention" if ".self_attn." in name or ".attn." in name else "mlp"


def count_parameters(config: GPTConfig) -> ParameterCounts:
    """Count a model's parameters without allocating it.

    Raises:
        ConfigError: the sizes do not make a model.
    """
    model = GPT(config)
    kinds_and_shapes = ((kind_of(name), parameter.shape) for name, parameter in model.named_parameters())
    return _counted(kinds_and_shapes, model.router_traits.experts_per_token)


def count_hf_parameters(directory: Path) -> ParameterCounts:
    """Count the parameters of a Hugging Face model from its config.json.

    Raises:
        ConfigError: transformers is not installed.
        CheckpointError: the family is not served, or the configuration makes no model.
    """
    shapes, experts_per_token = shapes_of(directory)
    return _counted(((hf_kind_of(name), shape) for name, shape in shapes.items()), experts_per_token)


def _counted(kinds_and_shapes: Iterable[tuple[str, Sequence[int]]], experts_per_token: int) -> ParameterCounts:
    by_kind = dict.fromkeys(KINDS, 0)
    unused = largest = 0
    for kind, shape in kinds_and_shapes:
        by_kind[kind] += math.prod(shape)
        largest = max(largest, math.prod(shape))
        if kind == "experts":
            unused += math.prod(shape[1:]) * (shape[0] - experts_per_token)
    total = sum(by_kind.values())
    return ParameterCounts(by_kind=by_kind, total=total, active=total - unused, largest=largest)
