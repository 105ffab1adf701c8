"""Filters of the corpus stage: text a second of one core, against reading and writing it, and MinHash against datatrove's.

Text is that of `text` (files of general text), as much as `mb` says, held in memory. Filters are normalising, quality rules, masks
and the evaluation texts of `evaluation`. MinHash is one signature a document from 5-grams of characters: the library's code makes
them one by one from a segmenter's words, which here are single characters, so that both hash the same n-grams.
"""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from functools import partial
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

from adapt.core.errors import ConfigError
from adapt.text.cleaning.config import CorpusConfig, NormaliseConfig, QualityConfig
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.cleaning.sieve import Sieve, Tally
from adapt.text.corpus import Document, document_batches, find_corpus, read_documents
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.options import is_cpu_time, number, only
from pipelines.config.locations import demo_dir

_NAME = "corpus"
_FILTERS, _WITH_EVALUATION, _IO, _MINHASH, _LIBRARY = "filters", "with evaluation", "read+write", "MinHash", "datatrove MinHash"


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, "text", "evaluation", "mb", "rounds", "clock")
    rounds, most = number(_NAME, options, "rounds", 3), number(_NAME, options, "mb", 10) * 1_000_000
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, 1, "cpu") else wall_seconds
    try:
        from adapt.text.cleaning.passes import signatures
    except ImportError as error:
        raise ConfigError(f"bench {_NAME}: needs datatrove; pip install 'moe-adapt[corpus]'") from error
    found = []
    for file in find_corpus([options.get("text", f"{demo_dir()}/corpus/*.txt")]):
        documents: list[Document] = []
        n_bytes = 0
        for document in read_documents(file):
            documents.append(document)
            n_bytes += len(document.text.encode())
            if n_bytes >= most:
                break
        cut = list(document_batches(documents))
        with TemporaryDirectory() as scratch:
            ways = _ways(cut, Path(scratch), options.get("evaluation"))
            few = documents[: max(len(documents) // 20, 1)]  # the library's way takes a while
            few_bytes = sum(len(document.text.encode()) for document in few)
            texts = [document.text for document in few]
            ways |= {_MINHASH: partial(signatures, texts), _LIBRARY: partial(signatures, texts, by_library=True)}
            if len(signatures(texts[:100])) != len(signatures(texts[:100], by_library=True)):
                raise ConfigError(f"bench {_NAME}: the two ways sign other documents; figures would mean nothing")
            seconds = interleaved_medians(ways, rounds, stopwatch)
        sizes = {name: few_bytes if name in (_MINHASH, _LIBRARY) else n_bytes for name in ways}
        found.append(
            {"file": file.path.name, "documents": len(documents), "MB": n_bytes / 1e6}
            | {f"{name} MB/s": sizes[name] / 1e6 / seconds[name] for name in ways}
            | {
                f"{_FILTERS}/{_IO}": seconds[_FILTERS] / seconds[_IO],
                f"{_LIBRARY}/{_MINHASH}": seconds[_LIBRARY] / seconds[_MINHASH],
            }
        )
    return found


def _ways(cut: list[list[Document]], scratch: Path, evaluation: str | None) -> dict[str, Callable[[], object]]:
    rows = scratch / "rows.jsonl"
    rows.write_text(
        "".join(json.dumps({"text": document.text}, ensure_ascii=False) + "\n" for batch in cut for document in batch),
        encoding="utf-8",
    )

    def read_and_write() -> None:
        with rows.open(encoding="utf-8") as source, (scratch / "copy.jsonl").open("w", encoding="utf-8") as target:
            for line in source:
                target.write(json.dumps(json.loads(line), ensure_ascii=False) + "\n")

    def sift(index: EvaluationIndex | None) -> Callable[[], None]:
        config = CorpusConfig(normalise=NormaliseConfig(), quality=QualityConfig())

        def go() -> None:
            sieve = Sieve(config, index, Tally())
            for batch in cut:
                sieve.sift(batch)

        return go

    ways: dict[str, Callable[[], object]] = {_FILTERS: sift(None), _IO: read_and_write}
    if evaluation is not None:
        files = {str(file.path): file.path for file in find_corpus([evaluation])}
        ways[_WITH_EVALUATION] = sift(EvaluationIndex.of(files, 24, 10))
    return ways


register(
    Benchmark(
        name=_NAME,
        title="Cleaning text on one core, MB of UTF-8 text a second",
        baseline="reading and writing the same JSON lines; datatrove's own MinHash signatures",
        run=_run,
    )
)
