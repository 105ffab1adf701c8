"""Corpus readers: jsonl, jsonl.gz and txt files to documents, with errors named by file and line.

A document's domain is a small integer: its place in the sorted list of domain names. A domain is the file name up to its first
underscore or dot (`formal_licensed.jsonl.gz` -> `formal`), or what a field of the document's line says, so that losses, routers and
the mix of pretraining can tell domains apart.
"""

from __future__ import annotations

import gzip
import hashlib
import json
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path

from adapt.core.errors import DataError

_SUFFIXES = (".jsonl", ".json", ".jsonl.gz", ".json.gz", ".txt", ".txt.gz")


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A corpus file and the domain of its documents, or the field of their lines that says it."""

    path: Path
    domain: str
    domain_field: str | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text of a corpus."""

    text: str
    domain: str


def find_corpus(patterns: list[str], domain_field: str | None = None) -> list[CorpusFile]:
    """Expand file names and globs, sorted, each file once; `domain_field` names the field of a line that says its domain.

    Raises:
        DataError: a pattern matches nothing, or a file is of an unknown kind.
    """
    found: dict[Path, CorpusFile] = {}
    if not patterns:
        raise DataError("data.corpus: no corpus file given; set data.corpus=[FILE or GLOB, ...]")
    for pattern in patterns:
        matches = sorted(_expand(pattern))
        if not matches:
            raise DataError(f"data.corpus: nothing matches {pattern}")
        for match in matches:
            if not match.name.endswith(_SUFFIXES):
                raise DataError(f"{match}: not a corpus file; known endings: {', '.join(_SUFFIXES)}")
            if domain_field is not None and ".json" not in match.name:
                raise DataError(f"{match}: plain text has no field '{domain_field}'; set data.domain_field=null")
            domain = match.name.split(".")[0].split("_")[0]
            found[match.resolve()] = CorpusFile(path=match, domain=domain, domain_field=domain_field)
    return [found[path] for path in sorted(found)]


def read_documents(file: CorpusFile) -> Iterator[Document]:
    """Yield the non-empty documents of one file: `text` of each JSON line, or each line of a text file.

    Raises:
        DataError: a line is not valid JSON, or has no text or domain, by file and line.
    """
    is_json = ".json" in file.path.name
    for number, line in read_lines(file.path):
        if not line.strip():
            continue
        row: dict[str, object] = parse_json_line(line, file.path, number) if is_json else {"text": line}
        text = _string_of(row, "text", file.path, number)
        if text.strip():
            domain = file.domain if file.domain_field is None else _string_of(row, file.domain_field, file.path, number)
            yield Document(text=text.strip(), domain=domain)


def domains_of(files: list[CorpusFile]) -> list[str]:
    """Return the sorted names of the documents' domains; files whose lines say theirs are read for it."""
    named = {file.domain for file in files if file.domain_field is None}
    said = {document.domain for file in files if file.domain_field is not None for document in read_documents(file)}
    return sorted(named | said)


def read_lines(path: Path) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end); a BOM, CRLF and gzip are taken care of.

    Raises:
        DataError: the file is missing, not UTF-8, or a damaged archive.
    """
    number = 0
    try:
        with gzip.open(path, "rb") if path.suffix == ".gz" else path.open("rb") as stream:
            for number, raw in enumerate(stream, start=1):
                line = raw.decode("utf-8-sig" if number == 1 else "utf-8")
                yield number, line.rstrip("\r\n")
    except (FileNotFoundError, IsADirectoryError, NotADirectoryError):
        raise DataError(f"{path}: no such file") from None
    except UnicodeDecodeError as error:
        raise DataError(f"{path}, line {number}: not UTF-8") from error
    except (gzip.BadGzipFile, EOFError, zlib.error) as error:
        raise DataError(f"{path}, after line {number}: a damaged gzip file") from error


def parse_json_line(line: str, path: Path, number: int) -> dict[str, object]:
    """Parse one JSON object.

    Raises:
        DataError: it is not one.
    """
    try:
        row = json.loads(line)
    except json.JSONDecodeError as error:
        what = f"not valid JSON ({error.msg.removesuffix(' at')}, column {error.colno})"
        raise DataError(f"{path}, line {number}: {what}; mend the line or take it out") from error
    if not isinstance(row, dict):
        found = type(row).__name__
        raise DataError(f"{path}, line {number}: expected a JSON object, found {found}; every line is one, in braces")
    return row


def text_digest(text: str) -> str:
    """Return a digest of a text that ignores white space, for held-out splits and for telling texts apart."""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


def is_held_out(text: str, share: float) -> bool:
    """Say whether a text belongs to the held-out share: a function of the text alone."""
    return int(text_digest(text)[:8], 16) < share * 0x1_0000_0000


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if path.is_file():
        return [path]
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    try:
        return [match for match in anchor.glob(str(path.relative_to(anchor))) if match.is_file()]
    except (ValueError, IndexError, NotImplementedError) as error:
        raise DataError(f"data.corpus: '{pattern}' is not a pattern of files ({error})") from error


def _string_of(row: dict[str, object], field: str, path: Path, number: int) -> str:
    text = row.get(field)
    if not isinstance(text, str):
        raise DataError(f"{path}, line {number}: has no {field} field of type string")
    try:
        text.encode()
    except UnicodeEncodeError as error:
        raise DataError(f"{path}, line {number}: its {field} has half a surrogate pair") from error
    return text
