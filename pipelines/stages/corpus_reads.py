"""The corpus as stages read it: its files, how they are decoded, and where a text's domain comes from."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.text.corpus import CorpusFile, find_corpus
from adapt.text.rows.contract import Quotes
from adapt.text.rows.directories import files_of
from pipelines.config.schema import DataConfig
from pipelines.stages.contract import Files, Reads, unkeyed


@dataclass(frozen=True, kw_only=True)
class CorpusReads(Reads):
    """Corpus files, counted by their place among them and their name: two files of one name both count.

    Directories are left out, so that a corpus can be moved as a whole.
    """

    files: Files
    encoding: str | None
    quotes: Quotes | None
    domain_field: str | None
    corpus_files: list[CorpusFile] = unkeyed("files, encoding, quotes and domain_field say the same")

    @classmethod
    def of(cls, data: DataConfig, *, with_domains: bool = True) -> CorpusReads:
        """Find the files of `data.corpus`. Raises ConfigError or DataError where there are none."""
        domain_field = data.domain_field if with_domains else None
        found = find_corpus(data.corpus, domain_field, data.encoding, data.quotes)
        files = {
            f"{place} {file.path.name}{part}": path
            for place, file in enumerate(found)
            for part, path in files_of(file.path).items()
        }
        return cls(files=Files(files), encoding=data.encoding, quotes=data.quotes, domain_field=domain_field, corpus_files=found)
