"""A corpus as token ids on disk, memory-mapped through `datasets`: made once per (files, tokenizer), read by every rank."""

from __future__ import annotations

import shutil
from collections.abc import Iterator
from dataclasses import dataclass
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import DataError
from adapt.core.progress import progress
from adapt.core.spans import IntArray
from adapt.text.contract import TextTokenizer
from adapt.text.corpus import CorpusFile, domains_of, is_held_out, read_documents

_ENCODE_BATCH = 512


@dataclass(frozen=True, kw_only=True)
class TokenizedCorpus:
    """Documents as token ids (with <s> and </s>), their lengths and domains."""

    documents: Any  # a datasets.Dataset: its type has no stubs
    lengths_D: IntArray
    domains_D: IntArray

    def of_domain(self, domain: int) -> TokenizedCorpus:
        """Return the documents of one domain."""
        chosen = np.flatnonzero(self.domains_D == domain)
        return TokenizedCorpus(
            documents=self.documents.select(chosen), lengths_D=self.lengths_D[chosen], domains_D=self.domains_D[chosen]
        )

    def ids(self, document: int) -> IntArray:
        return np.asarray(self.documents[document]["ids"], np.int64)


def tokenize_corpus(
    files: list[CorpusFile], tokenizer: TextTokenizer, directory: Path, held_out_share: float, *, wants_training: bool = True
) -> tuple[Path, Path]:
    """Write the training and the held-out documents below `directory`, unless they are there; return both places.

    A document is held out by its text only. Domains are numbered in the order of their sorted names. Unless training documents
    are wanted, they are left out.

    Raises:
        DataError: no documents, or a malformed line.
    """
    places = directory / "train", directory / "held_out"
    wanted = [(place, place.name == "held_out") for place in (places if wants_training else places[1:])]
    if all((place / "dataset_info.json").is_file() for place, _ in wanted):
        return places
    shutil.rmtree(directory, ignore_errors=True)
    directory.mkdir(parents=True)
    domains = domains_of(files)
    _datasets().disable_progress_bars()
    for place, wants_held_out in wanted:
        what = "tokenizing held-out text" if wants_held_out else "tokenizing"
        rows = _tokenized(files, tokenizer, domains, held_out_share, wants_held_out)
        made = _from_rows(progress(rows, what, unit="doc"), directory / "cache")
        scratch = place.with_name(f".{place.name}")
        made.save_to_disk(str(scratch))
        scratch.rename(place)
    shutil.rmtree(directory / "cache", ignore_errors=True)
    return places


def open_tokenized(place: Path) -> TokenizedCorpus:
    """Open what `tokenize_corpus` wrote; the ids stay on disk until they are read."""
    datasets = _datasets()
    if not any(place.glob("*.arrow")):  # an empty one has no file of rows, which `datasets` cannot open
        documents = datasets.Dataset.from_dict({"ids": [], "domain": []}, features=_features())
        return TokenizedCorpus(documents=documents, lengths_D=np.zeros(0, np.int64), domains_D=np.zeros(0, np.int64))
    documents = datasets.load_from_disk(str(place))
    table = documents.data
    ids = table.column("ids").combine_chunks()
    offsets = np.concatenate([[0], np.cumsum(ids.value_lengths().to_numpy(zero_copy_only=False))])
    domains = table.column("domain").to_numpy().astype(np.int64)
    return TokenizedCorpus(documents=documents, lengths_D=np.diff(offsets).astype(np.int64), domains_D=domains)


def _datasets() -> Any:
    """Return the library, which imports pandas: what composes a configuration or reads rows does without it."""
    import datasets

    return datasets


def _features() -> Any:
    datasets = _datasets()
    return datasets.Features({"ids": datasets.List(datasets.Value("int32")), "domain": datasets.Value("int32")})


def _from_rows(rows: Iterator[dict[str, Any]], cache: Path) -> Any:
    datasets, features = _datasets(), _features()
    writer = datasets.arrow_writer.ArrowWriter(path=_prepared(cache), features=features)
    for row in rows:
        writer.write(row)
    n_rows, _ = writer.finalize()
    rows_file = cache / "rows.arrow"
    if n_rows:
        made, fingerprint = datasets.Dataset.from_file(str(rows_file)), sha256_of_file(rows_file)[:16]
    else:
        made, fingerprint = datasets.Dataset.from_dict({"ids": [], "domain": []}, features=features), "empty"
    # Left to itself, `datasets` saves a fingerprint made of the time: the same corpus would be another artifact at every run.
    return datasets.Dataset(arrow_table=made.data, info=made.info, fingerprint=fingerprint)


def _prepared(cache: Path) -> str:
    cache.mkdir(exist_ok=True)
    return str(cache / "rows.arrow")


def _tokenized(
    files: list[CorpusFile], tokenizer: TextTokenizer, domains: list[str], share: float, wants_held_out: bool
) -> Iterator[dict[str, Any]]:
    found_any = False
    for file in files:
        documents = (d for d in read_documents(file) if is_held_out(d.text, share) == wants_held_out)
        while batch := list(islice(documents, _ENCODE_BATCH)):
            found_any = True
            for document, ids in zip(batch, tokenizer.encode_documents([d.text for d in batch]), strict=True):
                yield {
                    "ids": [tokenizer.bos_id, *ids, tokenizer.eos_id],
                    "domain": domains.index(document.domain),
                }
    if not found_any and not wants_held_out:
        raise DataError(f"{files[0].path} and {len(files) - 1} more: no text in the corpus")
