"""Documents of a corpus that are near to a task's unlabeled rows, chosen by importance resampling over hashed n-grams.

Rows and corpus flow in, so many documents flow out. Of every document the n-grams of one and two units are counted in hashed
buckets; a unit is a Chinese character or a word of letters and digits, in any width and case. Each bucket has a log ratio of its
share in the rows to its share in the corpus; a document's log weight is the mean log ratio of its n-grams, times their number up
to that of a row of median length: the weight of a stretch of it that is no longer than a row. The documents
with the largest log weight plus Gumbel noise are a sample without replacement in proportion to the weights.

Source: Xie et al. 2023, Data Selection for Language Models via Importance Resampling, arXiv 2302.03169 (buckets, ratio, Gumbel
top-k). Two things differ: shares of the rows are smoothed towards the corpus's (Zhai and Lafferty 2004, eq. 6), since a few hundred
rows leave most buckets empty; and weights are cut at the length of a row. Sums over whole documents rank by length, and means rank
the shortest first: a few n-grams are easily all typical.

Each file is read twice, once for its counts and once for its weights. What is kept in memory is counts, the documents chosen so
far, and a batch. After each file both are saved, so a kill costs the file in hand.

Legend: N characters, U units, G n-grams, D documents, B buckets.
"""

from __future__ import annotations

import enum
import functools
import heapq
import json
from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.core.artifacts import write_atomically
from adapt.core.errors import DataError
from adapt.core.progress import progress
from adapt.core.runtime import generator_for
from adapt.core.settings import Settings, setting
from adapt.text.cleaning.characters import Batch, Sign, folds, signs
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.corpus import CorpusFile, Document, document_batches, is_held_out, read_documents

Floats = NDArray[np.float64]
_BUCKET_BITS = 16
_PRIOR = 2000.0  # n-grams of the corpus that count beside those of the rows
_LEAST_LENGTH = 0.25  # of a row of median length, in n-grams: a shorter document is left out
_ENDS = "\n。！？!?"
_MULTIPLIER = np.uint64(0x9E37_79B9_7F4A_7C15)
_PLACE = np.uint64(0xC2B2_AE3D_27D4_EB4F)
_WORD_SIGNS = (Sign.LATIN, Sign.ACCENTED, Sign.DIGIT, Sign.OTHER)


class Choice(enum.Enum):
    """Which documents are chosen: those near to the task's unlabeled rows, or any."""

    NEAR = "near"
    RANDOM = "random"


class When(enum.Enum):
    """When chosen documents are read: before the task's rows, or beside them."""

    BEFORE = "before"
    BESIDE = "beside"


@dataclass(frozen=True, kw_only=True)
class CurriculumConfig(Settings):
    """General text that an adaptation reads besides the task's rows, chosen by what those rows look like."""

    documents: int = setting(
        0, "Documents of data.corpus that an adaptation reads besides the task's rows.", least=0, hint="0 reads none"
    )
    choice: Choice = setting(
        Choice.NEAR, "Which documents are chosen: those near to the task's unlabeled rows (near), or any (random)."
    )
    when: When = setting(When.BEFORE, "When they are read: before the task's rows, or beside them in every step.")
    steps: int | None = setting(
        None,
        "Optimizer steps of text; beside a task's rows, as many rows as so many steps have.",
        least=1,
        unit="steps",
        hint="null reads each document once",
    )
    max_characters: int = setting(
        1000, "Longest document; a longer one counts as several, cut where a sentence ends.", least=100, unit="characters"
    )


@dataclass(frozen=True, kw_only=True)
class NearDocument(Document):
    """A document that was chosen, and its mean log ratio an n-gram, in nats."""

    nearness: float


@dataclass(frozen=True, kw_only=True)
class Chosen:
    """What was chosen, in the corpus's order, and how it came about.

    `by_domain` has the number of chosen and of all documents; `kept_out` shared a passage with an evaluation text and were near
    enough to be chosen; `nearness` is the mean log ratio an n-gram of the chosen and of all documents, in nats.
    """

    documents: list[NearDocument]
    by_domain: dict[str, tuple[int, int]]
    kept_out: int
    nearness: tuple[float, float]


