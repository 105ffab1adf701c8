"""What a training run will take, said before it starts: steps, time and disk; and a refusal where the disk cannot hold its states.

Counts of parameters, settings and the speed of the measuring pass flow in. A training step reads each token forward and, at twice
the cost, backward, and what is held out is measured once more at the end; the optimizer's own time is not known beforehand, so the
time is a lower bound, and the loop says what is left once it has timed its first steps. On the disk are, at worst, the newest
states and the one that is being written (weights and two moments in fp32), and the finished checkpoint.
"""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from pathlib import Path

from torch import nn

from adapt.core.errors import ConfigError
from adapt.core.limits import largest_file
from adapt.core.progress import spelled
from adapt.model.buffers import state_parameters
from adapt.train.train_config import TrainConfig

_BACKWARD_AND_FORWARD = 3.0


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """Sizes in bytes; `seconds` is None where no pass was timed."""

    steps: int
    tokens_per_step: int
    seconds: float | None
    disk: int
    free: int

    def __str__(self) -> str:
        time = (
            "the time left is said once steps are timed"
            if self.seconds is None
            else f"at least {spelled(self.seconds)}; the time left is said once steps are timed"
        )
        return (
            f"{self.steps} steps of about {self.tokens_per_step} tokens, {time}; up to {self.disk / 1e9:.2f} GB of disk, "
            f"{self.free / 1e9:.1f} GB are free"
        )


def estimate(
    model: nn.Module,
    config: TrainConfig,
    tokens_per_step: int,
    forward_tokens_per_s: float | None,
    work: Path,
    measuring_s: float = 0.0,
) -> Estimate:
    """Estimate a whole run, including the part that may be done already; measuring takes `measuring_s`.

    Raises:
        ConfigError: the disk below `work` cannot hold its states.
    """
    whole = sum(parameter.numel() for _, parameter in state_parameters(model))
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    state = 4 * whole + 8 * trained
    disk = (config.keep_states + 1) * state + 4 * whole + (8 * trained if config.keeps_moments else 0)
    own = sum(file.stat().st_size for file in work.glob("step-*/*"))
    training_tokens = config.steps * tokens_per_step
    found = Estimate(
        steps=config.steps,
        tokens_per_step=tokens_per_step,
        seconds=None if not forward_tokens_per_s else training_tokens * _BACKWARD_AND_FORWARD / forward_tokens_per_s + measuring_s,
        disk=disk,
        free=shutil.disk_usage(work).free + own,
    )
    limit = largest_file()
    if limit is not None and limit < 4 * whole:
        raise ConfigError(
            f"{work}: training writes files of up to {4 * whole / 1e9:.2f} GB, and `ulimit -f` allows {limit / 1e9:.2f} GB; "
            "raise it"
        )
    if found.free < disk:
        raise ConfigError(
            f"{work}: training needs up to {disk / 1e9:.2f} GB there (states of {state / 1e9:.2f} GB each, and the result), and "
            f"{found.free / 1e9:.2f} GB are free; free space, or choose another run.dir"
        )
    return found
