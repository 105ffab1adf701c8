"""What an optimizer's step did."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True, kw_only=True)
class StepOutcome:
    """The gradient's norm before clipping, and in fp16 the scale of its loss.

    Without a norm the scaled gradient overflowed and the step was skipped: weights and moments are as they were.
    """

    grad_norm: float | None
    loss_scale: float | None = None

    @property
    def is_skipped(self) -> bool:
        return self.grad_norm is None
