"""Rows that are longer than a model's context: how many, how long, and which become the same text once they are cut.

Rows of different texts that are the same after the cut get the same answer, whatever they say: the part that was cut decides.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from adapt.core.errors import counted
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskRow

_ROOM_FOR_PROMPT = 256  # bytes of a template and its longest word, generously
_NAMED = 5


@dataclass(frozen=True, kw_only=True)
class CutRows:
    """The cut rows of a part of a file: lengths in tokens, and for each its line, and digests of what is left and of its text."""

    context: int
    longest: int = 0
    lines: list[int] = field(default_factory=list)
    left: list[int] = field(default_factory=list)
    whole: list[int] = field(default_factory=list)


def cut_rows(rows: Iterable[TaskRow], prompt: Prompt) -> CutRows:
    """Return which of some rows a prompt cuts."""
    longest = 0
    lines, left, whole = [], [], []
    for row in rows:
        length = prompt.length(row) if _may_be_cut(row, prompt) else 0
        if length > prompt.context_length:
            longest = max(longest, length)
            lines.append(row.line)
            left.append(_digest(prompt.kept(row)))
            whole.append(_digest(repr((sorted(row.texts.items()), row.candidates)).encode()))
    return CutRows(context=prompt.context_length, longest=longest, lines=lines, left=left, whole=whole)


def counts_of_cut(parts: Iterable[Mapping[str, Any]]) -> dict[str, Any]:
    """Return the counts over parts, as plain values: `cut`, `longest`, `context`, `alike`, and the first `alike_lines`."""
    found = list(parts)
    lines = _array(found, "lines")
    alike = _are_alike(_array(found, "left"), _array(found, "whole"))
    return {
        "cut": len(lines),
        "longest": max((part["longest"] for part in found), default=0),
        "context": max((part["context"] for part in found), default=0),
        "alike": int(alike.sum()),
        "alike_lines": lines[alike][:_NAMED].tolist(),
    }


def said_of_cut(counts: Mapping[str, Any], n_rows: int, unit: str = "lines") -> str | None:
    """Return what there is to say about cut rows, or None."""
    if not counts.get("cut"):
        return None
    text = (
        f"{counts['cut']:,} of {counted(n_rows, 'row')} {'is' if counts['cut'] == 1 else 'are'} longer than the model's context of "
        f"{counts['context']} tokens and {'was' if counts['cut'] == 1 else 'were'} cut (the longest has {counts['longest']:,})"
    )
    if counts.get("alike"):
        some = ", ".join(f"{line:,}" for line in counts["alike_lines"])
        more = ", ..." if counts["alike"] > len(counts["alike_lines"]) else ""
        text += (
            f"; {counts['alike']:,} of them ({unit} {some}{more}) differ only in what was cut, and get the answer of another row: "
            "put what decides at the start, shorten the template, or use a base with a longer context"
        )
    return text


def _may_be_cut(row: TaskRow, prompt: Prompt) -> bool:
    """Say whether a row could be longer than the context: no text has more tokens than bytes."""
    return sum(len(text.encode()) for text in row.texts.values()) + _ROOM_FOR_PROMPT + prompt.frame_bytes > prompt.context_length


def _digest(content: bytes) -> int:
    return int.from_bytes(hashlib.sha256(content).digest()[:8], "little") >> 1


def _array(parts: Sequence[Mapping[str, Any]], name: str) -> np.ndarray[Any, np.dtype[np.int64]]:
    return np.fromiter((value for part in parts for value in part.get(name, [])), np.int64)


def _are_alike(
    left_N: np.ndarray[Any, np.dtype[np.int64]], whole_N: np.ndarray[Any, np.dtype[np.int64]]
) -> np.ndarray[Any, np.dtype[np.bool_]]:
    """Say of each row whether another one of a different text has the same left."""
    pairs = np.unique(np.stack([left_N, whole_N]), axis=1)
    kept, counts = np.unique(pairs[0], return_counts=True)
    return np.isin(left_N, kept[counts > 1])
