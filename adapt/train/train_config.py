"""How long a training run is and what it keeps; importable without DeepSpeed, as parents do."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, replace

from adapt.core.precision import Precision
from adapt.model.lora_config import LoraConfig, LoraTarget
from adapt.train.optimizer_config import OptimizerConfig


class Trained(enum.Enum):
    """The kind of parameters that an adaptation changes; `lora` adds a low-rank update and freezes everything else."""

    ALL = "all"
    DENSE = "dense"
    EXPERTS = "experts"
    ROUTER = "router"
    HEAD = "head"
    LORA = "lora"

    @property
    def has_routers(self) -> bool:
        """Whether routers are among them; with `lora`, the settings say so (`TrainConfig.trains_routers`)."""
        return self in (Trained.ALL, Trained.ROUTER)


@dataclass(frozen=True, kw_only=True)
class TrainConfig:
    """Length and optimizer of a training run, what it trains, and what it keeps.

    `batch_rows` rows make one optimizer step, however they are cut. With `keeps_moments` the optimizer's moments are left beside
    the finished checkpoint, in fp32. `lora` counts with `trains=lora` only, `expert_coverage` with `trains=experts`: those
    experts are trained that take this share of the held-out rows' routed pairs; absent, all of them. `is_kept_near`: the divergence
    from the base is a part of the loss.
    """

    steps: int
    batch_rows: int
    optimizer: OptimizerConfig = field(default_factory=OptimizerConfig)
    save_every_steps: int = 200
    keep_states: int = 2
    save_precision: Precision = Precision.FP32
    keeps_moments: bool = False
    trains: Trained = Trained.ALL
    lora: LoraConfig = field(default_factory=LoraConfig)
    expert_coverage: float | None = None
    is_kept_near: bool = False

    @property
    def decayed_optimizer(self) -> OptimizerConfig:
        """Return the optimizer's settings, without weight decay where experts that are not chosen have to stay as they are."""
        return self.optimizer if self.expert_coverage is None else replace(self.optimizer, weight_decay=0.0)

    @property
    def trains_routers(self) -> bool:
        """Whether a gradient has to reach the routers."""
        return self.trains.has_routers or (self.trains is Trained.LORA and LoraTarget.ROUTER in (self.lora.targets or ()))
