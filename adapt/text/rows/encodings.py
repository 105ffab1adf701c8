"""Bytes to lines of text: which encoding a file is in, its line ends, packing, and every fault of these by file and line.

Without a chosen encoding a file is UTF-8, unless it begins with the mark of UTF-16 or UTF-32, has the zero bytes of UTF-16, or is
no UTF-8 and plainly Chinese text in GB18030: all of it decodes, nine in ten of its characters are those of GB2312, they are not
those of Japanese or Korean in its own encoding, and no line of it is UTF-8. What was recognised is said once. Line feeds end lines;
carriage returns do where a file has no line feed at all.
"""

from __future__ import annotations

import codecs
import functools
import gzip
import io
import logging
import zlib
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from typing import IO, Any, TextIO

from adapt.core.errors import ConfigError, DataError
from adapt.text.rows.contract import MAX_CHARACTERS, RowsFile, unpacked_limit
from adapt.text.rows.zstd_files import unpacked_zstd

logger = logging.getLogger(__name__)
_STEP_BYTES = 1 << 20
_STEP_CHARACTERS = 1 << 16
_UTF8 = "utf-8-sig"
_MARKS = (
    (codecs.BOM_UTF32_LE, "utf-32"),
    (codecs.BOM_UTF32_BE, "utf-32"),
    (codecs.BOM_UTF16_LE, "utf-16"),
    (codecs.BOM_UTF16_BE, "utf-16"),
    (codecs.BOM_UTF8, _UTF8),
)
_GZIP_MARK = b"\x1f\x8b"
_NOT_OF_FILES = ("idna", "punycode", "utf-7", "unicode-escape", "raw-unicode-escape", "charmap", "undefined", "oem", "mbcs")
_OTHER_KINDS = {
    b"version https://git-lfs.github.com/": "a pointer of Git LFS (the file itself was not fetched)",
    b"<!doctype html": "a page of HTML",
    b"<html": "a page of HTML",
    b"PK\x03\x04": "a zip archive or a workbook",
    b"PAR1": "a Parquet file",
    b"%PDF": "a PDF",
    b"\xd0\xcf\x11\xe0": "an old Office file",
}
_LONGEST_MARK = 64
_COMMON_SHARE = 0.9
_KANA = range(0xA4, 0xA6)  # first bytes of kana, in GB 2312 as in EUC-JP
_HANGUL = range(0xB0, 0xC9)  # first bytes of all Korean syllables in EUC-KR; a third of Chinese characters has others
_KANA_SHARE = 0.1
_TELLING_SYLLABLES = 10
_COMMON_LOOKED_AT = 20_000
_TELLING_CHARACTERS = 2
_ANY_END, _LINE_FEED, _CARRIAGE_RETURN = "", "\n", "\r"


def check_encoding(name: str | None, key: str) -> None:
    """Raise ConfigError for what is no text encoding; `key` is the setting that named it."""
    if name is None:
        return
    hint = "give utf-8, gb18030, utf-16, big5, latin-1 or another that Python knows"
    try:
        plain = codecs.lookup(name).name
        "a".encode(name)
    except (LookupError, UnicodeError, ValueError) as error:
        raise ConfigError(f"{key}: '{name}' is not a text encoding; {hint}") from error
    if plain.replace("_", "-") in _NOT_OF_FILES:
        raise ConfigError(f"{key}: '{name}' is not an encoding of files; {hint}")


def settled(file: RowsFile) -> RowsFile:
    """Return a file with its encoding, so that it is not looked for at each reading. Raises DataError as `lines_of` does."""
    return replace(file, encoding=_encoding_of(file))


def lines_of(file: RowsFile) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end).

    Raises:
        DataError: the file is missing, damaged, unpacks to too much, or is not text in its encoding, by line.
    """
    encoding = _encoding_of(file)
    for number, line in enumerate(_pieces(file, encoding, _line_end(file, encoding), _next_line), start=1):
        yield number, line.rstrip("\r\n")


def lines_with_ends(file: RowsFile) -> Iterator[str]:
    """Yield lines with their ends as they are; a carriage return ends one too. Raises DataError as `lines_of` does."""
    return _pieces(file, _encoding_of(file), _ANY_END, _next_line)


def pieces_of(file: RowsFile) -> Iterator[str]:
    """Yield a file's text in pieces of no particular length. Raises DataError as `lines_of` does."""
    return _pieces(file, _encoding_of(file), _ANY_END, lambda stream: stream.read(_STEP_CHARACTERS))


def _next_line(stream: TextIO) -> str:
    return stream.readline(MAX_CHARACTERS + 1)