def choose_documents(
    files: Sequence[CorpusFile],
    targets: Sequence[str],
    config: CurriculumConfig,
    seed: int,
    held_out_share: float,
    evaluation: EvaluationIndex | None,
    work: Path,
) -> Chosen:
    """Choose `config.documents` of a corpus for the texts of rows; a call with the same `work` goes on where one was killed.

    Documents that are held out, or share a passage with `evaluation`, are not chosen.

    Raises:
        DataError: a file cannot be read, or no document is long enough.
    """
    ratios_B, length = _measures(files, targets, config, held_out_share, work)
    best = _Best.resumed(work / "best.json", config.documents)
    for number in range(best.n_files, len(files)):
        random = generator_for("near documents", seed, number)
        for batch in _batches(files[number], config, held_out_share, "choosing from"):
            _offer(batch, ratios_B, length, config.choice, random, evaluation, best)
        best.n_files = number + 1
        best.save(work / "best.json")
    if not best.heap:
        raise DataError(
            f"{files[0].path} and {len(files) - 1} more: no document is as long as a quarter of the task's rows; "
            "set continue_pretrain.curriculum.documents=0"
        )
    found = sorted(best.heap, key=lambda one: one[1])
    chosen = dict.fromkeys(best.seen, 0)
    for one in found:
        chosen[one[3]] += 1
    return Chosen(
        documents=[NearDocument(text=text, domain=domain, nearness=nearness) for _, _, text, domain, nearness in found],
        by_domain={domain: (chosen[domain], n) for domain, n in sorted(best.seen.items())},
        kept_out=best.kept_out,
        nearness=(float(np.mean([one[4] for one in found])), best.sum_of_ratios / max(sum(best.seen.values()), 1)),
    )


def ngrams_of(batch: Batch) -> tuple[NDArray[np.int64], NDArray[np.int64]]:
    """Return the bucket of each n-gram of a batch, and of which text it is [G]: units, and pairs of neighbours."""
    plain_N = folds()[batch.codes_N]
    at_U = np.flatnonzero(plain_N)
    if not len(at_U):
        return np.zeros(0, np.int64), np.zeros(0, np.int64)
    codes, owners = plain_N[at_U].astype(np.uint64), batch.documents_N[at_U]
    is_word = _is_of_word()[plain_N[at_U]]
    goes_on = is_word[1:] & is_word[:-1] & (at_U[1:] == at_U[:-1] + 1) & (owners[1:] == owners[:-1])
    begins = np.flatnonzero(np.concatenate([[True], ~goes_on]))
    inside = np.arange(len(codes)) - np.repeat(begins, np.diff(np.append(begins, len(codes))))
    units_U = np.add.reduceat(_mixed(codes + inside.astype(np.uint64) * _PLACE), begins)
    owners = owners[begins]
    pairs = np.flatnonzero(owners[1:] == owners[:-1])
    hashes = np.concatenate([_mixed(units_U), _mixed(units_U[pairs] * _MULTIPLIER + units_U[pairs + 1])])
    return (hashes >> np.uint64(64 - _BUCKET_BITS)).astype(np.int64), np.concatenate([owners, owners[pairs]])


def log_ratios(rows_B: Floats, corpus_B: Floats) -> Floats:
    """Return each bucket's log ratio of its smoothed share in rows to its share in a corpus, in nats, from counts."""
    shares_B = (corpus_B + 0.5) / (corpus_B.sum() + 0.5 * len(corpus_B))
    smoothed_B = (rows_B + _PRIOR * shares_B) / (rows_B.sum() + _PRIOR)
    return np.asarray(np.log(smoothed_B / shares_B))


@dataclass
class _Best:
    """The documents with the largest keys so far: (key, number in the corpus, text, domain, mean log ratio), a heap."""

    most: int
    heap: list[tuple[float, int, str, str, float]] = field(default_factory=list)
    seen: dict[str, int] = field(default_factory=dict)
    sum_of_ratios: float = 0.0
    kept_out: int = 0
    n_files: int = 0

    @classmethod
    def resumed(cls, place: Path, most: int) -> _Best:
        if not place.is_file():
            return cls(most)
        held = json.loads(place.read_text(encoding="utf-8"))
        held["heap"] = [tuple(one) for one in held["heap"]]
        return cls(most=most, **held)

    def save(self, place: Path) -> None:
        held: dict[str, Any] = {name: value for name, value in vars(self).items() if name != "most"}
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps(held, ensure_ascii=False))

    @property
    def bound(self) -> float:
        return self.heap[0][0] if len(self.heap) >= self.most else -np.inf

    def add(self, entry: tuple[float, int, str, str, float]) -> None:
        heapq.heappush(self.heap, entry) if len(self.heap) < self.most else heapq.heappushpop(self.heap, entry)


