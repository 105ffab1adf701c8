"""Foreign `.pt` files, read without running anything they hold: the only place where a pickle is opened.

Files are read with `weights_only=True`, mapped where their format allows it, so that tensors cost no memory until they are used.
Beside tensors and plain values one class is let through while a file is read, `argparse.Namespace`, which Megatron puts beside
the weights; it holds settings and runs nothing.
"""

from __future__ import annotations

import argparse
import pickle
import re
import warnings
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.core.errors import CheckpointError

_ZIP_MAGIC = b"PK\x03\x04"
_STEP_BYTES = 1 << 22
_REFUSED = re.compile(r"(?:GLOBAL|Unsupported class) ([\w.]+)")


def read_pickled(path: Path) -> dict[str, Any]:
    """Return the mapping that a file saved by torch holds, its tensors mapped from the file where that can be.

    Raises:
        CheckpointError: the file is missing or damaged, holds anything but tensors and plain values, or is no mapping.
    """
    try:
        with path.open("rb") as stream:
            is_zip = stream.read(len(_ZIP_MAGIC)) == _ZIP_MAGIC
        with torch.serialization.safe_globals([argparse.Namespace]), warnings.catch_warnings():
            warnings.simplefilter("ignore")
            content = torch.load(path, map_location="cpu", weights_only=True, mmap=is_zip)
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file") from None
    except pickle.UnpicklingError as error:
        raise CheckpointError(f"{path}: {_refusal(str(error))}") from error
    except Exception as error:  # whatever torch raises here is about the file's content
        raise CheckpointError(f"{path}: damaged, or not saved by torch ({_first_line(error)})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: holds a {type(content).__name__}, not a mapping of names to tensors")
    return content


def check_sums(path: Path) -> None:
    """Read a file once and hold every record against its checksum; files of torch's old format have none.

    Raises:
        CheckpointError: a record differs, or the archive cannot be read.
    """
    with path.open("rb") as stream:
        if stream.read(len(_ZIP_MAGIC)) != _ZIP_MAGIC:
            return
    try:
        with zipfile.ZipFile(path) as archive:
            for record in archive.infolist():
                with archive.open(record) as content:
                    while content.read(_STEP_BYTES):
                        pass
    except (zipfile.BadZipFile, OSError, EOFError, NotImplementedError) as error:
        raise CheckpointError(
            f"{path}: damaged ({_first_line(error)}); fetch it again, or, if it was saved without checksums, "
            "set import_checkpoint.checks_sums=false"
        ) from error


def flattened(content: Mapping[Any, Any], where: Path, prefix: str = "") -> Iterator[tuple[str, Tensor]]:
    """Yield the tensors of nested mappings under dotted names.

    Raises:
        CheckpointError: a leaf is neither a tensor nor empty.
    """
    for key, value in content.items():
        name = f"{prefix}{key}"
        if isinstance(value, Tensor):
            yield name, value
        elif isinstance(value, Mapping):
            yield from flattened(value, where, f"{name}.")
        elif value is not None:
            raise CheckpointError(f"{where}: {name} is a {type(value).__name__}, not a tensor")


def _refusal(message: str) -> str:
    """Say in one line why `weights_only` refused a pickle."""
    found = _REFUSED.search(message)
    if found is None:
        return "damaged, or not saved by torch (not a pickle of tensors and plain values)"
    return (
        f"holds {found.group(1)}, and reading it could run code; only tensors, plain values and argparse.Namespace are let "
        "through; save the file again with nothing but its weights and args"
    )


def _first_line(error: Exception) -> str:
    lines = [line.strip() for line in str(error).splitlines() if line.strip()]
    return lines[0].split(". ")[0][:120] if lines else type(error).__name__
