"""Settings of the routers, which a configuration is composed and checked with: importable without torch.

A router itself, with its source, is the file of its name. A class with a `name` of its own is that router's settings. It may be in
the router's own file instead, which is then imported, and torch with it, whenever a configuration is composed.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import Any

from adapt.core.errors import ConfigError
from adapt.core.registry import import_folder
from adapt.core.typed import check_not_negative, check_positive

_LARGEST_MARGIN = 16  # T_m amplifies the rounding of the cosine with m
_NO_ROUTERS = {"contract", "fixed", "gates", "groups", "margin", "settings"}  # what routers share
_CHOICES: dict[str, type[RouterConfig]] = {}


@dataclass(frozen=True, kw_only=True)
class RouterConfig:
    """Base of every router's settings; `name` says which router."""

    name: str = "top1"

    @classmethod
    def choices(cls) -> dict[str, type[RouterConfig]]:
        """Map router names to their settings classes."""
        import_folder(__package__, list(sys.modules[__package__].__path__), leaving_out={*_CHOICES, *_NO_ROUTERS})
        return dict(_CHOICES)

    def __init_subclass__(cls, **options: Any) -> None:
        super().__init_subclass__(**options)
        if "name" in cls.__dict__:
            _CHOICES[cls.name] = cls


@dataclass(frozen=True, kw_only=True)
class SoftmaxGateConfig(RouterConfig):
    """Settings of a softmax gate: `jitter` multiplies its input by up to 1 +- that much in training; both are off at 0."""

    z_loss_weight: float = 0.0
    jitter: float = 0.0

    def __post_init__(self) -> None:
        if not 0 <= self.z_loss_weight < float("inf") or not 0 <= self.jitter < 1:
            raise ConfigError("z_loss_weight must be at least 0, and jitter from 0 to below 1")


class MarginTarget(enum.Enum):
    """Whose logit takes the margin: the expert with the largest plain logit, or position mod E (as public code has it)."""

    ROUTED = "routed"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True, kw_only=True)
class MarginConfig(RouterConfig):
    """Settings of the margin, 1 (none) to 16; beta is `beta_start * beta_decay ** step`."""

    margin: int = 2
    beta_start: float = 100.0
    beta_decay: float = 0.99
    target: MarginTarget = MarginTarget.ROUTED
    loss_weight: float = 0.01

    def __post_init__(self) -> None:
        if not 1 <= self.margin <= _LARGEST_MARGIN or not 0 <= self.beta_decay <= 1:
            raise ConfigError(f"margin must be from 1 to {_LARGEST_MARGIN}, and beta_decay from 0 to 1")
        check_not_negative("beta_start", self.beta_start)
        check_not_negative("loss_weight", self.loss_weight)


@dataclass(frozen=True, kw_only=True)
class Top1Config(SoftmaxGateConfig):
    """Settings of top-1 routing: those of its gate."""

    name: str = "top1"


@dataclass(frozen=True, kw_only=True)
class Top2Config(SoftmaxGateConfig):
    """Settings of top-2 routing: those of its gate."""

    name: str = "top2"


class MarginEffect(enum.Enum):
    """What the margin changes in training."""

    GATE = "gate"
    LOSS = "loss"
    BOTH = "both"


@dataclass(frozen=True, kw_only=True)
class LargeMarginConfig(MarginConfig):
    """Settings of large-margin routing; `loss_weight` counts where the effect has a loss."""

    name: str = "large_margin"
    effect: MarginEffect = MarginEffect.BOTH


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceConfig(MarginConfig):
    """Settings of expert choice: how many experts pick a token on average, and the margin's."""

    name: str = "expert_choice"
    picks_per_token: float = 2.0

    def __post_init__(self) -> None:
        super().__post_init__()
        check_positive("picks_per_token", self.picks_per_token)


@dataclass(frozen=True, kw_only=True)
class SBaseConfig(RouterConfig):
    """Settings of S-BASE: the `temperature` that divides the logits, and when a sequence's plan is good enough.

    That is when at most the share `tolerance` of its tokens is above what experts have room for, or after `iterations` rounds.
    """

    name: str = "s_base"
    iterations: int = 500
    temperature: float = 0.3
    tolerance: float = 0.02

    def __post_init__(self) -> None:
        if self.iterations < 1 or not 0 < self.temperature < float("inf") or not 0 < self.tolerance < 1:
            raise ConfigError("iterations must be at least 1, temperature above 0, and tolerance between 0 and 1")


@dataclass(frozen=True, kw_only=True)
class HashConfig(RouterConfig):
    """Settings of hash routing: the map's seed."""

    name: str = "hash"
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class SigmoidBiasConfig(RouterConfig):
    """Settings of bias balancing: experts per token, and by how much a bias moves at each step."""

    name: str = "sigmoid_bias"
    experts_per_token: int = 2
    rate: float = 1e-3

    def __post_init__(self) -> None:
        check_not_negative("rate", self.rate, "0 never balances")


@dataclass(frozen=True, kw_only=True)
class RandomGroupsConfig(RouterConfig):
    """Settings of random routed experts: how many groups, and the maps' seed."""

    name: str = "random_groups"
    groups: int = 2
    seed: int = 0


@dataclass(frozen=True, kw_only=True)
class HardConfig(RouterConfig):
    """Settings of the hard gate (none of its own)."""

    name: str = "hard"
