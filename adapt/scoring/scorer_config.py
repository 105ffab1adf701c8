"""Settings of the scorer, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from adapt.core.errors import ConfigError
from adapt.core.precision import AutoPrecision, Precision, auto_precision


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
    rounds less and is for GPUs: models whose activations overflow it are refused. `resolved` replaces `auto`.
    """

    max_batch_tokens: int = 4096
    window: int = 512
    logit_rows: int = 256
    layout: Layout = Layout.AUTO
    precision: Precision = Precision.AUTO

    def __post_init__(self) -> None:
        if min(self.max_batch_tokens, self.window, self.logit_rows) < 1:
            raise ConfigError("max_batch_tokens, window and logit_rows must be at least 1")

    def auto_precision(self) -> AutoPrecision | None:
        """Return what `precision=auto` comes to here; None where another one is asked for."""
        return auto_precision() if self.precision is Precision.AUTO else None

    def resolved(self) -> ScorerConfig:
        """Return these settings with what `precision=auto` comes to here; keys, ranks and checkpoints get no `auto`."""
        chosen = self.auto_precision()
        return self if chosen is None else replace(self, precision=chosen.precision)
