"""Corpus readers: files of rows and txt files to documents, with errors named by file and line.

Rows (JSON lines, csv, a saved data set and the other kinds of `adapt/text/rows`) have a field `text`; a txt file has a document a
line, a WARC file a document for each record of plain text.
A document's domain is a small integer: its place in the sorted list of domain names. A domain is the file name up to its first
underscore or dot (`formal_licensed.jsonl.gz` -> `formal`), or what a field of the document's row says, so that losses, routers and
the mix of pretraining can tell domains apart.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.errors import DataError
from adapt.text.rows.contract import Kind, Quotes, RowsFile
from adapt.text.rows.directories import is_rows, is_rows_directory
from adapt.text.rows.encodings import lines_of
from adapt.text.rows.reading import ENDINGS, endings_of, open_rows, rows_of
from adapt.text.shards import is_shards, shards_of
from adapt.text.warc import WARC_ENDINGS, is_warc, texts_of_warc

_BATCH_CHARACTERS, _BATCH_DOCUMENTS = 1 << 19, 4096
_PLAIN_ENDINGS = (".txt", ".txt.gz", ".txt.zst")


@dataclass(frozen=True, kw_only=True)
class CorpusFile:
    """A corpus file and the domain of its documents, or the field of their rows that says it; its encoding if not recognised."""

    path: Path
    domain: str
    domain_field: str | None = None
    encoding: str | None = None
    quotes: Quotes | None = None


@dataclass(frozen=True, kw_only=True)
class Document:
    """One text of a corpus."""

    text: str
    domain: str


def find_corpus(
    patterns: list[str], domain_field: str | None = None, encoding: str | None = None, quotes: Quotes | None = None
) -> list[CorpusFile]:
    """Expand file names, globs and directories of shards, sorted, each file once; `domain_field` is the rows' field of domains.

    Raises:
        DataError: a pattern matches nothing, or a file is of an unknown kind.
    """
    found: dict[Path, CorpusFile] = {}
    if not patterns:
        raise DataError("data.corpus: no corpus file given; set data.corpus=[FILE or GLOB, ...]")
    for pattern in patterns:
        if is_shards(Path(pattern)) and domain_field is None:
            for shard in shards_of(Path(pattern)):
                place = Path(pattern) / shard.file
                found[place.resolve()] = CorpusFile(path=place, domain=shard.domain, encoding="utf-8")
            continue
        matches = sorted(_expand(pattern))
        if not matches:
            raise DataError(f"data.corpus: nothing matches {pattern}")
        for match in matches:
            has_no_fields = is_plain(match) or is_warc(match)
            if not has_no_fields and not endings_of(match.name) and not match.is_dir():
                raise DataError(
                    f"{match}: not a corpus file; known endings: {', '.join((*ENDINGS, *_PLAIN_ENDINGS, *WARC_ENDINGS))}"
                )
            if domain_field is not None and has_no_fields:
                raise DataError(f"{match}: plain text has no field '{domain_field}'; set data.domain_field=null")
            domain = match.name.split(".")[0].split("_")[0]
            found[match.resolve()] = CorpusFile(
                path=match, domain=domain, domain_field=domain_field, encoding=encoding, quotes=quotes
            )
    return [found[path] for path in sorted(found)]


def read_documents(file: CorpusFile) -> Iterator[Document]:
    """Yield the non-empty documents of one file: `text` of each row, or each line of a text file.

    Raises:
        DataError: a row is malformed, or has no text or domain, by file and line.
    """
    if is_plain(file.path):
        for _, line in read_lines(file.path, file.encoding):
            if text := line.strip():
                yield Document(text=text, domain=file.domain)
        return
    if is_warc(file.path):
        for text in texts_of_warc(file.path):
            yield Document(text=text, domain=file.domain)
        return
    for row in rows_of(open_rows(file.path, encoding=file.encoding, quotes=file.quotes)):
        where = f"{file.path}, {row.place}"
        text = _string_of(row.record, "text", where)
        if text.strip():
            domain = file.domain if file.domain_field is None else _string_of(row.record, file.domain_field, where)
            yield Document(text=text.strip(), domain=domain)


def document_batches(documents: Iterable[Document]) -> Iterator[list[Document]]:
    """Yield documents in lists of a bounded number of characters; a longer document comes by itself."""
    batch: list[Document] = []
    size = 0
    for document in documents:
        if batch and (size + len(document.text) > _BATCH_CHARACTERS or len(batch) == _BATCH_DOCUMENTS):
            yield batch
            batch, size = [], 0
        batch.append(document)
        size += len(document.text)
    if batch:
        yield batch


def domains_of(files: list[CorpusFile]) -> list[str]:
    """Return the sorted names of the documents' domains; files whose rows say theirs are read for it."""
    named = {file.domain for file in files if file.domain_field is None}
    said = {document.domain for file in files if file.domain_field is not None for document in read_documents(file)}
    return sorted(named | said)


def read_lines(path: Path, encoding: str | None = None) -> Iterator[tuple[int, str]]:
    """Yield (line number from 1, line without its end) of a text file; a BOM, line ends and packing are taken care of.

    Raises:
        DataError: the file is missing, not text, has a NUL character, or is a damaged archive.
    """
    ending = path.suffix.lower()
    file = RowsFile(
        path=path, name=str(path), kind=Kind.PLAIN, is_gzipped=ending == ".gz", is_zstd=ending == ".zst", encoding=encoding
    )
    for number, line in lines_of(file):
        if "\x00" in line:
            raise DataError(f"{path}, line {number}: has a NUL character, which is no text; take it out")
        yield number, line


def text_digest(text: str) -> str:
    """Return a digest of a text that ignores white space, for held-out splits and for telling texts apart."""
    return hashlib.sha256("".join(text.split()).encode()).hexdigest()[:16]


def is_held_out(text: str, share: float) -> bool:
    """Say whether a text belongs to the held-out share: a function of the text only."""
    return int(text_digest(text)[:8], 16) < share * 0x1_0000_0000


def _expand(pattern: str) -> list[Path]:
    path = Path(pattern)
    if is_shards(path):
        return [path / shard.file for shard in shards_of(path)]
    if is_rows(path):
        return [path]
    anchor = Path(path.anchor) if path.is_absolute() else Path()
    try:
        found = anchor.glob(str(path.relative_to(anchor)))
        return [match for match in found if match.is_file() or ("**" not in pattern and is_rows_directory(match))]
    except (ValueError, IndexError, NotImplementedError) as error:
        raise DataError(f"data.corpus: '{pattern}' is not a pattern of files ({error})") from error


def is_plain(path: Path) -> bool:
    """Say whether a file is plain text with a text a line, by its name."""
    return path.name.lower().endswith(_PLAIN_ENDINGS) and not path.is_dir()


def _string_of(row: Mapping[str, Any], field: str, where: str) -> str:
    text = row.get(field)
    if not isinstance(text, str):
        raise DataError(f"{where}: has no {field} field of type string")
    return text
