"""Dynamic loss scaling: fp16 gradients are kept within the format's range by a factor on the loss that follows what overflows.

Small gradients vanish in fp16, whose least number is 6e-8; a loss times the scale makes gradients that much larger, and the
optimizer divides them again, in fp32. Where a gradient overflows, the step is skipped and the scale halved; after a window of
steps without that it is doubled. Scales are powers of two, so that they change only exponents and no bit of a gradient. A loss
that is itself not finite is none of the scale's business, and ends the run (`divergence.py`).

Source: Micikevicius et al. 2018, section 3.2, arXiv:1710.03740; the rule is that of DeepSpeed's scaler, which keeps the numbers
of `LossScale`.
"""

from __future__ import annotations

from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting


@dataclass(frozen=True, kw_only=True)
class LossScaleConfig(Settings):
    """How the scale begins and moves; read with `engine.precision=fp16` alone.

    With `hysteresis` n, the first n - 1 overflows after the scale has grown (or begun) skip their steps and leave it; each further
    one halves it. At `minimum`, that ends the run. After an overflow, or the start, `window` + 1 steps double the scale, and each
    `window` more do so again.
    """

    initial: int = setting(1 << 16, "First factor on the loss in fp16, a power of 2.", least=1)
    window: int = setting(1000, "Steps without an overflow after which the scale is doubled.", least=1, unit="steps")
    hysteresis: int = setting(2, "Overflows after which the scale is halved; the ones before only skip their step.", least=1)
    minimum: int = setting(1, "Least scale, a power of 2; an overflow there ends the run.", least=1)

    def __post_init__(self) -> None:
        super().__post_init__()
        for name, value in (("initial", self.initial), ("minimum", self.minimum)):
            if value & (value - 1):
                raise ConfigError(f"{name}: {value} is not a power of 2; 65536 is one")
        if self.minimum > self.initial:
            raise ConfigError(f"minimum: {self.minimum} is above initial, {self.initial}; lower it")

    def for_deepspeed(self) -> dict[str, int]:
        """Return DeepSpeed's names for these settings; its `loss_scale` 0 stands for a dynamic one."""
        return {
            "loss_scale": 0,
            "initial_scale_power": self.initial.bit_length() - 1,
            "loss_scale_window": self.window,
            "hysteresis": self.hysteresis,
            "min_loss_scale": self.minimum,
        }


@dataclass(frozen=True, kw_only=True)
class LossScale:
    """The scale of the next step and what it will move by, as a training state keeps it.

    `steps` were taken, the last of them that overflowed was `last_overflow` (-1: none did); `until_halved` more overflows halve
    the scale.
    """

    scale: float
    steps: int
    last_overflow: int
    until_halved: int
