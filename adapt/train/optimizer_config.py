"""Settings of the optimizer, and the learning rate as a function of the step; importable without torch."""

from __future__ import annotations

import enum
import math
from dataclasses import dataclass

from adapt.core.settings import Settings, setting


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
class OptimizerConfig(Settings):
    """An optimizer with warm-up and a schedule."""

    algorithm: Algorithm = setting(Algorithm.ADAMW, "The optimizer; lamb needs engine.zero_stage=0.")
    lr: float | None = setting(
        3e-4,
        "Largest learning rate, reached after the warm-up; null is by the base's kind and size, in adaptation only.",
        least=0,
        hint="0 trains nothing",
    )
    min_lr_ratio: float = setting(0.01, "Last learning rate as a share of the largest.", least=0, most=1)
    warmup_share: float | None = setting(
        0.1,
        "Part of the run in which the learning rate rises; null is by the base's kind, in adaptation only.",
        least=0,
        most=1,
        unit="share of steps",
    )
    schedule: Schedule = setting(Schedule.COSINE, "How the learning rate falls after the warm-up; wsd is stable, then linear.")
    decay_share: float = setting(0.2, "Part of the run at whose end wsd decays.", least=0, most=1, unit="share of steps")
    beta1: float = setting(0.9, "Decay of the gradient's running mean.", least=0, below=1)
    beta2: float = setting(0.95, "Decay of the squared gradient's running mean.", least=0, below=1)
    eps: float = setting(1e-8, "Added to the root of the second moment.", least=0)
    embedding_lr_ratio: float = setting(
        1.0,
        "Learning rate of the token embeddings and the output layer as a multiple of that of all else; above 1 for new pieces.",
        least=0,
        hint="0 keeps them as they are",
    )
    weight_decay: float = setting(0.1, "Decoupled weight decay per unit of learning rate.", least=0, hint="0 is none")
    skip_idle_experts: bool = setting(
        False, "Leave an expert without tokens in a step as it is, moments too, unread (with offload.optimizer=paged)."
    )
    clip: float = setting(1.0, "Largest global gradient norm; larger gradients are scaled to it.", least=0, hint="0 clips nothing")

    @property
    def largest_lr(self) -> float:
        """Return the largest learning rate, which must be known by now."""
        assert self.lr is not None, "what is left open is settled by the base, before training"
        return self.lr


def learning_rate(config: OptimizerConfig, step: int, total_steps: int) -> float:
    """Return the learning rate of a step (from 0)."""
    assert config.warmup_share is not None, "what is left open is settled by the base, before training"
    warmup_steps = round(config.warmup_share * total_steps)
    if step < warmup_steps:
        return config.largest_lr * (step + 1) / warmup_steps
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
    return config.largest_lr * share
