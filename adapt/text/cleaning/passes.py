"""Cleaning a corpus with datatrove: passes over its files, each file a task, so that a kill costs the files in hand only.

    clean     each input file: filters of one document, masking      -> work/clean/NNNNN.jsonl, exact signatures
    exact     all signatures merged                                  -> which documents are repeats
    sign      each file without exact repeats                        -> work/unique/NNNNN.jsonl, MinHash signatures
    buckets   each bucket of signatures merged                       -> pairs
    cluster   all pairs                                              -> which documents are repeats
    weigh     each file without repeats, where a base is asked       -> work/weighed/NNNNN.jsonl, histograms of losses
    shards    each file without near repeats and what the base drops -> *.jsonl.gz

Signatures, merging, clusters and the executor, which records finished tasks, are datatrove's (Penedo et al. 2024). Its MinHash
counts words, for which Chinese needs a segmenter; here it is given n-grams of characters (`_Signatures`), hashed over an array.
What a task writes depends on its input and the settings only; so shards are the same bits however often the command was killed.
"""

from __future__ import annotations

import contextlib
import itertools
import json
import logging
import os
import tempfile
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

import datatrove.pipeline.dedup.minhash as library_minhash
from datatrove.data import Document as Piece
from datatrove.pipeline.base import PipelineStep
from datatrove.pipeline.dedup.exact_dedup import ExactDedupConfig, ExactDedupFilter, ExactDedupSignature, ExactFindDedups
from datatrove.utils.hashing import HashConfig
from datatrove.utils.word_tokenizers import WordTokenizer

from adapt.core.errors import DataError
from adapt.core.progress import progress
from adapt.text.cleaning.characters import folded, shingles
from adapt.text.cleaning.config import CorpusConfig, DuplicatesConfig, Executor
from adapt.text.cleaning.dropped import Dropped, write_whole
from adapt.text.cleaning.executors import LocalExecutor, SlurmExecutor
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.cleaning.perplexity import Bounds, Losses, bounds_of, cells_in, counted
from adapt.text.cleaning.sieve import Sieve, Tally
from adapt.text.corpus import CorpusFile, document_batches, read_documents
from adapt.text.shards import Shard, ShardWriter

logger = logging.getLogger(__name__)
_WEIGHED_TOGETHER = 512
EXACT, NEAR = "exact repeat", "near repeat"
_HASH = HashConfig(precision=64, hash_fc="sha1")  # of a whole document; the library's other hash wants xxhash before 4


@dataclass(frozen=True)
class Cleaned:
    """What came out: shards in their order, and what the filters did."""

    shards: list[Shard]
    tally: Tally


class Passes:
    """Runs passes in turn; a finished task of one is not run again. A block of it joins a Ray cluster, where one is asked for."""

    def __init__(self, work: Path, config: CorpusConfig) -> None:
        self._work, self._config, self._held = work, config, contextlib.ExitStack()

    def __enter__(self) -> Passes:
        if self._config.executor is Executor.RAY:
            from adapt.text.cleaning.ray_executor import cluster  # an extra

            self._held.enter_context(cluster(self._config.ray))
        return self

    def __exit__(self, *_: object) -> None:
        self._held.close()

    def run(self, name: str, n_tasks: int, steps: list[PipelineStep]) -> None:
        """Run a pass to its end.

        Raises:
            DataError: a task was refused, or a job of the cluster ended without finishing its tasks.
        """
        logger.info("corpus: pass %s, %d task%s", name, n_tasks, "s" if n_tasks > 1 else "")
        started, spent = time.monotonic(), time.process_time()
        self._run_on(steps, n_tasks, min(self._config.workers, n_tasks), self._work / "passes" / name)
        seconds, own = time.monotonic() - started, time.process_time() - spent
        logger.info("corpus: pass %s took %.1f s (%.1f s of this process's CPU)", name, seconds, own)

    def _run_on(self, steps: list[PipelineStep], n_tasks: int, workers: int, place: Path) -> None:
        if self._config.executor is Executor.SLURM:
            SlurmExecutor(steps, n_tasks, workers, place, self._config.slurm).finish()
        elif self._config.executor is Executor.RAY:
            from adapt.text.cleaning.ray_executor import RayExecutor  # an extra

            RayExecutor(steps, n_tasks, workers, place, self._config.ray).run()
        else:
            LocalExecutor(steps, tasks=n_tasks, workers=workers, logging_dir=str(place)).run()


