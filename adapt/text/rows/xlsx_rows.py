"""xlsx workbooks as rows: the one sheet that holds any, under a header row. Needs the extra `xlsx` (openpyxl).

Cells are read one row at a time. An empty cell is an empty text, an empty row is none, a date becomes ISO text, a duration its
seconds, and a formula stands for the value that was stored with it. Signs that a workbook writes as `_x000D_` are those signs.
Rows are numbered as in the sheet. Cells below the header that are merged are refused: only the first of them holds their value.
"""

from __future__ import annotations

import datetime
import re
import warnings
import zipfile
from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

try:
    import openpyxl
except ImportError:
    openpyxl = None

from adapt.core.errors import AdaptError, ConfigError, DataError
from adapt.text.rows.contract import Row, RowsFile, unpacked_limit
from adapt.text.rows.json_rows import refuse_odd_text
from adapt.text.rows.table_rows import refuse_repeats

_FORMULA, _ERROR = "f", "e"
_TEXT = "str"  # what a formula came to, kept by the reader where that is an empty text
_ESCAPE = re.compile(r"_x([0-9A-Fa-f]{4})_")
_MERGED = re.compile(rb"<(?:\w+:)?mergeCell\s[^>]*?ref=[\"']([A-Z]{1,3})(\d{1,7}):([A-Z]{1,3})(\d{1,7})[\"']")
_STEP_BYTES = 1 << 20
_LONGEST_TAG = 256


def xlsx_rows(file: RowsFile) -> Iterator[Row]:
    """Yield the rows of a workbook's sheet.

    Raises:
        ConfigError: openpyxl is not installed.
        DataError: it is no workbook, has several sheets with rows, repeats a column, or a cell holds no value.
    """
    with _sheet(file) as rows:
        found = next(rows, None)
        if found is None:
            return
        header = _header(file, *found)
        for number, cells in rows:
            if any(cell not in (None, "") for cell in cells[len(header) :]):
                raise DataError(f"{file.name}, row {number}: has more cells than the header has columns ({len(header)})")
            cells = [*cells, *[""] * (len(header) - len(cells))]
            where = f"{file.name}, row {number}"
            yield Row({name: _plain(cell, name, where) for name, cell in zip(header, cells, strict=False)}, number, "row")


def xlsx_header(file: RowsFile) -> list[str] | None:
    """Return the names of the columns; None where no sheet holds anything. Raises as `xlsx_rows` does."""
    with _sheet(file) as rows:
        found = next(rows, None)
        return None if found is None else _header(file, *found)


def _header(file: RowsFile, number: int, cells: list[Any]) -> list[str]:
    while cells and cells[-1] in (None, ""):
        cells = cells[:-1]
    where = f"{file.name}, row {number}"
    names = [str(_plain(cell, "header", where)) for cell in cells]
    refuse_repeats(names, where)
    return names


@contextmanager
def _sheet(file: RowsFile) -> Iterator[Iterator[tuple[int, list[Any]]]]:
    """Open a workbook's only sheet with rows, as (number, values) of each row that holds something."""
    if openpyxl is None:
        raise ConfigError(f"{file.name}: reading xlsx needs openpyxl; install the extra `xlsx`, or save the sheet as csv")
    _check_archive(file)
    try:
        with _opened(file, as_values=False) as book:
            filled = [sheet for sheet in book.worksheets if next(_cells(sheet), None) is not None]
            if len(filled) > 1:
                names = ", ".join(f"'{sheet.title}'" for sheet in filled)
                raise DataError(f"{file.name}: has several sheets with rows ({names}); keep one")
            if not filled:
                yield iter(())
                return
            _refuse_merged(file, filled[0])
            yield _values(file, filled[0])
    except AdaptError:
        raise
    except Exception as error:  # whatever openpyxl and the XML parser raise at a damaged workbook
        reason = (str(error).splitlines() or [type(error).__name__])[0]
        raise DataError(f"{file.name}: not an xlsx workbook, or a damaged one ({reason})") from error


