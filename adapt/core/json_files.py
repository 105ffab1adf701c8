"""JSON files of this project: one form for writing them, one set of errors for reading them."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from adapt.core.errors import CheckpointError
from adapt.core.typed import to_plain

_MOST_BYTES = 1 << 28


def json_text(value: Any) -> str:
    """Return a value as the text of a JSON file; dataclasses become plain."""
    return json.dumps(to_plain(value), ensure_ascii=False, indent=1) + "\n"


def write_json(path: Path, value: Any) -> None:
    """Write a value as a JSON file of a directory that is still being built; elsewhere use `write_atomically(json_text(...))`."""
    path.write_text(json_text(value), encoding="utf-8")


def parsed_json(content: str | bytes) -> Any:
    """Parse JSON that may be hostile.

    Raises:
        ValueError: it is no JSON, is nested too deeply, holds half a surrogate pair, or is not UTF-8.
    """
    try:
        value = json.loads(content)
    except RecursionError:
        raise ValueError("nested too deeply") from None
    has_escapes = "\\ud" in content.lower() if isinstance(content, str) else b"\\ud" in content.lower()
    if has_escapes:
        try:
            json.dumps(value, ensure_ascii=False).encode()
        except UnicodeEncodeError:
            raise ValueError("half a surrogate pair, which is no character") from None
    return value


def read_json(path: Path, advice: str = "") -> Any:
    """Read a JSON file.

    Raises:
        CheckpointError: it is missing, cannot be read, or is not JSON; `advice` says what to do.
    """
    hint = f"; {advice}" if advice else ""
    try:
        if path.stat().st_size > _MOST_BYTES:
            raise CheckpointError(f"{path}: has {path.stat().st_size:,} bytes, more than a JSON file of this kind ever has{hint}")
        return parsed_json(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file{hint}") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error}){hint}") from error


def read_object(path: Path, advice: str = "") -> dict[str, Any]:
    """Read a JSON file that holds an object. Raises CheckpointError as `read_json` does, and for anything else."""
    content = read_json(path, advice)
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object" + (f"; {advice}" if advice else ""))
    return content


def read_lines(path: Path) -> list[dict[str, Any]]:
    """Read a file of one JSON object a line. Raises CheckpointError where it is missing or damaged."""
    try:
        return [parsed_json(line) for line in path.read_text(encoding="utf-8").splitlines()]
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path}: missing or damaged ({error})") from error
