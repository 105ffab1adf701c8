"""What a sparse checkpoint made from a dense one shall be: importable without torch."""

from __future__ import annotations

from dataclasses import dataclass, field

from adapt.core.errors import ConfigError
from adapt.model.routers.settings import RouterConfig


@dataclass(frozen=True, kw_only=True)
class UpcycleOptions:
    """How many experts where, which router, and how copies differ. Some are for one kind of model only, and absent elsewhere.

    `experts` is one count, or for a model of this project one for each of its MoE layers, 0 for a dense one. `router`,
    `is_residual` and `expert_residual_layers` are for models of this project; `experts_per_token`, `layers` (numbers of the layers
    that become sparse, from 0) and `split` (parts that a copy is cut into, each an expert) for Hugging Face models. `noise` is the
    standard deviation of what is added to each copy, as a share of the root mean square of its matrix.
    """

    experts: list[int] = field(default_factory=lambda: [8])
    router: RouterConfig | None = None
    is_residual: bool = False
    expert_residual_layers: int = 0
    experts_per_token: int | None = None
    layers: list[int] | None = None
    split: int = 1
    noise: float = 0.0
    seed: int = 0

    def __post_init__(self) -> None:
        if not self.experts or min(self.experts) < 0:
            raise ConfigError(f"experts: {self.experts} has no count for a layer; give one, such as experts=8")
        if self.noise < 0:
            raise ConfigError(f"noise: {self.noise} is less than 0, which makes no noise")
        if self.split < 1 or self.expert_residual_layers < 0:
            raise ConfigError("split and expert_residual_layers: give whole numbers, split of 1 or more, the layers 0 or more")

    def refuse_foreign(self) -> None:
        """Raise ConfigError for what only Hugging Face models have."""
        given = {
            "experts_per_token": self.experts_per_token,
            "layers": self.layers,
            "split": None if self.split == 1 else self.split,
        }
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: is for Hugging Face models; a model of this project takes {_INSTEAD[name]}")

    def refuse_own(self) -> None:
        """Raise ConfigError for what only models of this project have."""
        given = {
            "router": self.router,
            "is_residual": self.is_residual or None,
            "expert_residual_layers": self.expert_residual_layers or None,
        }
        for name, value in given.items():
            if value is not None:
                raise ConfigError(f"{name}: is for models of this project; a Hugging Face family has the layers that it has")
        if len(self.experts) != 1:
            raise ConfigError(
                f"experts: {self.experts} differ by layer, and layers of a Hugging Face model have one count; give it"
            )


_INSTEAD = {
    "experts_per_token": "router.name=top1, top2, or sigmoid_bias with router.experts_per_token",
    "layers": "a count for each of its MoE layers, such as experts=[0,4,8]",
    "split": "experts as wide as its dense layers",
}
