"""Settings of the optimizer, and the learning rate as a function of the step; importable without torch."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.typed import check_not_negative


class Schedule(enum.Enum):
    """How the learning rate goes after the warm-up."""

    COSINE = "cosine"
    LINEAR = "linear"
    CONSTANT = "constant"
    WSD = "wsd"


class Algorithm(enum.Enum):
    """The optimizer: AdamW (Loshchilov and Hutter 2019, arXiv:1711.05101) or LAMB (see `lamb.py`)."""

    ADAMW = "adamw"
    LAMB = "lamb"


@dataclass(frozen=True, kw_only=True)
class OptimizerConfig:
    """An optimizer with warm-up and a schedule; `clip` is the largest global gradient norm."""

    algorithm: Algorithm = Algorithm.ADAMW
    lr: float = 3e-4
    min_lr_ratio: float = 0.01
    warmup_share: float = 0.1
    schedule: Schedule = Schedule.COSINE
    decay_share: float = 0.2
    beta1: float = 0.9
    beta2: float = 0.95
    eps: float = 1e-8
    weight_decay: float = 0.1
    clip: float = 1.0

    def __post_init__(self) -> None:
        check_not_negative("lr", self.lr, "0 trains nothing")
        check_not_negative("weight_decay", self.weight_decay, "0 is none")
        check_not_negative("eps", self.eps)
        check_not_negative("clip", self.clip, "0 clips nothing")
        for name in ("min_lr_ratio", "warmup_share", "decay_share"):
            if not 0 <= getattr(self, name) <= 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is no share; give 0 to 1")
        for name in ("beta1", "beta2"):
            if not 0 <= getattr(self, name) < 1:
                raise ConfigError(f"{name}: {getattr(self, name)} is out of range; give 0 or more, less than 1")


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step (from 0)."""
    warmup_steps = round(config.warmup_share * total_steps)
    if step < warmup_steps:
        return config.lr * (step + 1) / warmup_steps
    done = min((step - warmup_steps) / max(total_steps - warmup_steps, 1), 1.0)
    floor = config.min_lr_ratio
    if config.schedule is Schedule.COSINE:
        share = floor + (1 - floor) * 0.5 * (1 + math.cos(math.pi * done))
    elif config.schedule is Schedule.LINEAR:
        share = floor + (1 - floor) * (1 - done)
    elif config.schedule is Schedule.WSD:
        # Warm-up, stable, then a linear decay over the last `decay_share` of all steps.
        left = (total_steps - step) / max(config.decay_share * total_steps, 1e-9)
        share = floor + (1 - floor) * min(max(left, 0.0), 1.0)
    else:
        share = 1.0
    return config.lr * share
