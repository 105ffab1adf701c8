"""The small files of a checkpoint, configuration and tokenizer, by the sizes and sums that its index records of them.

Tensors have sums of their own there. An index without these entries (of an older checkpoint, or another program's) checks nothing.
"""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import CheckpointError, is_file_name

FILES_ENTRY = "files"


@dataclass(frozen=True, kw_only=True)
class FileSum:
    """A file's size in bytes and its sha256."""

    size: int
    sha256: str

    @classmethod
    def of(cls, file: Path) -> FileSum:
        state = file.stat()
        return cls(size=state.st_size, sha256=_sha256(file, state.st_size, state.st_mtime_ns))


@lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Hash a file; several deltas ask for the same base, so what was hashed is remembered by path, size and time of change."""
    return sha256_of_file(file)


def sums_of_files(files: Iterable[Path]) -> dict[str, dict[str, Any]]:
    """Return size and sha256 by name, as an index records them."""
    return {file.name: {"size": file.stat().st_size, "sha256": sha256_of_file(file)} for file in sorted(files)}


def refuse_elsewhere(index: Path, name: str) -> None:
    """Raise CheckpointError where an index names a file outside its own directory."""
    if not is_file_name(name):
        raise CheckpointError(f"{index}: names the file '{name}', which is no file of its directory")


def refuse_links_out(directory: Path) -> None:
    """Raise CheckpointError where a file of a checkpoint is a link that leads out of its directory.

    The linked file would be copied with the checkpoint. Links of a snapshot in Hugging Face's cache may lead to its blobs.
    """
    place = directory.resolve()
    inside = [place, place.parent.parent / "blobs"] if place.parent.name == "snapshots" else [place]
    for file in directory.iterdir() if directory.is_dir() else ():
        if file.is_symlink() and file.is_file() and not any(Path(os.path.realpath(file)).is_relative_to(one) for one in inside):
            raise CheckpointError(f"{file}: is a link that leads out of its directory; put the file itself there")


def check_files(index: Path, content: Mapping[str, Any]) -> None:
    """Compare the files beside an index with what it records of them.

    Raises:
        CheckpointError: one is missing or has other bytes, or the entries are damaged.
    """
    entries = content.get(FILES_ENTRY, {})
    if not isinstance(entries, dict) or not all(isinstance(e, dict) and {"size", "sha256"} <= set(e) for e in entries.values()):
        raise CheckpointError(f"{index}: its sums of files are damaged; fetch or make the checkpoint again")
    for name, entry in entries.items():
        refuse_elsewhere(index, name)
        file = index.parent / name
        if not file.is_file():
            raise CheckpointError(f"{file}: is missing, and {index.name} names it; fetch or make the checkpoint again")
        if file.stat().st_size != entry["size"] or sha256_of_file(file) != entry["sha256"]:
            raise CheckpointError(
                f"{file}: damaged (not the bytes that {index.name} records); fetch or make it again, or, if you changed it, run "
                f"`python -m pipelines.record_sums checkpoint={index.parent}`"
            )
