"""Settings of the scorer, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from adapt.core.precision import AutoPrecision, Precision, auto_precision
from adapt.core.settings import Settings, setting


class Layout(enum.Enum):
    """A way to lay out a tree; `auto` takes the one that costs least."""

    AUTO = "auto"
    PACKED = "packed"
    ROWS = "rows"
    CACHE = "cache"


@dataclass(frozen=True, kw_only=True)
class ScorerConfig(Settings):
    """Batching and layout of the scorer: they change speed and memory, never a score.

    `precision` does change scores, by rounding: bf16 is about twice as fast, and a few close decisions turn out otherwise. fp16
    rounds less and is for GPUs: models whose activations overflow it are refused. `resolved` replaces `auto`.
    """

    max_batch_tokens: int = setting(4096, "Largest scoring batch; more is faster and takes more memory.", least=1, unit="tokens")
    window: int = setting(512, "Rows that are sorted by length together before they are batched.", least=1, unit="rows")
    logit_rows: int = setting(256, "Positions whose logits are made at once.", least=1, unit="positions")
    layout: Layout = setting(
        Layout.AUTO, "How the candidates of a row are laid out: in one row, a row each, or on a kept past; auto takes the cheapest."
    )
    precision: Precision = setting(
        Precision.AUTO, "Number format of scoring; auto is bf16 where the device multiplies in it, else fp32."
    )

    def auto_precision(self) -> AutoPrecision | None:
        """Return what `precision=auto` comes to here; None where another one is asked for."""
        return auto_precision() if self.precision is Precision.AUTO else None

    def resolved(self) -> ScorerConfig:
        """Return these settings with what `precision=auto` comes to here; keys, ranks and checkpoints get no `auto`."""
        chosen = self.auto_precision()
        return self if chosen is None else replace(self, precision=chosen.precision)
