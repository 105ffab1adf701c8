"""Parameter counts by kind, from names alone: nothing is allocated."""

from __future__ import annotations

from dataclasses import dataclass

from torch import nn

from adapt.model.gpt import GPT, GPTConfig

KINDS = ("embedding", "attention", "mlp", "residual mix", "norm", "router", "experts")


@dataclass(frozen=True, kw_only=True)
class ParameterCounts:
    """Counts of one model. `active` is what one token uses with one routed expert per MoE layer."""

    by_kind: dict[str, int]
    total: int
    active: int

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


def count_parameters(config: GPTConfig, experts_per_token: int = 1) -> ParameterCounts:
    """Count a model's parameters without allocating it.

    Raises:
        ConfigError: the sizes do not make a model.
    """
    model: nn.Module = GPT(config)
    by_kind = dict.fromkeys(KINDS, 0)
    unused = 0
    for name, parameter in model.named_parameters():
        by_kind[kind_of(name)] += parameter.numel()
        if kind_of(name) == "experts":
            unused += parameter.numel() // parameter.shape[0] * (parameter.shape[0] - experts_per_token)
    total = sum(by_kind.values())
    return ParameterCounts(by_kind=by_kind, total=total, active=total - unused)
