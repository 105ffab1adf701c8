"""csv and tsv files with a header line: as many rows as were written, or an error that names the line.

Cells are quoted as RFC 4180 has it, in both kinds: a cell that begins with a quote ends at the next single one, line breaks inside
stay as they are, and quotes in the middle of a cell that does not begin with one are text. Empty lines are no rows. Two things are
valid csv and hardly ever meant: an unclosed quote that a later stray one closes, which glues rows together, and a second header.
"""

from __future__ import annotations

import csv
from collections.abc import Iterator

from adapt.core.errors import DataError
from adapt.text.rows.contract import MAX_CHARACTERS, Kind, Row, RowsFile, first_repeat
from adapt.text.rows.encodings import lines_with_ends

_DELIMITERS = {Kind.CSV: ",", Kind.TSV: "\t"}
_NAMES = {",": "commas", "\t": "tabs", ";": "semicolons"}
_GLUED_LINES = 5
_QUOTES = 'close it, and double the quotes ("") inside quoted cells'


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
        self._lines = lines_with_ends(file)
        self._current: list[str] = []  # the lines of the record that is being read
        self._line = 0
        self._row_end: str | None = None
        csv.field_size_limit(MAX_CHARACTERS)
        self._reader = csv.reader(self._fed(), delimiter=self._delimiter, strict=True)

    def header(self) -> list[str] | None:
        found = next(self.rows(), None)
        if found is None:
            return None
        start, header = found
        where = f"{self._name}, line {start}"
        other = next((sign for sign in (";", "\t", ",") if len(header) == 1 and sign in header[0]), None)
        if other is not None:
            there = ".tsv" if other == "\t" else ".csv" if other == "," else None
            mend = f"let its name end in {there}" if there else "save it with commas or tabs"
            raise DataError(f"{where}: columns are separated by {_NAMES[other]}, not {_NAMES[self._delimiter]}; {mend}")
        refuse_repeats(header, where)
        return header

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
        if any("\x00" in line for line in self._current):
            raise DataError(f"{self._name}, line {start}: has a NUL character, which is no text; take it out")

    def _refuse_glued(self, start: int, cells: list[str]) -> None:
        """Refuse a quoted cell over several lines that look like rows of their own."""
        further = self._current[1:]
        if not further:
            return
        width = len(cells) - 1
        inner = further[:-1]
        has_tabs = self._delimiter == "\t" and any("\t" in line for line in inner)
        goes_on = width and cells[0].isdecimal() and _numbers_on(int(cells[0][:18]), further, self._delimiter)
        are_alike = len(inner) >= _GLUED_LINES and width > 0 and all(line.count(self._delimiter) == width for line in inner)
        if has_tabs or goes_on or are_alike:
            raise DataError(
                f"{self._name}, line {start}: a quoted cell runs on to line {self._line}, over what look like rows; {_QUOTES}"
            )


def refuse_repeats(header: list[str], where: str) -> None:
    """Raise DataError where two columns have one name."""
    twice = first_repeat(header)
    if twice is not None:
        what = f"two columns are called '{twice}'" if twice else "several columns have no name"
        raise DataError(f"{where}: {what}; rename or remove one")


def _numbers_on(first: int, lines: list[str], delimiter: str) -> bool:
    """Say whether lines begin with the numbers that follow `first`, as the next rows would."""
    return all(line.split(delimiter, 1)[0] == str(first + step) and delimiter in line for step, line in enumerate(lines, start=1))