def _pieces(file: RowsFile, encoding: str, end: str, take: Callable[[TextIO], str]) -> Iterator[str]:
    """Yield what `take` gives until there is no more, with a mark at the file's beginning taken off."""
    line = 1
    try:
        with _opened(file) as raw, io.TextIOWrapper(raw, encoding=encoding, newline=end) as stream:
            is_first = True
            while piece := take(stream):
                if len(piece) > MAX_CHARACTERS:
                    raise DataError(f"{file.name}, line {line}: is longer than {MAX_CHARACTERS:,} characters; cut it into lines")
                line += _count_ends(piece, end)
                yield piece.removeprefix("\ufeff") if is_first else piece
                is_first = False
    except UnicodeDecodeError as error:
        line += _count_ends(bytes(error.object[: error.start]).decode(encoding, "ignore"), end)
        named = "UTF-8" if encoding == _UTF8 else encoding
        raise DataError(
            f"{file.name}, line {line}: not {named}; save the file as UTF-8, or name its encoding with data.encoding (gb18030, say)"
        ) from error
    except UnicodeError as error:  # a mark that is missing, say
        raise DataError(f"{file.name}: is not {encoding} ({error}); leave data.encoding out, or correct it") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{file.name}, after line {line - 1}: a damaged gzip file") from error
    except OSError as error:
        raise DataError(f"{file.name}, after line {line - 1}: cannot be read ({error.strerror})") from error


def _count_ends(text: str, end: str) -> int:
    return text.count(end) if end else text.count("\n") + text.count("\r") - text.count("\r\n")


@contextmanager
def _opened(file: RowsFile) -> Iterator[IO[bytes]]:
    """Open a file's bytes, unpacked.

    Raises:
        DataError: there is no such file, or it cannot be read.
    """
    try:
        raw = file.path.open("rb")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"{file.name}: no such file") from None
    except (OSError, ValueError) as error:
        raise DataError(f"{file.name}: cannot be read ({getattr(error, 'strerror', None) or error})") from error
    with raw:
        if not file.is_gzipped and not file.is_zstd:
            yield raw
            return
        limit = unpacked_limit(file.path.stat().st_size)
        if file.is_zstd:
            with unpacked_zstd(raw, file.name) as stream:
                yield io.BufferedReader(_Bounded(stream, limit, file.name), _STEP_BYTES)
            return
        _refuse_unpacked(file, raw.peek(4)[:4])
        with gzip.GzipFile(fileobj=raw, mode="rb") as unpacked:
            yield io.BufferedReader(_Bounded(unpacked, limit, file.name), _STEP_BYTES)


def _refuse_unpacked(file: RowsFile, start: bytes) -> None:
    """Raise DataError for a file that is no gzip file at all."""
    if start and not start.startswith(_GZIP_MARK[: len(start)]):
        what = f" but {_OTHER_KINDS[start]}" if start in _OTHER_KINDS else ""
        raise DataError(f"{file.name}: is not a gzip file{what}; let its name say what it is")


class _Bounded(io.RawIOBase):
    """A stream that ends with an error where more comes out of it than a limit."""

    def __init__(self, stream: IO[bytes] | gzip.GzipFile, limit: int, name: str) -> None:
        self._stream, self._limit, self._name, self._read = stream, limit, name, 0

    def readable(self) -> bool:
        return True

    def readinto(self, buffer: Any, /) -> int:
        block = self._stream.read(len(buffer))
        self._read += len(block)
        if self._read > self._limit:
            raise DataError(f"{self._name}: unpacks to more than {self._limit:,} bytes; unpack it yourself if that is right")
        buffer[: len(block)] = block
        return len(block)


def _encoding_of(file: RowsFile) -> str:
    """Return the encoding to read a file in, and say it where it is not UTF-8.

    Raises:
        DataError: the file is of another kind, begins with another encoding's mark, or is in several encodings.
    """
    with _opened(file) as raw:
        try:
            head = raw.read(_STEP_BYTES)
        except (gzip.BadGzipFile, EOFError, zlib.error):
            return _UTF8  # reading says where it is damaged
    _refuse_other_kinds(file, head)
    marked = next((encoding for mark, encoding in _MARKS if head.startswith(mark)), None)
    if file.encoding is not None:
        return _chosen(file, file.encoding, marked, head)
    found = marked or _unmarked_utf16(head) or _utf8_or_gb18030(file)
    if found != _UTF8:
        _say(file.name, found)
    return found


def _refuse_other_kinds(file: RowsFile, head: bytes) -> None:
    if head.startswith(_GZIP_MARK):
        what = "twice packed" if file.is_gzipped else "a gzip file; let its name end in .gz"
        raise DataError(f"{file.name}: is {what}")
    begin = head[:_LONGEST_MARK].lower() if head[:1] in b"<v" else head
    for mark, what in _OTHER_KINDS.items():
        if begin.startswith(mark):
            raise DataError(f"{file.name}: is {what}, not {file.kind.value}; let its name say what it is, or save it anew")


