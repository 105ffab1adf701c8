"""Settings of an import, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.errors import ConfigError


class ResidualAxis(enum.Enum):
    """Over what the residual mix takes its softmax: the two parts, or, as the public PAI code does, the batch."""

    TWO = "two"
    BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class ImportOptions:
    """What a foreign checkpoint does not say of itself.

    `residual_axis=batch` imports what the public code computes for a batch of one, where both weights of the mix are 1; for other
    batches its outputs depend on the batch. `drop_tokens=true` is refused: the public code then leaves tokens out at random.
    `vocab_size` absent: the checkpoint's own, or the tokenizer's; rows beyond it are padding and stay behind. `checks_sums` holds
    every record of a file against its checksum (files saved without checksums need false).
    """

    residual_axis: ResidualAxis = ResidualAxis.TWO
    drop_tokens: bool = False
    vocab_size: int | None = None
    checks_sums: bool = True

    def __post_init__(self) -> None:
        if self.drop_tokens:
            raise ConfigError(
                "drop_tokens: the public code drops tokens at random beyond an expert's capacity, so that no score could be "
                "repeated; leave it false (the 16B scripts turn dropping off)"
            )
        if self.vocab_size is not None and self.vocab_size < 1:
            raise ConfigError(f"vocab_size: {self.vocab_size} is less than 1")