def clean_corpus(
    files: Sequence[CorpusFile],
    index: Path | None,
    config: CorpusConfig,
    result: Path,
    work: Path,
    losses: Losses | None = None,
) -> Cleaned:
    """Clean files to shards below `result`; `work` keeps finished tasks, `index` is a saved `EvaluationIndex`.

    `losses` are those of a base, for `config.perplexity`; each process is given its own copy.

    Raises:
        DataError: a file cannot be read, or nothing is left.
    """
    files, work = [replace(file, path=file.path.absolute()) for file in files], work.absolute()
    with Passes(work, config) as passes:
        _run(passes, files, None if index is None else index.absolute(), config, work, losses)
    tally = Tally()
    for name in ("clean", "exact_dropped", "near_dropped", "perplexity_dropped"):
        for place in sorted((work / name).glob("*.tally.json")):
            tally.add(Tally(**json.loads(place.read_text(encoding="utf-8"))), config.samples)
    shards = [Shard(**one) for place in sorted((work / "shards").glob("*.json")) for one in json.loads(place.read_text())]
    if not shards:
        raise DataError(f"{files[0].path} and {len(files) - 1} more: the filters drop every document ({_said(tally)})")
    for shard in shards:
        os.link(work / "output" / shard.file, result / shard.file)  # a kill leaves those of `work` where they are
    return Cleaned(shards, tally)


def _run(
    passes: Passes, files: Sequence[CorpusFile], index: Path | None, config: CorpusConfig, work: Path, losses: Losses | None
) -> None:
    n_files, repeats = len(files), config.duplicates
    exact = ExactDedupConfig(content_getter=_content, document_priority=_priority, hash_config=_HASH)
    clean, unique = work / "clean", work / "unique"
    signing: list[PipelineStep] = [ExactDedupSignature(str(work / "exact_signatures"), exact)] if repeats.exact else []
    passes.run("clean", n_files, [_Clean(files, index, config, clean), *signing])
    reading: list[PipelineStep] = [_Read(clean)]
    if repeats.exact:
        passes.run("exact", 1, [ExactFindDedups(str(work / "exact_signatures"), str(work / "exact"), exact)])
        dropped = Dropped(EXACT, work / "exact_dropped", config.samples)
        reading = [*reading, _Empty(work / "exact"), ExactDedupFilter(str(work / "exact"), exact, dropped)]
    if repeats.near:
        minhash = _minhash_config(repeats)
        signatures, pairs, removed = (str(work / name) for name in ("signatures", "pairs", "near"))
        passes.run("sign", n_files, [*reading, _Keep(unique), _Signatures(signatures, minhash)])
        passes.run("buckets", repeats.buckets, [library_minhash.MinhashDedupBuckets(signatures, pairs, config=minhash)])
        passes.run("cluster", 1, [library_minhash.MinhashDedupCluster(pairs, removed, config=minhash)])
        dropped = Dropped(NEAR, work / "near_dropped", config.samples)
        reading = [_Read(unique), library_minhash.MinhashDedupFilter(removed, dropped)]
    if losses is not None:
        weighed = work / "weighed"
        passes.run("weigh", n_files, [*reading, _Weigh(losses, weighed)])
        bounds = bounds_of(cells_in(weighed), config.perplexity)
        reading = [_Read(weighed), _Within(bounds, Dropped("", work / "perplexity_dropped", config.samples))]
    shards_step = _Shards(work / "output", work / "shards", config.shard_mb * 1_000_000)
    passes.run("shards", n_files, [*reading, shards_step])


def _said(tally: Tally) -> str:
    return ", ".join(f"{reason} {count}" for reason, count in sorted(tally.dropped.items(), key=lambda item: -item[1]))


def _content(piece: Piece) -> str:
    return folded(piece.text) or piece.text


def _priority(piece: Piece) -> int:
    """Return 1 to 65535: of equal documents that of the first file is kept."""
    return max(65535 - int(piece.id), 1)


def _minhash_config(repeats: DuplicatesConfig) -> Any:
    return library_minhash.MinhashConfig(
        n_grams=repeats.ngram, num_buckets=repeats.buckets, hashes_per_bucket=repeats.rows, hash_config=_HASH
    )


class _Clean(PipelineStep):
    """Reads one input file, sifts it, and writes what is kept."""

    name, type = "clean", "FILTER"

    def __init__(self, files: Sequence[CorpusFile], index: Path | None, config: CorpusConfig, place: Path) -> None:
        super().__init__()
        self.files, self.index, self.config, self.place = list(files), index, config, place

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
        index = EvaluationIndex.open(self.index) if self.index is not None else None
        tally = Tally()
        sieve = Sieve(self.config, index, tally)
        self.place.mkdir(parents=True, exist_ok=True)
        scratch = self.place / f".{rank:05d}.jsonl"
        file = self.files[rank]
        documents = progress(read_documents(file), f"cleaning {file.path.name}", unit="doc")
        with scratch.open("w", encoding="utf-8") as stream:
            for batch in document_batches(documents):
                rows = sieve.sift(batch)
                stream.writelines(json.dumps(row, ensure_ascii=False) + "\n" for row in rows)
                yield from (_piece(row, rank) for row in rows)
        write_whole(self.place / f"{rank:05d}.tally.json", asdict(tally))
        scratch.replace(self.place / f"{rank:05d}.jsonl")


def _piece(row: dict[str, Any], file: int) -> Piece:
    return Piece(text=row["text"], id=str(file), metadata={name: value for name, value in row.items() if name != "text"})


def _row(piece: Piece) -> dict[str, Any]:
    return {"text": piece.text, **{name: piece.metadata[name] for name in ("domain", "original") if name in piece.metadata}}


