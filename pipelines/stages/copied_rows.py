"""Labelled rows that are copies of others, and texts with several labels.

Rows of the splits that are measured together flow in; places of copies, and lines about both, flow out. A copy says nothing that
the first one did not: where splits are put together it counts once, or intervals would be too narrow. Tables by split count all.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from pseudo_label.store import reading_digest
from pseudo_label.tasks import TaskRow


def copies(rows_by_split: Mapping[str, Sequence[TaskRow]]) -> dict[str, list[int]]:
    """Return by split the places of rows whose texts, candidates and label are those of an earlier row, of any of the splits."""
    seen: set[tuple[str, str | None]] = set()
    found: dict[str, list[int]] = {}
    for split, rows in rows_by_split.items():
        found[split] = []
        for place, row in enumerate(rows):
            what = (reading_digest(row), row.label)
            if what in seen:
                found[split].append(place)
            seen.add(what)
    return found


def without_copies(rows_by_split: Mapping[str, list[TaskRow]]) -> dict[str, list[TaskRow]]:
    """Return the rows of each split that are no copies of earlier ones."""
    copied = {split: set(places) for split, places in copies(rows_by_split).items()}
    return {split: [row for i, row in enumerate(rows) if i not in copied[split]] for split, rows in rows_by_split.items()}


def said_of_copies(n_copies: int, n_rows: int) -> str:
    """Say in a line how many of all rows count for nothing."""
    return f"{n_copies:,} of {n_rows:,} labelled rows are copies of others and count once, except in accuracies by split"


def findings(rows_by_split: Mapping[str, Sequence[TaskRow]]) -> list[str]:
    """Say how many rows are copies, and how many texts have several labels, each in a line; nothing where there are none."""
    n_rows, n_copies = (sum(map(len, found.values())) for found in (rows_by_split, copies(rows_by_split)))
    lines = [said_of_copies(n_copies, n_rows)] if n_copies else []
    places: dict[str, dict[str, str]] = {}
    for split, rows in rows_by_split.items():
        for row in rows:
            label = row.label or ""
            places.setdefault(reading_digest(row), {}).setdefault(label, f"{split} line {row.line} '{label}'")
    several = [list(found.values()) for found in places.values() if len(found) > 1]
    if several:
        first, second, *_ = several[0]
        what = "1 labelled text has" if len(several) == 1 else f"{len(several):,} labelled texts have"
        lines.append(f"{what} several labels ({first} and {second}, say): one of them counts as wrong whatever is answered")
    return lines
