"""Settings of a light adaptation (LoRA), and how its factors lie beside a base; importable without torch."""

from __future__ import annotations

import enum
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting


class LoraTarget(enum.Enum):
    """A group of matrices that get a low-rank update: attention, dense and shared MLPs, routed experts, routers."""

    ATTENTION = "attention"
    MLP = "mlp"
    EXPERTS = "experts"
    ROUTER = "router"


QUANTIZED_BITS = (8, 4)
BASE_BITS = (16, *QUANTIZED_BITS)
DEFAULT_TARGETS = (LoraTarget.ATTENTION, LoraTarget.MLP, LoraTarget.EXPERTS)


@dataclass(frozen=True, kw_only=True)
class LoraConfig(Settings):
    """How large the change is: matrices of `rank`, whose product counts `alpha / rank` times, and which matrices get one."""

    rank: int = setting(8, "Rank of the change of each matrix; each routed expert has one of its own.", least=1)
    alpha: float = setting(16.0, "The change is scaled by alpha / rank.", above=0)
    targets: list[LoraTarget] | None = setting(
        None,
        "Matrices that are changed: attention, mlp, experts, router.",
        hint="null takes attention, MLPs and routed experts, those that the base has",
    )

    base_bits: int = setting(
        16,
        "Bits of the frozen base's linear layers while it is trained: 16 (as engine.precision says), 8 or 4, by bitsandbytes.",
        hint="8 and 4 need the extra quantized",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.base_bits not in BASE_BITS:
            raise ConfigError(f"base_bits: {self.base_bits} is none of {', '.join(map(str, BASE_BITS))}")
        if self.targets is not None and not self.targets:
            raise ConfigError("targets: is empty, so nothing would be trained; name some of attention, mlp, experts, router")
        if self.targets is not None and len(set(self.targets)) != len(self.targets):
            raise ConfigError("targets: names a group twice")

    @property
    def scale(self) -> float:
        return self.alpha / self.rank


@dataclass(frozen=True, kw_only=True)
class TargetFactors:
    """A targeted tensor's shape, and the names of its two factors as a delta stores them (PEFT's names).

    `is_transposed`: the tensor has inputs before outputs, as gpt-oss keeps its experts, and the factors' product has not.
    """

    shape: tuple[int, ...]
    a: str
    b: str
    is_transposed: bool = False


@dataclass(frozen=True, kw_only=True)
class LoraLayout:
    """The factors beside a base by the base's parameter names; `stored_as` has the stored name of every trained parameter.

    `peft` is the content of PEFT's `adapter_config.json`.
    """

    scale: float
    targets: Mapping[str, TargetFactors]
    stored_as: Mapping[str, str]
    peft: Mapping[str, Any]
