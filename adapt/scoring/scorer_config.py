"""Settings of the scorer, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision


class Layout(enum.Enum):
    """A way to lay out a tree; `auto` takes the one that costs least."""

    AUTO = "auto"
    PACKED = "packed"
    ROWS = "rows"
    CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class ScorerConfig:
    """Batching and layout of the scorer: they change speed and memory, never a score.

    `precision` does change scores, by rounding: bf16 is about twice as fast, and a few close decisions turn out otherwise. fp16
    rounds less and is for GPUs: models whose activations overflow it are refused.
    """

    max_batch_tokens: int = 4096
    window: int = 512
    logit_rows: int = 256
    layout: Layout = Layout.AUTO
    precision: Precision = Precision.FP32

    def __post_init__(self) -> None:
        if min(self.max_batch_tokens, self.window, self.logit_rows) < 1:
            raise ConfigError("max_batch_tokens, window and logit_rows must be at least 1")
