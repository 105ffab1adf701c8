"""The importer contract, and the registry that every file of this folder registers itself in.

An importer turns a directory that another program wrote into this project's model: a configuration, and the weights as a lazy
iterator of (name, tensor), one parameter at a time. What it read is accounted for tensor by tensor: mapped, known to be unused,
missing, or left over; the last two are errors, found before the first weight is copied.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.import_options import ImportOptions
from adapt.checkpoint.tensors_in_parts import AnyTensor
from adapt.core.registry import Registry, import_folder
from adapt.model.config import GPTConfig


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
