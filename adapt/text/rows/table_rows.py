"""csv and tsv files with a header line: as many rows as were written, or an error that names the line.

Cells are quoted as RFC 4180 has it, in both kinds: a cell that begins with a quote ends at the next single one, line breaks inside
stay as they are, and quotes in the middle of a cell that does not begin with one are text. Empty lines are no rows. Some things are
valid and hardly ever meant, and are refused: an unclosed quote that a later stray one closes, which glues rows together (in tsv: a
quoted cell over several lines that has a tab in it, or is its row's only cell); spaces before an opening quote; another sign
between the columns than the file's ending says; a second header. `Quotes.CELLS` says that quoted cells are meant as they are,
`Quotes.TEXT` that no quote opens a cell: then every line is a row. A first line `sep=,` is a note to spreadsheets and passed over.
"""

from __future__ import annotations

import csv
import re
from collections.abc import Iterator

from adapt.core.errors import DataError
from adapt.text.rows.contract import MAX_CHARACTERS, Kind, Quotes, Row, RowsFile, first_repeat
from adapt.text.rows.encodings import lines_with_ends

_DELIMITERS = {Kind.CSV: ",", Kind.TSV: "\t"}
_NAMES = {
    ";": "semicolons",
    "\t": "tabs",
    ",": "commas",
    "|": "bars",
    "，": "full-width commas",
    "；": "full-width semicolons",
}
_ENDINGS = {"\t": ".tsv", ",": ".csv"}
_NOTE = re.compile(r"sep=(.)", re.IGNORECASE)
_GLUED_LINES = 5
_LONGEST_ID = 40  # characters
_DIGITS = re.compile("[0-9]+")
_QUOTES = 'close it and double the quotes ("") inside quoted cells, or set data.quotes=text (init: quotes=text) if they are letters'
_AS_MEANT = "data.quotes=cells takes it as it is, data.quotes=text takes every line as a row"


def table_rows(file: RowsFile) -> Iterator[Row]:
    """Yield the rows under a file's header.

    Raises:
        DataError: cells do not fit the header, quotes do not match, or the file is not what its name says, by line.
    """
    reader = _Table(file)
    header = reader.header()
    if header is None:
        return
    for start, cells in reader.rows():
        reader.refuse_other_sign(start, cells)
        if len(cells) != len(header):
            raise DataError(f"{file.name}, line {start}: has {len(cells)} cells, the header has {len(header)} columns")
        if cells == header:
            raise DataError(f"{file.name}, line {start}: is the header again; were two files joined? Take the line out")
        yield Row(dict(zip(header, cells, strict=True)), start)


def table_header(file: RowsFile) -> list[str] | None:
    """Return the names of a file's columns; None where it is empty. Raises DataError as `table_rows` does."""
    return _Table(file).header()


