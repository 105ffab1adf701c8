"""Shards of a cleaned corpus: packed JSON lines with a manifest that says what each holds; `data.corpus` takes their directory."""

from __future__ import annotations

import gzip
import json
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

from adapt.core.errors import CheckpointError, DataError, is_file_name
from adapt.core.json_files import read_object

SHARDS = "shards.json"


@dataclass(frozen=True, kw_only=True)
class Shard:
    """A file of rows of one domain, and what is in it; sizes are in characters, and in bytes of UTF-8 text."""

    file: str
    domain: str
    documents: int
    characters: int
    bytes: int


class ShardWriter:
    """Writes the kept rows of one input file, a shard a domain, another one after `most_bytes` of text.

    Names are `<domain>_<input file's number>_<shard's number>.jsonl.gz`: other readers of `data.corpus` find the domain in them.
    Bytes depend on the rows only.
    """

    def __init__(self, directory: Path, number: int, most_bytes: int) -> None:
        self._directory, self._number, self._most_bytes = directory, number, most_bytes
        self._open: dict[str, tuple[gzip.GzipFile, IO[bytes], dict[str, int]]] = {}
        self._counts: dict[str, int] = {}
        self.shards: list[Shard] = []

    def write(self, row: Mapping[str, Any]) -> None:
        domain = str(row["domain"])
        if domain not in self._open:
            place = self._directory / self._name(domain)
            raw = place.open("wb")
            self._open[domain] = gzip.GzipFile(filename="", fileobj=raw, mode="wb", compresslevel=6, mtime=0), raw, {}
        packed, _, sizes = self._open[domain]
        packed.write(json.dumps(dict(row), ensure_ascii=False, separators=(",", ":")).encode() + b"\n")
        for name, more in (("documents", 1), ("characters", len(row["text"])), ("bytes", len(row["text"].encode()))):
            sizes[name] = sizes.get(name, 0) + more
        if sizes["bytes"] >= self._most_bytes:
            self._end(domain)

    def close(self) -> None:
        for domain in sorted(self._open):
            self._end(domain)

    def _end(self, domain: str) -> None:
        packed, raw, sizes = self._open.pop(domain)
        packed.close()
        raw.close()
        self.shards.append(Shard(file=self._name(domain), domain=domain, **sizes))
        self._counts[domain] = self._counts.get(domain, 0) + 1

    def _name(self, domain: str) -> str:
        plain = re.sub(r"[^\w-]|_", "-", domain)[:60] or "text"
        return f"{plain}_{self._number:05d}_{self._counts.get(domain, 0):03d}.jsonl.gz"


def is_shards(path: Path) -> bool:
    """Say whether a directory holds shards."""
    return (path / SHARDS).is_file()


def shards_of(path: Path) -> list[Shard]:
    """Return the shards of a directory in their order.

    Raises:
        DataError: its manifest is damaged, or a file is missing.
    """
    again = "run `python -m pipelines.corpus` again"
    try:
        found = [Shard(**one) for one in read_object(path / SHARDS)["shards"]]
    except (CheckpointError, KeyError, TypeError) as error:
        raise DataError(f"{path / SHARDS}: lists no shards; {again}") from error
    for shard in found:
        if not is_file_name(shard.file) or not (path / shard.file).is_file():
            raise DataError(f"{path}: shard {shard.file} is missing; {again}")
    return found
