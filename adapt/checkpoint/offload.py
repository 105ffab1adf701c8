"""How a checkpoint's weights are held while it is scored, and how far they are checked."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.errors import ConfigError


class Verify(enum.Enum):
    """How much of a checkpoint is hashed when it is opened."""

    ALWAYS = "always"
    SAMPLE = "sample"
    NEVER = "never"


class WeightsIn(enum.Enum):
    """Where weights are while a model is scored.

    `memory`: all of them. `mmap`: views of the mapped files, pages asked for ahead and let go behind; ranks share one copy. `ring`:
    a few buffers, filled past the page cache and used again.
    """

    MEMORY = "memory"
    MMAP = "mmap"
    RING = "ring"


@dataclass(frozen=True, kw_only=True)
class OffloadConfig:
    """Where weights are while scoring, and what of them is hashed on opening; neither changes a score.

    `ahead_mb` bounds what is read ahead of its use, `pass_tokens` the (padded) tokens that go through the layers together: each
    such pass reads the model once. Both matter only where weights are paged.
    """

    weights: WeightsIn = WeightsIn.MEMORY
    verify: Verify = Verify.SAMPLE
    ahead_mb: int = 1024
    pass_tokens: int = 16384

    def __post_init__(self) -> None:
        if self.ahead_mb < 1 or self.pass_tokens < 1:
            raise ConfigError("ahead_mb and pass_tokens must be at least 1")
