"""How a checkpoint's weights are held while it is scored, and how far they are checked."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.settings import Settings, setting


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
class OffloadConfig(Settings):
    """Where weights are while scoring, and what of them is hashed on opening; neither changes a score."""

    weights: WeightsIn = setting(
        WeightsIn.MEMORY, "Where weights are while scoring: all in memory, in mapped files (mmap), or in a few buffers (ring)."
    )
    verify: Verify = setting(Verify.SAMPLE, "How much of a checkpoint is hashed when it is opened.")
    ahead_mb: int = setting(1024, "Most that is read from disk ahead of its use, where weights are paged.", least=1, unit="MB")
    pass_tokens: int = setting(
        16384,
        "Padded tokens that go through the layers together where weights are paged; each such pass reads the model once.",
        least=1,
        unit="tokens",
    )
