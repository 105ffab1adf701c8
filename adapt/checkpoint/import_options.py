"""Settings of an import, which a configuration is composed and checked with: importable without torch."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting


class ResidualAxis(enum.Enum):
    """Over what the residual mix takes its softmax: the two parts, or, as the public PAI code does, the batch."""

    TWO = "two"
    BATCH = "batch"


@dataclass(frozen=True, kw_only=True)
class ImportOptions(Settings):
    """What a foreign checkpoint does not say of itself.

    `residual_axis=batch` imports what the public code computes for a batch of one, where both weights of the mix are 1; for other
    batches its outputs depend on the batch.
    """

    residual_axis: ResidualAxis = setting(
        ResidualAxis.TWO, "Over what the residual mix takes its softmax: its two parts, or the batch, as the public PAI code does."
    )
    drop_tokens: bool = setting(False, "Whether the model dropped tokens beyond an expert's capacity; only false can be imported.")
    vocab_size: int | None = setting(
        None,
        "Rows of the embedding that are kept, padding aside.",
        least=1,
        unit="tokens",
        hint="null takes the checkpoint's own, or the tokenizer's",
    )
    checks_sums: bool = setting(True, "Compares every record of a file with its checksum; files saved without any need false.")

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.drop_tokens:
            raise ConfigError(
                "drop_tokens: the public code drops tokens at random beyond an expert's capacity, so that no score could be "
                "repeated; leave it false (the 16B scripts turn dropping off)"
            )
