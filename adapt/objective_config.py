"""Settings of the training objective, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, fields, replace

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting, setting_of
from adapt.core.spans import LabelLoss

_NO_PART = "a part of weight 0 is left out"
# Further parts that count tokens: the divergence from a teacher, and that from the base.
DISTILLATION, BASE_DIVERGENCE = "distillation", "base_divergence"


class BalanceScope(enum.Enum):
    """Over what the token shares F_e of the balance loss are taken."""

    STEP = "step"
    SEQUENCE = "sequence"
    MICROBATCH = "microbatch"


@dataclass(frozen=True, kw_only=True)
class PartWeights(Settings):
    """Coefficients of the token losses."""

    context: float | None = setting(
        None,
        "Weight of the text's own next-token loss; null is 1, and 0.1 for a Hugging Face base, which otherwise takes over the "
        "texts' style before it learns their labels.",
        least=0,
        hint=_NO_PART,
    )
    prompt: float | None = setting(
        None,
        "Weight of the loss on the prompt's constant tokens; null is 1, and 0 for a Hugging Face base, so that it "
        "does not learn to say them.",
        least=0,
        hint=_NO_PART,
    )
    pseudo_label: float = setting(1.0, "Weight of the loss on the label's tokens.", least=0, hint=_NO_PART)

    def of(self, part: str) -> float:
        """Return a part's weight; one that is left open, and was not settled by a base, is 1."""
        weight: float | None = getattr(self, part)
        return 1.0 if weight is None else weight


@dataclass(frozen=True, kw_only=True)
class WeightSchedule(Settings):
    """A factor on a part's weight: constant up to a share of the run, linear between two shares, constant after that."""

    start: float = setting(1.0, "Factor on the part's weight up to `begins_at`.", least=0)
    end: float = setting(1.0, "Factor on the part's weight from `ends_at` on.", least=0)
    begins_at: float = setting(0.0, "Where the factor begins to move.", least=0, most=1, unit="share of the run")
    ends_at: float = setting(
        1.0, "Where the factor stops moving, not before `begins_at`.", least=0, most=1, unit="share of the run"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.begins_at > self.ends_at:
            raise ConfigError(f"begins_at: {self.begins_at} is after ends_at, {self.ends_at}; a schedule runs forward")

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

    context: WeightSchedule = setting_of(WeightSchedule, "Schedule of the text's weight.")
    prompt: WeightSchedule = setting_of(WeightSchedule, "Schedule of the prompt's weight.")
    pseudo_label: WeightSchedule = setting_of(WeightSchedule, "Schedule of the label's weight.")
    balance: WeightSchedule = setting_of(WeightSchedule, "Schedule of the balance loss's weight.")


@dataclass(frozen=True, kw_only=True)
class BalanceConfig(Settings):
    """Coefficient and scope of the balance loss."""

    weight: float = setting(
        0.01, "Weight of the loss that spreads tokens evenly over experts.", least=0, hint="0 leaves the balance loss out"
    )
    scope: BalanceScope = setting(
        BalanceScope.STEP, "Over what each expert's share of tokens is taken: the previous step, a sequence, or a micro-batch."
    )


@dataclass(frozen=True, kw_only=True)
class ObjectiveConfig(Settings):
    """The loss: how labels are predicted and how much each part counts."""

    pseudo_label: LabelLoss = setting(
        LabelLoss.CLM,
        "How a label is trained: next tokens (clm), masks (mlm), both, or the text given its label (channel).",
    )
    weights: PartWeights = setting_of(PartWeights, "How much each part of the loss counts.")
    balance: BalanceConfig = setting_of(BalanceConfig, "The loss that balances experts.")
    schedules: PartSchedules = setting_of(PartSchedules, "How the weight of each part moves over an adaptation.")
    gradient_shares_every_steps: int = setting(
        0, "How often each part's share in the gradient is measured.", least=0, unit="steps", hint="0 never measures"
    )

    def settled(self, *, context: float, prompt: float) -> ObjectiveConfig:
        """Return the objective with the weights of these parts where they were left open."""
        given = self.weights
        weights = replace(
            given,
            context=context if given.context is None else given.context,
            prompt=prompt if given.prompt is None else given.prompt,
        )
        return replace(self, weights=weights)

    def at(self, done: float) -> ObjectiveConfig:
        """Return the objective as it is where the share `done` of the run's steps lies behind, without schedules."""
        if self.schedules == PartSchedules():
            return self
        factors = {part.name: getattr(self.schedules, part.name).at(done) for part in fields(self.schedules)}
        balance = replace(self.balance, weight=self.balance.weight * factors.pop("balance"))
        weights = PartWeights(**{part: self.weights.of(part) * factor for part, factor in factors.items()})
        return replace(self, weights=weights, balance=balance, schedules=PartSchedules())
