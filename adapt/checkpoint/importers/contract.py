"""The importer contract, and the registry that every file of this folder registers itself in.

An importer turns a directory that another program wrote into this project's model: a configuration, and the weights as a lazy
iterator of (name, tensor), one parameter at a time. What it read is accounted for tensor by tensor: mapped, known to be unused,
missing, or left over; the last two are errors, found before the first weight is copied.
"""

from __future__ import annotations

import enum
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.parted import AnyTensor
from adapt.core.errors import ConfigError
from adapt.core.registry import Registry, import_folder
from adapt.model.gpt import GPTConfig


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


@dataclass(frozen=True, kw_only=True)
class ImportReport:
    """What became of the foreign tensors, counted; `unused` by reason. `notes` say what was decided, and by what."""

    read: int
    mapped: int
    unused: Mapping[str, int]
    missing: int
    left_over: int
    vocabulary_rows_dropped: int
    notes: Mapping[str, Any]


@dataclass(frozen=True, kw_only=True)
class ForeignCheckpoint:
    """A foreign checkpoint whose names and shapes were checked; `tensors()` reads it parameter by parameter, experts one by one."""

    config: GPTConfig
    files: tuple[Path, ...]
    report: ImportReport
    tensors: Callable[[], Iterator[tuple[str, AnyTensor]]]


# Opens a directory; `n_tokens` is the size of the tokenizer's vocabulary where one was given.
Importer = Callable[[Path, ImportOptions, int | None], ForeignCheckpoint]
IMPORTERS: Registry[Importer] = Registry("importer")


def all_importers() -> Registry[Importer]:
    """Return the registry with every file of this folder imported."""
    import_folder(__package__, [str(Path(__file__).parent)])
    return IMPORTERS
