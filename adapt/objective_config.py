"""Settings of the training objective, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, field, fields, replace

from adapt.core.errors import ConfigError
from adapt.core.spans import LabelLoss
from adapt.core.typed import check_not_negative


class BalanceScope(enum.Enum):
    """Over what the token shares F_e of the balance loss are taken."""

    STEP = "step"
    SEQUENCE = "sequence"
    MICROBATCH = "microbatch"


@dataclass(frozen=True, kw_only=True)
class PartWeights:
    """Coefficients of the token losses."""

    context: float = 1.0
    prompt: float = 1.0
    pseudo_label: float = 1.0

    def __post_init__(self) -> None:
        for part in fields(self):
            check_not_negative(part.name, getattr(self, part.name), "a part of weight 0 is left out")


@dataclass(frozen=True, kw_only=True)
class WeightSchedule:
    """A factor on a part's weight: `start` up to the share `begins_at` of the run, `end` from `ends_at` on, linear in between."""

    start: float = 1.0
    end: float = 1.0
    begins_at: float = 0.0
    ends_at: float = 1.0

    def __post_init__(self) -> None:
        if min(self.start, self.end) < 0:
            raise ConfigError("start and end are factors on a weight and cannot be negative")
        if not 0 <= self.begins_at <= self.ends_at <= 1:
            raise ConfigError("begins_at and ends_at are shares of the run: 0 <= begins_at <= ends_at <= 1")

    def at(self, done: float) -> float:
        """Return the factor where the share `done` of the run's steps lies behind."""
        if done >= self.ends_at:
            return self.end
        if done <= self.begins_at:
            return self.start
        return self.start + (self.end - self.start) * (done - self.begins_at) / (self.ends_at - self.begins_at)


@dataclass(frozen=True, kw_only=True)
class PartSchedules:
    """How the weight of each part goes over an adaptation (the default: it stays)."""

    context: WeightSchedule = field(default_factory=WeightSchedule)
    prompt: WeightSchedule = field(default_factory=WeightSchedule)
    pseudo_label: WeightSchedule = field(default_factory=WeightSchedule)
    balance: WeightSchedule = field(default_factory=WeightSchedule)


@dataclass(frozen=True, kw_only=True)
class BalanceConfig:
    """Coefficient and scope of the balance loss."""

    weight: float = 0.01
    scope: BalanceScope = BalanceScope.STEP

    def __post_init__(self) -> None:
        check_not_negative("weight", self.weight, "0 leaves the balance loss out")


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig:
    """The loss: how labels are predicted and how much each part counts.

    Every `gradient_shares_every_steps` steps (0: never) each part's share in the gradient is measured.
    """

    pseudo_label: LabelLoss = LabelLoss.CLM
    weights: PartWeights = field(default_factory=PartWeights)
    balance: BalanceConfig = field(default_factory=BalanceConfig)
    schedules: PartSchedules = field(default_factory=PartSchedules)
    gradient_shares_every_steps: int = 0

    def __post_init__(self) -> None:
        if self.gradient_shares_every_steps < 0:
            raise ConfigError(f"gradient_shares_every_steps: {self.gradient_shares_every_steps} is negative; 0 never measures")

    def at(self, done: float) -> ObjectiveConfig:
        """Return the objective as it is where the share `done` of the run's steps lies behind, without schedules."""
        if self.schedules == PartSchedules():
            return self
        factors = {part.name: getattr(self.schedules, part.name).at(done) for part in fields(self.schedules)}
        balance = replace(self.balance, weight=self.balance.weight * factors.pop("balance"))
        weights = PartWeights(**{part: getattr(self.weights, part) * factor for part, factor in factors.items()})
        return replace(self, weights=weights, balance=balance, schedules=PartSchedules())