class _Read(PipelineStep):
    """Reads what an earlier pass kept of one input file."""

    name, type = "read", "READER"

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
        with (self.place / f"{rank:05d}.jsonl").open(encoding="utf-8") as stream:
            for line in stream:
                yield _piece(json.loads(line), rank)


class _Empty(PipelineStep):
    """Makes the folder that the library leaves out where nothing repeats."""

    name, type = "folder", "READER"

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def run(self, data: Any, rank: int = 0, world_size: int = 1) -> Any:
        self.place.mkdir(parents=True, exist_ok=True)
        return data


class _Keep(PipelineStep):
    """Writes documents, and hands them on."""

    name, type = "keep", "WRITER"

    def __init__(self, place: Path) -> None:
        super().__init__()
        self.place = place

    def run(self, data: Iterable[Piece], rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
        self.place.mkdir(parents=True, exist_ok=True)
        scratch = self.place / f".{rank:05d}.jsonl"
        with scratch.open("w", encoding="utf-8") as stream:
            for piece in data:
                stream.write(json.dumps(_row(piece), ensure_ascii=False) + "\n")
                yield piece
        scratch.replace(self.place / f"{rank:05d}.jsonl")


class _Weigh(PipelineStep):
    """Writes documents with their losses under a base, and how losses are spread by domain."""

    name, type = "weigh", "FILTER"

    def __init__(self, losses: Losses, place: Path) -> None:
        super().__init__()
        self.losses, self.place = losses, place

    def run(self, data: Iterable[Piece], rank: int = 0, world_size: int = 1) -> None:
        self.place.mkdir(parents=True, exist_ok=True)
        scratch, found = self.place / f".{rank:05d}.jsonl", dict[str, list[float]]()
        pieces = progress(data, "weighing documents", unit="doc")
        with scratch.open("w", encoding="utf-8") as stream:
            while batch := list(itertools.islice(pieces, _WEIGHED_TOGETHER)):
                for piece, nats in zip(batch, self.losses([piece.text for piece in batch]).tolist(), strict=True):
                    stream.write(json.dumps({**_row(piece), "nats": nats}, ensure_ascii=False) + "\n")
                    found.setdefault(piece.metadata["domain"], []).append(nats)
        write_whole(self.place / f"{rank:05d}.cells.json", counted(found))
        scratch.replace(self.place / f"{rank:05d}.jsonl")


class _Within(PipelineStep):
    """Hands on the documents whose losses are within the bounds of their domain."""

    name, type = "within", "FILTER"

    def __init__(self, bounds: Mapping[str, Bounds], dropped: Dropped) -> None:
        super().__init__()
        self.bounds, self.dropped = bounds, dropped

    def run(self, data: Iterable[Piece], rank: int = 0, world_size: int = 1) -> Iterator[Piece]:
        with self.dropped as dropped:
            for piece in data:
                reason = self.bounds[piece.metadata["domain"]].verdict(piece.metadata["nats"])
                if reason is None:
                    yield piece
                else:
                    dropped.write(piece, rank, reason)


class _Shards(PipelineStep):
    """Writes the shards of one input file, and then what is in them."""

    name, type = "shards", "WRITER"

    def __init__(self, result: Path, place: Path, most_bytes: int) -> None:
        super().__init__()
        self.result, self.place, self.most_bytes = result, place, most_bytes

    def run(self, data: Iterable[Piece], rank: int = 0, world_size: int = 1) -> None:
        self.result.mkdir(parents=True, exist_ok=True)
        writer = ShardWriter(self.result, rank, self.most_bytes)
        for piece in data:
            writer.write(_row(piece))
        writer.close()
        write_whole(self.place / f"{rank:05d}.json", [asdict(shard) for shard in writer.shards])


class _Characters(WordTokenizer):
    """Characters in place of words, where the library wants a segmenter."""

    def word_tokenize(self, text: str) -> list[str]:
        return list(text)

    def sent_tokenize(self, text: str) -> list[str]:
        return [text]

    def span_tokenize(self, text: str) -> list[tuple[int, int]]:
        return [(0, len(text))]


class _Signatures(library_minhash.MinhashDedupSignature):
    """MinHash signatures of n-grams of characters, in place of words."""

    def __init__(self, place: str, config: Any) -> None:
        super().__init__(place, config, language=_Characters())

    def get_shingles(self, text: str) -> Any:
        """Return the distinct hashes of a text's n-grams, [n, 1]; none of a text that is shorter than one."""
        return shingles(text, self.config.n_grams).reshape(-1, 1)


def signatures(texts: Sequence[str], *, by_library: bool = False) -> list[Any]:
    """Return the MinHash signatures of texts; `by_library` makes n-grams as datatrove does, of characters as its words."""
    config = _minhash_config(DuplicatesConfig())
    with tempfile.TemporaryDirectory() as scratch:
        library = library_minhash.MinhashDedupSignature
        step = library(scratch, config, _Characters()) if by_library else _Signatures(scratch, config)
        found = [step.get_shingles(text) for text in texts]
        return [step.get_signature(one) for one in found if one.size]