def _chosen(file: RowsFile, encoding: str, marked: str | None, head: bytes) -> str:
    plain = codecs.lookup(encoding).name
    if head.isascii() and b"\x00" not in head and head and plain.startswith(("utf-16", "utf-32")):
        raise DataError(f"{file.name}: is plain ASCII, and data.encoding={encoding}; leave that out")
    if marked is not None and plain.removesuffix("-le").removesuffix("-be") not in (marked, marked.removesuffix("-sig")):
        raise DataError(
            f"{file.name}: begins with the mark of {marked.removesuffix('-sig')}, and data.encoding={encoding}; leave that out"
        )
    return _UTF8 if plain == "utf-8" else marked if marked is not None else plain


def _unmarked_utf16(head: bytes) -> str | None:
    """Return UTF-16's name where the first characters are ASCII with a zero byte each."""
    start = head[:8]
    if len(start) < 4 or len(head) % 2 and len(head) < _STEP_BYTES:
        return None
    pairs = [start[place : place + 2] for place in range(0, len(start) - 1, 2)]
    if all(low and not high for low, high in pairs):
        return "utf-16-le"
    return "utf-16-be" if all(high and not low for low, high in pairs) else None


def _utf8_or_gb18030(file: RowsFile) -> str:
    """Read up to the first MiB with more than ASCII in it; only where that is no UTF-8, look at the whole file."""
    decoder = codecs.getincrementaldecoder("utf-8")()
    try:
        with _opened(file) as raw:
            while block := raw.read(_STEP_BYTES):
                decoder.decode(block)
                if not block.isascii():
                    return _UTF8
            decoder.decode(b"", final=True)
    except UnicodeDecodeError:
        return "gb18030" if _is_gb18030(file) else _UTF8
    except (gzip.BadGzipFile, EOFError, zlib.error):
        pass  # reading says where it is damaged
    return _UTF8


def _is_gb18030(file: RowsFile) -> bool:
    """Say whether a file that is no UTF-8 is Chinese text in GB18030.

    Raises:
        DataError: lines of it are UTF-8 and others GB18030.
    """
    looked_at, common, kana, hanzi, hangul = 0, 0, 0, 0, 0
    utf8_line: int | None = None
    with _opened(file) as raw:
        number = 0
        while line := raw.readline(MAX_CHARACTERS):
            number += 1
            if line.isascii():
                continue
            try:
                text = line.decode("gb18030")
            except UnicodeDecodeError:
                return False
            if utf8_line is None and _reads_as_utf8(line):
                utf8_line = number
            if looked_at < _COMMON_LOOKED_AT:
                some = [character.encode("gb18030") for character in text if character > "\x7f"]
                looked_at += len(some)
                plain = [raw[0] for raw in some if len(raw) == 2 and raw[0] >= 0xA1 and raw[1] >= 0xA1]
                common += len(plain)
                kana += sum(first in _KANA for first in plain)
                hanzi += sum(first >= _HANGUL.start for first in plain)
                hangul += sum(first in _HANGUL for first in plain)
    if common < _COMMON_SHARE * looked_at or kana > _KANA_SHARE * looked_at:
        return False
    if hangul == hanzi >= _TELLING_SYLLABLES:
        return False
    if utf8_line is not None:
        raise DataError(
            f"{file.name}, line {utf8_line}: is UTF-8, and other lines are GB18030; save it in one encoding, or set data.encoding"
        )
    return True


def _reads_as_utf8(line: bytes) -> bool:
    """Say whether a line is UTF-8 with Chinese characters in it, which GB18030 hardly ever is by chance."""
    try:
        text = line.decode("utf-8")
    except UnicodeDecodeError:
        return False
    return sum(character >= "\u0800" for character in text) >= _TELLING_CHARACTERS


def _line_end(file: RowsFile, encoding: str) -> str:
    """Return what ends lines: a carriage return alone where the first MiB has some, and no line feed."""
    try:
        with _opened(file) as raw:
            head = raw.read(_STEP_BYTES)
    except (gzip.BadGzipFile, EOFError, zlib.error):
        return _LINE_FEED
    text = head.decode(encoding, "ignore")
    return _CARRIAGE_RETURN if "\r" in text and "\n" not in text else _LINE_FEED


def _say(name: str, encoding: str) -> None:
    """Say once how a file is read, by whatever path it was named."""
    _say_of(str(Path(name).absolute()), encoding)


@functools.cache
def _say_of(name: str, encoding: str) -> None:
    logger.info("%s: read as %s", name, encoding.upper())
