"""Settings of the routers, which a configuration is composed and checked with: importable without torch.

A router itself, with its source, is the file of its name. A class with a `name` of its own is that router's settings. It may be in
the router's own file instead, which is then imported, and torch with it, whenever a configuration is composed.
"""

from __future__ import annotations

import enum
import sys
from dataclasses import dataclass
from typing import Any

from adapt.core.registry import import_folder
from adapt.core.settings import Settings, setting

_LARGEST_MARGIN = 16  # T_m amplifies the rounding of the cosine with m
_NO_ROUTERS = {"contract", "fixed", "gates", "margin", "settings"}  # what routers share
_CHOICES: dict[str, type[RouterConfig]] = {}


@dataclass(frozen=True, kw_only=True)
class RouterConfig(Settings):
    """Base of every router's settings."""

    name: str = setting("top1", "The router; set by model/router=NAME.")

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
    """Settings of a softmax gate."""

    z_loss_weight: float = setting(0.0, "Weight of the loss that keeps gate logits small.", least=0, hint="0 leaves it out")
    jitter: float = setting(
        0.0, "In training the gate's input is multiplied by a random factor within 1 plus or minus this.", least=0, below=1
    )


class MarginTarget(enum.Enum):
    """Whose logit takes the margin: the expert with the largest plain logit, or position mod E (as public code has it)."""

    ROUTED = "routed"
    ROUND_ROBIN = "round_robin"


@dataclass(frozen=True, kw_only=True)
class MarginConfig(RouterConfig):
    """Settings of the margin; the plain logit is blended in with the weight beta = `beta_start` * `beta_decay` ** step."""

    margin: int = setting(
        2, "How many times closer to its expert's direction a token must lie to be worth as much.", least=1, most=_LARGEST_MARGIN
    )
    beta_start: float = setting(100.0, "Weight of the plain logit at the first step.", least=0)
    beta_decay: float = setting(0.99, "Factor on the plain logit's weight at every step.", least=0, most=1)
    target: MarginTarget = setting(
        MarginTarget.ROUTED, "Whose logit takes the margin: the expert with the largest plain logit, or position mod experts."
    )
    loss_weight: float = setting(0.01, "Weight of the margin's own loss, where the router has one.", least=0)


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
    """Settings of large-margin routing."""

    name: str = "large_margin"
    effect: MarginEffect = setting(MarginEffect.BOTH, "What the margin changes in training: the gate, a loss of its own, or both.")


@dataclass(frozen=True, kw_only=True)
class ExpertChoiceConfig(MarginConfig):
    """Settings of expert choice, where experts pick tokens."""

    name: str = "expert_choice"
    picks_per_token: float = setting(2.0, "How many experts pick a token on average.", above=0)


@dataclass(frozen=True, kw_only=True)
class SBaseConfig(RouterConfig):
    """Settings of S-BASE, which plans an even share of a sequence's tokens for every expert."""

    name: str = "s_base"
    iterations: int = setting(500, "Most rounds of Sinkhorn on the plan of a sequence.", least=1, unit="rounds")
    temperature: float = setting(0.3, "Divides the logits before the plan is made.", above=0)
    tolerance: float = setting(
        0.02, "The plan is good enough when at most this share of tokens is above what experts have room for.", above=0, below=1
    )


@dataclass(frozen=True, kw_only=True)
class HashConfig(RouterConfig):
    """Settings of hash routing."""

    name: str = "hash"
    seed: int = setting(0, "Seed of the hash that maps token ids to experts.")


@dataclass(frozen=True, kw_only=True)
class SigmoidBiasConfig(RouterConfig):
    """Settings of bias balancing."""

    name: str = "sigmoid_bias"
    experts_per_token: int = setting(2, "Experts that each token goes to; at most as many as a layer has.", least=1)
    rate: float = setting(1e-3, "By how much an expert's bias moves at each step.", least=0, hint="0 never balances")


@dataclass(frozen=True, kw_only=True)
class RandomGroupsConfig(RouterConfig):
    """Settings of random routed experts."""

    name: str = "random_groups"
    groups: int = setting(2, "Groups that a layer's experts are split into; a domain picks one of them.", least=1)
    seed: int = setting(0, "Seed of the random maps from token ids to the experts of a group.")


@dataclass(frozen=True, kw_only=True)
class HardConfig(RouterConfig):
    """Settings of the hard gate (none of its own)."""

    name: str = "hard"
