"""What counts as a text of a row: strings, and numbers as they are written; nothing else is turned into words."""

from __future__ import annotations

import math
from typing import Any

from adapt.core.errors import DataError
from adapt.text.rows.json_rows import refuse_odd_text

_MOST_BITS = 3300  # of a number: a thousand digits


def word_of(value: Any, what: str) -> str:
    """Return a value as text; `what` says in an error which one it is.

    Raises:
        DataError: it is null, a truth value, NaN, a list, an object, or a text with NUL or half a surrogate pair.
    """
    if isinstance(value, str):
        try:
            refuse_odd_text(value, "it")
        except ValueError as error:
            raise DataError(f"{what}: {error}") from error
        return value
    is_number = isinstance(value, int | float) and not isinstance(value, bool)
    if is_number and (math.isfinite(value) if isinstance(value, float) else value.bit_length() <= _MOST_BITS):
        return str(value)
    raise DataError(f"{what}: is {named(value)}, which is no text; write it in quotes if it is meant as a word")


def named(value: Any) -> str:
    """Return how a value that is no text is written or called."""
    if value is None:
        return "null"
    if isinstance(value, bool):
        return str(value).lower()
    if isinstance(value, float):
        return str(value)
    kinds = {dict: "an object", list: "a list", tuple: "a list", int: "a number of more than a thousand digits"}
    return kinds.get(type(value), f"of type {type(value).__name__}")
