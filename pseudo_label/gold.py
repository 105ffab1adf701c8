"""What a row says of its label: one of the task's, or none.

The rule: a label is the name of one of the task's labels, as the task's file spells it; JSON's true and false are called `true` and
`false`, and a whole number that was saved as 1.0 is 1. Where rows bring candidates of their own, a label is the place of one,
counted from 0, and nothing else. Null, NaN, an empty text, `-`, `-1`, `null` and `nan` (in any case) say that a row has no label,
unless the task has a label of that name. Rows without a label are left out where labels are needed, and counted. Everything else
is an error.
"""

from __future__ import annotations

import math
import re
import unicodedata
from collections.abc import Mapping, Sequence
from typing import Any

from adapt.core.registry import suggest
from pseudo_label.words import named

_NONE = ("", "-", "-1", "null", "nan")
_PLACE = re.compile(r"0|[1-9][0-9]{0,8}")


class NoLabel(ValueError):
    """A value that is no label of the task, and what to do about it."""


def label_of(value: Any, label_words: Mapping[str, str], candidates: Sequence[str] | None) -> str | None:
    """Return the name of a row's label, or None where it has none.

    Raises:
        NoLabel: the value is neither.
    """
    if value is None or (isinstance(value, float) and math.isnan(value)):
        return None
    if not isinstance(value, str | int | float):
        raise NoLabel(f"label is {named(value)}; give one label")
    if candidates is not None:
        return _place_of(value, candidates)
    name = _name_of(value, label_words)
    if name in label_words:
        return name
    if name.strip().lower() in _NONE:
        return None
    raise NoLabel(f"label '{name}' has no label word{_hint(name, label_words)}")


def _name_of(value: str | int | float, label_words: Mapping[str, str]) -> str:
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float) and value.is_integer() and str(value) not in label_words:
        return str(int(value))
    try:
        return str(value)
    except ValueError as error:  # a number of thousands of digits
        raise NoLabel(f"label is {named(value)}") from error


def _hint(name: str, label_words: Mapping[str, str]) -> str:
    labels = list(label_words)
    spoken = next((label for label, word in label_words.items() if word == name.strip()), None)
    if spoken is not None:
        return f" (it is the word of label '{spoken}'; rows say the label)"
    same = next((label for label in labels if _folded(label) == _folded(name)), None)
    return f" (did you mean '{same}'?)" if same is not None else suggest(name, labels)


def _folded(name: str) -> str:
    """Return a label without what often changes on the way: case, space, width, `1.0` for 1 and `01` for 1."""
    plain = unicodedata.normalize("NFKC", name).strip("\u200b\ufeff").strip().casefold()
    return (plain.removesuffix(".0").lstrip("0") or "0") if re.fullmatch(r"[0-9]+(\.0)?", plain) else plain


def _place_of(value: str | int | float, candidates: Sequence[str]) -> str | None:
    last = len(candidates) - 1
    give = f"give its place, 0 to {last}"
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value).strip()
    if isinstance(value, bool):
        raise NoLabel(f"label is {named(value)}, which is no place in its list of candidates; {give}")
    if _PLACE.fullmatch(text) and int(text) <= last:
        spoken = candidates.index(text) if isinstance(value, str) and text in candidates else int(text)
        if spoken != int(text):
            raise NoLabel(f"label '{text}' is a place in its list, and the text of candidate {spoken}; give the place as a number")
        return text
    if text in candidates:
        raise NoLabel(f"label '{text}' is the text of candidate {candidates.index(text)}; {give}")
    if text.lower() in _NONE:
        return None
    if _PLACE.fullmatch(text):
        hint = "; does the file count from 1?" if int(text) == len(candidates) else ""
        raise NoLabel(f"label '{text}' is no place in its list of {len(candidates)} candidates, counted from 0 to {last}{hint}")
    if re.fullmatch(r"[A-Za-z]", text) and (place := ord(text.upper()) - ord("A")) <= last:
        raise NoLabel(f"label '{text}' is a letter; {give} ({place} for {text})")
    raise NoLabel(f"label '{text[:40]}' is no place in its list of candidates; {give}")
