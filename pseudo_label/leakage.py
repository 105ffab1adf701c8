"""Keeping evaluation texts out of adaptation: the same example in other spelling, and passages that two examples share.

Texts are compared only by their letters, digits and characters, after compatibility normalisation (full-width forms, case).
"""

from __future__ import annotations

import unicodedata
from collections.abc import Iterable

from pseudo_label.tasks import TaskConfig, TaskRow

# A run of this many characters in common is no coincidence in Chinese.
PASSAGE_CHARACTERS = 24


class EvaluationTexts:
    """The texts of evaluation rows, with which other rows are compared."""

    def __init__(self, rows: Iterable[TaskRow], task: TaskConfig) -> None:
        self._fields = [name for name, spec in task.fields.items() if not spec.is_optional]
        self._rows: set[tuple[str, ...]] = set()
        self._passages: set[str] = set()
        for row in rows:
            texts = self._plain(row)
            self._rows.add(texts)
            for text in texts:
                self._passages.update(_windows(text))

    def has_row(self, row: TaskRow) -> bool:
        """Return whether an evaluation row has the same texts (optional fields, keywords say, do not count)."""
        return self._plain(row) in self._rows

    def shares_passage(self, row: TaskRow) -> bool:
        """Return whether a text of the row has a passage in common with an evaluation row."""
        return any(window in self._passages for text in self._plain(row) for window in _windows(text))

    def _plain(self, row: TaskRow) -> tuple[str, ...]:
        # A text that has only signs (emoji, say) is compared as it is.
        return tuple(plain_text(row.texts[name]) or row.texts[name] for name in self._fields)


def plain_text(text: str) -> str:
    """Return a text's letters, digits and characters, normalised; punctuation, spaces and case do not count."""
    return "".join(c for c in unicodedata.normalize("NFKC", text).casefold() if c.isalnum())


def _windows(text: str) -> Iterable[str]:
    return (text[start : start + PASSAGE_CHARACTERS] for start in range(len(text) - PASSAGE_CHARACTERS + 1))
