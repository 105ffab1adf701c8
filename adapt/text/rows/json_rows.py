"""JSON rows: an object a line, or one array of objects, read piece by piece; what JSON allows and rows do not is refused by line.

Refused are keys that stand twice in an object, half surrogate pairs and NUL in any text, numbers of thousands of digits, and deep
nesting. NaN and Infinity, which Python's own JSON writes, are read as numbers; they are refused where a text is wanted.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator
from contextlib import contextmanager
from itertools import islice
from typing import Any

from adapt.core.errors import DataError
from adapt.text.rows.contract import MAX_CHARACTERS, Row, RowsFile, first_repeat
from adapt.text.rows.encodings import lines_of, pieces_of, settled

MAX_DEPTH = 32
_SPACE = re.compile(r"[ \t\r\n]*")
_ODD_ESCAPE = re.compile(r"\\u(?:[dD][89a-fA-F]|0000)")
_INCOMPLETE_TAIL = 16  # characters: a piece of a literal or of an escape at the end of what was read so far


class _Unfit(ValueError):
    """Valid JSON that no row may hold."""


@contextmanager
def _refused(where: str) -> Iterator[None]:
    """Turn JSON that no row may hold into an error of the place; an error of the syntax passes through."""
    try:
        yield
    except json.JSONDecodeError:
        raise
    except _Unfit as error:
        raise DataError(f"{where}: {error}") from error
    except RecursionError:
        raise DataError(f"{where}: {_too_deep()}") from None
    except ValueError as error:
        raise DataError(f"{where}: a number of thousands of digits; write it as text") from error


def json_rows(file: RowsFile) -> Iterator[Row]:
    """Yield the objects of a file of JSON lines or of one array; empty lines are passed over.

    Raises:
        DataError: something in it is not an object, or not JSON, by line.
    """
    file = settled(file)
    if _is_array(file):
        yield from _array_rows(file)
        return
    for number, line in lines_of(file):
        if line and not line.isspace():
            yield Row(parse_object(line, f"{file.name}, line {number}"), number)


def parse_object(text: str, where: str) -> dict[str, Any]:
    """Parse one JSON object; `where` begins the message of an error.

    Raises:
        DataError: it is not one, or holds what no row may hold.
    """
    try:
        with _refused(where):
            if text.startswith("\ufeff"):
                raise json.JSONDecodeError("Unexpected UTF-8 BOM", text, 0)
            value = _DECODER.decode(text)
            _refuse_odd(value, text)
    except json.JSONDecodeError as error:
        raise DataError(f"{where}: {_fault(error)}; mend the line or take it out") from error
    if not isinstance(value, dict):
        found = type(value).__name__
        raise DataError(f"{where}: expected a JSON object, found {found}; every line is one, in braces")
    return value


def _is_array(file: RowsFile) -> bool:
    for piece in pieces_of(file):
        if piece := piece.lstrip():
            return piece.startswith("[")
    return False


def _array_rows(file: RowsFile) -> Iterator[Row]:
    """Yield the objects of an array, holding no more of the file than the object that is read."""
    reader = _ArrayReader(file)
    reader.expect("[")
    number = 0
    if reader.peek() == "]":
        reader.expect("]")
    else:
        while True:
            number += 1
            yield Row(reader.item(number), number, "row")
            if reader.peek() != ",":
                break
            reader.expect(",")
        reader.expect("]")
    if reader.peek():
        raise DataError(f"{file.name}, line {reader.line}: something stands behind the end of the array")


class _ArrayReader:
    """The text of an array, read as far as it is looked at; `line` is where it stands."""

    def __init__(self, file: RowsFile) -> None:
        self._name = file.name
        self._pieces = pieces_of(file)
        self._text = ""
        self._place = 0
        self._decoder = json.JSONDecoder(object_pairs_hook=_unique)
        self.line = 1

    def peek(self) -> str:
        """Return the next character that is no space, or nothing at the end."""
        while True:
            space = _SPACE.match(self._text, self._place)
            assert space is not None, "the pattern fits nothing too"
            end = space.end()
            self._pass_to(end)
            if end < len(self._text) or not self._read_on():
                return self._text[end : end + 1]

    def expect(self, sign: str) -> None:
        found = self.peek()
        if found != sign:
            what = f"'{found}'" if found else "the end of the file"
            raise DataError(f"{self._name}, line {self.line}: not valid JSON (expected '{sign}' of the array, found {what})")
        self._pass_to(self._place + 1)

    def item(self, number: int) -> dict[str, Any]:
        """Return the object that comes next."""
        found = self.peek()
        where = f"{self._name}, row {number} (line {self.line})"
        if found != "{":
            what = f"'{found}'" if found else "the end of the file"
            raise DataError(f"{where}: expected a JSON object, found {what}")
        step = 0
        while True:
            try:
                with _refused(where):
                    value, end = self._decoder.raw_decode(self._text, self._place)
                    _refuse_odd(value, self._text[self._place : end])
            except json.JSONDecodeError as error:
                is_cut = error.msg.startswith("Unterminated") or error.pos >= len(self._text) - _INCOMPLETE_TAIL
                if len(self._text) - self._place > MAX_CHARACTERS:
                    raise DataError(f"{where}: is longer than {MAX_CHARACTERS:,} characters") from error
                if is_cut and self._read_on(2**step):
                    step += 1
                    continue
                raise DataError(f"{where}: {_fault(error, with_column=False)}") from error
            self._pass_to(end)
            return dict(value)

    def _pass_to(self, place: int) -> None:
        self.line += self._text.count("\n", self._place, place)
        self._place = place

    def _read_on(self, pieces: int = 1) -> bool:
        """Read more; say whether there was more."""
        more = list(islice(self._pieces, pieces))
        self._text, self._place = self._text[self._place :] + "".join(more), 0
        return bool(more)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise _Unfit(f"has '{first_repeat(name for name, _ in pairs)}' twice; keep one of them")
    return found


_DECODER = json.JSONDecoder(object_pairs_hook=_unique)  # made once: a million rows would make a million


def repeated_key(body: bytes) -> str | None:
    """Return what to say of JSON with a key twice in one object, of which a reader would keep one; None where there is none.

    Raises:
        ValueError: it is no JSON.
    """
    try:
        _DECODER.decode(body.decode(json.detect_encoding(body), "surrogatepass"))
    except _Unfit as error:
        return str(error)
    return None


def _refuse_odd(value: Any, text: str) -> None:
    """Raise _Unfit for NUL, half a surrogate pair, or deep nesting; the JSON text says whether there is anything to look for."""
    has_odd_escape = _ODD_ESCAPE.search(text) is not None
    if not has_odd_escape and text.count("[") + text.count("{") <= MAX_DEPTH:
        return
    left: list[tuple[Any, int, str]] = [(value, 0, "it")]
    while left:
        item, depth, name = left.pop()
        if depth > MAX_DEPTH:
            raise _Unfit(_too_deep())
        if isinstance(item, str):
            refuse_odd_text(item, name)
        elif isinstance(item, dict):
            left += [(key, depth + 1, "a key") for key in item]
            left += [(inner, depth + 1, f"its {key}") for key, inner in item.items()]
        elif isinstance(item, list):
            left += [(inner, depth + 1, name) for inner in item]


def refuse_odd_text(text: str, name: str) -> None:
    """Raise ValueError for a text with NUL or half a surrogate pair in it; `name` says which text it is."""
    if "\x00" in text:
        raise _Unfit(f"{name} has a NUL character, which is no text; take it out")
    try:
        text.encode()
    except UnicodeEncodeError:
        raise _Unfit(f"{name} has half a surrogate pair, which is no character; take it out") from None


def _fault(error: json.JSONDecodeError, *, with_column: bool = True) -> str:
    if "BOM" in error.msg:
        return "a byte order mark inside the file; were two files joined? Take it out"
    column = f", column {error.colno}" if with_column else ""
    return f"not valid JSON ({error.msg.removesuffix(' at')}{column})"


def _too_deep() -> str:
    return f"nested deeper than {MAX_DEPTH} lists and objects"