def _offer(
    documents: list[Document], ratios_B: Floats, length: float, choice: Choice, random: np.random.Generator,
    evaluation: EvaluationIndex | None, best: _Best,
) -> None:  # fmt: skip
    """Weigh a batch and keep what is among the best."""
    batch = Batch.of([document.text for document in documents])
    buckets_G, owners_G = ngrams_of(batch)
    counts_D = np.bincount(owners_G, minlength=len(documents))
    means_D = np.bincount(owners_G, ratios_B[buckets_G], len(documents)) / np.maximum(counts_D, 1)
    noise_D = random.gumbel(size=len(documents))
    keys_D = noise_D if choice is Choice.RANDOM else means_D * np.minimum(counts_D, length) + noise_D
    is_long = counts_D >= _LEAST_LENGTH * length
    first = sum(best.seen.values())
    best.sum_of_ratios += float(means_D[is_long].sum())
    near = np.flatnonzero(is_long & (keys_D > best.bound))
    shared = evaluation.overlaps(Batch.of([documents[i].text for i in near])) if evaluation is not None and len(near) else {}
    numbers_D = first + np.cumsum(is_long) - 1
    for place, i in enumerate(near.tolist()):
        if keys_D[i] <= best.bound:
            continue
        if place in shared:
            best.kept_out += 1
            continue
        one = documents[i]
        best.add((float(keys_D[i]), int(numbers_D[i]), one.text, one.domain, float(means_D[i])))
    for i in np.flatnonzero(is_long).tolist():
        domain = documents[i].domain
        best.seen[domain] = best.seen.get(domain, 0) + 1


def _measures(
    files: Sequence[CorpusFile], targets: Sequence[str], config: CurriculumConfig, held_out_share: float, work: Path
) -> tuple[Floats, float]:
    """Return the log ratio of each bucket, and the n-grams of a row of median length; counts of finished files are kept."""
    rows_B = np.zeros(1 << _BUCKET_BITS)
    lengths: list[NDArray[np.int64]] = []
    for start in range(0, len(targets), 4096):
        batch = Batch.of(targets[start : start + 4096])
        buckets_G, owners_G = ngrams_of(batch)
        rows_B += np.bincount(buckets_G, minlength=len(rows_B))
        lengths.append(np.bincount(owners_G, minlength=len(batch.texts)))
    length = float(np.median(np.concatenate(lengths)))
    corpus_B, done = np.zeros(len(rows_B)), 0
    place = work / "counts.json"
    if place.is_file():
        held = json.loads(place.read_text(encoding="utf-8"))
        corpus_B, done = np.asarray(held["counts"], np.float64), int(held["n_files"])
    for number in range(done, len(files)):
        for documents in _batches(files[number], config, held_out_share, "counting"):
            corpus_B += np.bincount(ngrams_of(Batch.of([one.text for one in documents]))[0], minlength=len(corpus_B))
        place.parent.mkdir(parents=True, exist_ok=True)
        write_atomically(place, json.dumps({"counts": corpus_B.astype(np.int64).tolist(), "n_files": number + 1}))
    return log_ratios(rows_B, corpus_B), length


def _batches(file: CorpusFile, config: CurriculumConfig, held_out_share: float, what: str) -> Iterator[list[Document]]:
    documents = progress(read_documents(file), f"{what} {file.path.name}", unit="doc")
    kept = (one for one in documents if not held_out_share or not is_held_out(one.text, held_out_share))
    return document_batches(piece for one in kept for piece in pieces_of(one, config.max_characters))


def pieces_of(document: Document, most: int) -> Iterator[Document]:
    """Yield a document in pieces of at most so many characters, cut behind the end of a sentence in a piece's second half."""
    text, start = document.text, 0
    while len(text) - start > most:
        end = max(text.rfind(mark, start + most // 2, start + most) for mark in _ENDS) + 1 or start + most
        if piece := text[start:end].strip():
            yield Document(text=piece, domain=document.domain)
        start = end
    if piece := text[start:].strip():
        yield Document(text=piece, domain=document.domain)


def _mixed(values: NDArray[np.uint64]) -> NDArray[np.uint64]:
    """Return well-mixed bits of 64-bit numbers (the finalizer of MurmurHash3, Appleby 2011)."""
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xFF51_AFD7_ED55_8CCD)
    values = (values ^ (values >> np.uint64(33))) * np.uint64(0xC4CE_B9FE_1A85_EC53)
    return values ^ (values >> np.uint64(33))


@functools.cache
def _is_of_word() -> NDArray[np.bool_]:
    """Return which code points go together with their neighbours to a word."""
    return np.isin(signs(), [int(sign) for sign in _WORD_SIGNS])