class _Table:
    """Records of a file with the lines they start in."""

    def __init__(self, file: RowsFile) -> None:
        self._name = file.name
        self._delimiter = _DELIMITERS[file.kind]
        self._quotes = file.quotes
        self._other: str | None = None  # a sign that the header has more often than the delimiter
        self._header_line = ""
        self._lines = lines_with_ends(file)
        self._current: list[str] = []  # the lines of the record that is being read
        self._line = 0
        self._row_end: str | None = None
        csv.field_size_limit(MAX_CHARACTERS)
        is_text = file.quotes is Quotes.TEXT
        self._reader = csv.reader(
            self._fed(),
            delimiter=self._delimiter,
            quoting=csv.QUOTE_NONE if is_text else csv.QUOTE_MINIMAL,
            strict=True,
        )

    def header(self) -> list[str] | None:
        found = next(self.rows(), None)
        if found is not None and (note := _NOTE.fullmatch("".join(self._current).rstrip("\r\n").strip('"'))):
            if note[1] != self._delimiter:
                self._refuse_sign(found[0], note[1])
            found = next(self.rows(), None)
        if found is None:
            return None
        start, header = found
        where = f"{self._name}, line {start}"
        self._header_line = "".join(self._current)
        other = max(_NAMES, key=lambda sign: (self._header_line.count(sign), sign == self._delimiter))
        if other != self._delimiter:
            if len(header) == 1 and not self._header_line.startswith('"'):
                self._refuse_sign(start, other)
            self._other = other
        refuse_repeats(header, where)
        return header

    def refuse_other_sign(self, start: int, cells: list[str]) -> None:
        """Refuse the first row where a sign separates columns there and in the header, and it is not the delimiter."""
        other, self._other = self._other, None
        if other is None or self._quotes is Quotes.CELLS or any('"' in line for line in (self._header_line, *self._current)):
            return
        if "".join(cells).count(other) == self._header_line.count(other):
            self._refuse_sign(start, other)

    def _refuse_sign(self, start: int, other: str) -> None:
        mend = f"let its name end in {_ENDINGS[other]}" if other in _ENDINGS else "save it with commas or tabs"
        said = _NAMES.get(other, repr(other))
        raise DataError(f"{self._name}, line {start}: columns are separated by {said}, not {_NAMES[self._delimiter]}; {mend}")

    def rows(self) -> Iterator[tuple[int, list[str]]]:
        while True:
            self._current.clear()
            start = self._line + 1
            try:
                cells = next(self._reader, None)
            except csv.Error as error:
                raise DataError(f"{self._name}, line {start}: {self._fault(error)}") from error
            if cells is None:
                return
            if cells:
                self._refuse_glued(start, cells)
                self._refuse_odd(start, cells)
                yield start, cells

    def _fed(self) -> Iterator[str]:
        for line in self._lines:
            self._line += 1
            self._current.append(line)
            yield line

    def _fault(self, error: csv.Error) -> str:
        message = str(error)
        until = f" (found out in line {self._line})" if len(self._current) > 1 else ""
        if "field larger" in message:
            return f"a cell of more than {MAX_CHARACTERS:,} characters{until}; is a quote not closed?"
        if "new-line" in message:
            return "a carriage return in a cell that is not quoted; quote the cell"
        if "expected after" in message:
            return f"a quoted cell goes on behind its closing quote{until}; {_QUOTES}"
        if "unexpected end" in message:
            return f"a quote is not closed up to the end of the file; {_QUOTES}"
        return f"not valid csv ({message}){until}"

    def _refuse_odd(self, start: int, cells: list[str]) -> None:
        """Refuse a row that ends otherwise than the header, a mark inside the file, and NUL."""
        last = self._current[-1]
        end = "\r" if last.endswith("\r") else "\n" if last.endswith("\n") else None
        self._row_end = self._row_end or end
        if end is not None and end != self._row_end:
            raise DataError(f"{self._name}, line {start}: ends in another way than the lines before; quote cells with line breaks")
        if cells[0].startswith("\ufeff"):
            raise DataError(f"{self._name}, line {start}: a byte order mark inside the file; were two files joined? Take it out")
        if self._quotes is None and self._delimiter == "," and self._has_spaced_quotes(cells):
            raise DataError(f"{self._name}, line {start}: a space stands before a quoted cell; take it out, or {_AS_MEANT}")
        if any("\x00" in line for line in self._current):
            raise DataError(f"{self._name}, line {start}: has a NUL character, which is no text; take it out")

    def _has_spaced_quotes(self, cells: list[str]) -> bool:
        """Say whether a cell begins with spaces and a quote in the file, not in a quoted cell."""
        places = [place for place, cell in enumerate(cells) if cell.startswith(" ") and cell.lstrip(" ").startswith('"')]
        if not places:
            return False
        without = next(csv.reader(self._current, delimiter=self._delimiter, skipinitialspace=True), [])
        return len(without) != len(cells) or any(without[place] != cells[place] for place in places)

    def _refuse_glued(self, start: int, cells: list[str]) -> None:
        """Refuse a quoted cell over several lines that look like rows of their own."""
        further = self._current[1:]
        if not further or self._quotes is not None:
            return
        width = len(cells) - 1
        inner = further[:-1]
        has_tabs = self._delimiter == "\t" and (not width or any("\t" in cell and ("\n" in cell or "\r" in cell) for cell in cells))
        goes_on = width and cells[0].isdecimal() and _numbers_on(int(cells[0][:18]), further, self._delimiter)
        goes_on = goes_on or (width and _are_of_one_form(cells[0], further, self._delimiter, width))
        are_alike = len(inner) >= _GLUED_LINES and width > 0 and all(line.count(self._delimiter) == width for line in inner)
        if has_tabs or goes_on or are_alike:
            raise DataError(
                f"{self._name}, line {start}: a quoted cell runs on to line {self._line}, over what look like rows; close it; "
                f"{_AS_MEANT}"
            )


def refuse_repeats(header: list[str], where: str) -> None:
    """Raise DataError where two columns have one name."""
    twice = first_repeat(header)
    if twice is not None:
        what = f"two columns are called '{twice}'" if twice else "several columns have no name"
        raise DataError(f"{where}: {what}; rename or remove one")


def _are_of_one_form(first: str, lines: list[str], delimiter: str, width: int) -> bool:
    """Say whether lines have a row's columns and begin like the id `first`, which has letters and digits: `x1`, then `x9`."""
    form = _DIGITS.sub("0", first)
    if len(first) > _LONGEST_ID or form == "0" or "0" not in form:
        return False
    return all(line.count(delimiter) == width and _DIGITS.sub("0", line.split(delimiter, 1)[0]) == form for line in lines)


def _numbers_on(first: int, lines: list[str], delimiter: str) -> bool:
    """Say whether lines begin with the numbers that follow `first`, as the next rows would."""
    heads = [line.split(delimiter, 1)[0] if delimiter in line else "" for line in lines]
    return all(head.isdecimal() and int(head[:18]) == first + step for step, head in enumerate(heads, start=1))