def _check_archive(file: RowsFile) -> None:
    """Raise DataError where a workbook is no archive, or unpacks to too much."""
    try:
        with zipfile.ZipFile(file.path) as archive:
            unpacked = sum(entry.file_size for entry in archive.infolist())
    except (FileNotFoundError, IsADirectoryError):
        raise DataError(f"{file.name}: no such file") from None
    # A directory of entries that is damaged, unreadable, has impossible numbers, or is of a version that zipfile does not know.
    except (zipfile.BadZipFile, OSError, ValueError, NotImplementedError) as error:
        raise DataError(f"{file.name}: not an xlsx workbook (protected by a password, or of another kind)") from error
    limit = unpacked_limit(file.path.stat().st_size)
    if unpacked > limit:
        raise DataError(f"{file.name}: unpacks to more than {limit:,} bytes; save it as csv if that is right")


def _refuse_merged(file: RowsFile, sheet: Any) -> None:
    """Raise DataError where cells below the first row with anything in it are merged."""
    header, _ = next(_cells(sheet))
    tail = b""
    with zipfile.ZipFile(file.path) as archive, archive.open(sheet._worksheet_path) as stream:  # the reader keeps no merged cells
        while block := stream.read(_STEP_BYTES):
            for found in _MERGED.finditer(tail + block):
                if int(found[4]) > header:
                    cells = b":".join((found[1] + found[2], found[3] + found[4])).decode()
                    raise DataError(f"{file.name}: cells {cells} of sheet '{sheet.title}' are merged; split them and fill in each")
            tail = block[-_LONGEST_TAG:]


@contextmanager
def _opened(file: RowsFile, *, as_values: bool) -> Iterator[Any]:
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # styles and extensions that are of no interest here
        book = openpyxl.load_workbook(file.path, read_only=True, data_only=as_values)
    try:
        yield book
    finally:
        book.close()


def _cells(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number, cells) of the rows that hold something."""
    sheet.reset_dimensions()
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        if any(cell.value not in (None, "") for cell in cells):
            yield number, list(cells)


def _values(file: RowsFile, sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number, values); a second reading of the workbook gives the values of formulas, where there are some."""
    stored: Iterator[tuple[int, list[Any]]] | None = None
    with _opened(file, as_values=True) as computed:
        for number, cells in _cells(sheet):
            where = f"{file.name}, row {number}"
            is_formula = [cell.data_type == _FORMULA for cell in cells]
            if any(is_formula):
                stored = stored or _numbered(computed[sheet.title])
                cells = next((found for place, found in stored if place == number), [])
            if any(cell.data_type == _ERROR for cell in cells):
                raise DataError(f"{where}: a cell holds an error of the sheet, no value; mend it")
            if any(one and cell.value is None and cell.data_type != _TEXT for one, cell in zip(is_formula, cells, strict=False)):
                raise DataError(f"{where}: a formula has no stored value; save the workbook in a spreadsheet program")
            yield number, [cell.value for cell in cells]


def _numbered(sheet: Any) -> Iterator[tuple[int, list[Any]]]:
    """Yield (number, cells) of all rows of a sheet."""
    sheet.reset_dimensions()
    for number, cells in enumerate(sheet.iter_rows(), start=1):
        yield number, list(cells)


def _plain(value: Any, name: str, where: str) -> Any:
    if value is None:
        return ""
    if isinstance(value, datetime.datetime):
        return value.date().isoformat() if value.time() == datetime.time() else value.isoformat(sep=" ")
    if isinstance(value, datetime.date | datetime.time):
        return value.isoformat()
    if isinstance(value, datetime.timedelta):
        return value.total_seconds()
    if isinstance(value, str):
        text = _ESCAPE.sub(lambda found: chr(int(found[1], 16)), value)
        try:
            refuse_odd_text(text, f"its {name}")
        except ValueError as error:
            raise DataError(f"{where}: {error}") from error
        return text
    if isinstance(value, bool | int | float):
        return value
    raise DataError(f"{where}: its {name} is {type(value).__name__}, not text or a number; save it as text")
