"""The columns of a file of rows, looked at once: which may be the text, a pair of texts, or the labels, and what is in them.

Guesses go by names that such columns have, and by what is in them: texts are long and mostly different, labels short and few.
A guess is an offer to a person, never taken by itself. Columns of nested objects are named by dotted paths.
"""

from __future__ import annotations

import itertools
import math
import re
import unicodedata
from collections import Counter
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

MOST_VALUES = 500  # a column with more different values holds no labels
_COMPARED = 20_000  # values of a column of which it is known how many differ
_LETTERS_OF, _LETTERS = 1000, 200  # values whose first characters are counted
_MOST_DEPTH = 4
_LIKE_TEXT = ("text", "sentence", "review", "content", "comment", "body", "message", "title", "question", "query", "utterance",
              "文本", "内容", "评论", "评价", "正文", "标题", "句子", "问题", "留言")  # fmt: skip
_LIKE_LABEL = ("label", "class", "category", "sentiment", "polarity", "target", "rating", "stars", "score", "topic", "gold",
               "标签", "类别", "分类", "情感", "评分", "星级", "主题")  # fmt: skip
_PAIRS = (("premise", "hypothesis"), ("query", "title"), ("query", "passage"), ("query", "document"), ("source", "target"))
_FIRST_AND_SECOND = (("1", "2"), ("a", "b"), ("A", "B"), ("0", "1"), ("一", "二"))
_NO_LABEL = ("", "-", "-1", "null", "nan")  # as in `pseudo_label/gold.py`
_LONGEST_LABEL = 40  # characters, on average
_LIKE_NUMBER = re.compile(r"[-+0-9.,:/ T]+Z?|https?://\S*")


@dataclass(kw_only=True)
class Column:
    """What is in a column; `values` are how often each occurs, absent where there are too many for labels.

    `letters` are those of the first values, `ended` is how many values end in a punctuation mark.
    """

    name: str
    filled: int = 0
    characters: int = 0
    wordless: int = 0
    ended: int = 0
    example: str = ""
    values: Counter[str] | None = field(default_factory=Counter)
    seen: set[int] = field(default_factory=set)
    letters: Counter[str] = field(default_factory=Counter)

    def add(self, value: str) -> None:
        """Count a value that is not empty."""
        self.filled += 1
        self.characters += len(value)
        self.wordless += _LIKE_NUMBER.fullmatch(value) is not None
        self.ended += unicodedata.category(value.rstrip()[-1]).startswith("P")
        self.example = self.example or value
        if self.filled <= _LETTERS_OF:
            self.letters.update(value[:_LETTERS])
        if self.filled <= _COMPARED:
            self.seen.add(hash(value))
        if self.values is not None:
            self.values[value] += 1
            if len(self.values) > MOST_VALUES:
                self.values = None

    @property
    def mean_length(self) -> float:
        return self.characters / max(self.filled, 1)

    @property
    def are_sentences(self) -> bool:
        """Whether most values end in a punctuation mark."""
        return 2 * self.ended > self.filled

    @property
    def labels(self) -> list[str]:
        """The values that may be labels, numbers in their order, words by how often they occur; -1 only beside 0 and 1."""
        counted: list[tuple[str, int]] = [] if self.values is None else self.values.most_common()
        are_signs = {"-1", "0", "1"} <= {value for value, _ in counted}  # worse, even, better
        found = [value for value, _ in counted if not is_no_label(value) or (value == "-1" and are_signs)]
        return sorted(found, key=float) if all(_is_number(value) for value in found) else found


@dataclass(frozen=True, kw_only=True)
class Survey:
    """The columns of a file and how many rows it has."""

    rows: int
    columns: Mapping[str, Column]

    @property
    def names(self) -> list[str]:
        return list(self.columns)


def survey(records: Iterable[Mapping[str, Any]]) -> Survey:
    """Look at every row once."""
    columns: dict[str, Column] = {}
    rows = 0
    for record in records:
        rows += 1
        for name, value in flat(record):
            column = columns.setdefault(name, Column(name=name))
            text = written(value)
            if text is not None and text.strip():
                column.add(text)
    return Survey(rows=rows, columns=columns)


def flat(record: Mapping[str, Any], depth: int = 0) -> Iterator[tuple[str, Any]]:
    """Yield a record's values by their dotted paths."""
    for name, value in record.items():
        if isinstance(value, Mapping) and depth < _MOST_DEPTH:
            yield from ((f"{name}.{inner}", found) for inner, found in flat(value, depth + 1))
        else:
            yield str(name), value


def written(value: Any) -> str | None:
    """Return a value as a text or label is written; None for what is neither."""
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return None if math.isnan(value) else str(int(value)) if value.is_integer() else str(value)
    if isinstance(value, list):
        parts = [part for item in value if (part := written(item)) is not None]
        return "、".join(parts) if len(parts) == len(value) else None
    return str(value) if isinstance(value, str | int) else None


def is_no_label(value: str) -> bool:
    """Say whether a value counts as no label where a task has no label of that name."""
    return value.strip().lower() in _NO_LABEL


def guess_texts(found: Survey) -> list[str]:
    """Return the column that is likeliest the text, or the two of a pair; empty where none looks like one."""
    texts = {name: _as_text(column) for name, column in found.columns.items() if _as_text(column) > 0}
    pairs = [pair for pair in itertools.permutations(texts, 2) if _is_pair(*pair)]
    if pairs:
        first, second = max(pairs, key=lambda pair: texts[pair[0]] + texts[pair[1]])
        return [first, second]
    return [max(texts, key=lambda name: texts[name])] if texts else []


def guess_label(found: Survey, texts: Sequence[str]) -> str | None:
    """Return the column that is likeliest the labels, or None."""
    fitting = [column for column in found.columns.values() if column.name not in texts and _may_be_labels(column)]
    named = [column for column in fitting if _is_like(column.name, _LIKE_LABEL)]
    return min(named or fitting, key=lambda column: len(column.labels)).name if fitting else None


def _as_text(column: Column) -> float:
    """Return how much a column looks like texts; 0 where it does not."""
    if not column.filled or 2 * column.wordless > column.filled:
        return 0.0
    differing = len(column.seen) / min(column.filled, _COMPARED)
    return column.mean_length * differing * (4 if _is_like(column.name, _LIKE_TEXT) else 1)


def _may_be_labels(column: Column) -> bool:
    labels = column.labels
    is_named = _is_like(column.name, _LIKE_LABEL)
    most = MOST_VALUES if is_named else 20
    return 2 <= len(labels) <= most and 2 * len(labels) <= column.filled and column.mean_length <= _LONGEST_LABEL


def _is_like(name: str, known: Sequence[str]) -> bool:
    return any(word in name.lower() for word in known)


def _is_pair(first: str, second: str) -> bool:
    if (first.lower(), second.lower()) in _PAIRS:
        return True
    return any(
        first.endswith(one) and second.endswith(two) and first.removesuffix(one) == second.removesuffix(two)
        for one, two in _FIRST_AND_SECOND
    )


def _is_number(value: str) -> bool:
    try:
        return math.isfinite(float(value))
    except ValueError:
        return False
