"""Stage `tokenizer`: corpus text to a SentencePiece BPE model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, StageKey, sha256_of_file
from adapt.core.progress import progress
from adapt.text.corpus import CorpusFile, find_corpus, read_documents
from adapt.text.tokenizer import train_tokenizer
from pipelines.stages.contract import Plan, Walk, plain_settings
from pseudo_label.tasks import TaskConfig

NAME = "tokenizer"
VERSION = 1
PER_TASK = False


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Train on `data.corpus`, read in `data.encoding`; nothing else of the configuration matters."""
    config, data = walk.config.tokenizer, walk.config.data
    files = find_corpus(data.corpus, encoding=data.encoding)
    key = StageKey(
        stage=NAME, version=VERSION, config=plain_settings(tokenizer=config, **data.reading()), files=corpus_digests(files)
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        sizes = {"documents": 0, "characters": 0}

        def texts() -> Iterator[str]:
            for file in files:
                for document in progress(read_documents(file), f"reading {file.path.name}", unit="doc"):
                    sizes["documents"] += 1
                    sizes["characters"] += len(document.text)
                    yield document.text

        tokenizer = train_tokenizer(texts(), config, "data.corpus")
        tokenizer.save(result)
        return {**sizes, "vocab_size": tokenizer.vocab_size}

    def describe(artifact: Artifact) -> str:
        m = artifact.metrics
        return f"{m['vocab_size']} tokens from {m['documents']} documents, {m['characters']:,} characters"

    return Plan(key=key, build=build, describe=describe)


def corpus_digests(files: list[CorpusFile]) -> dict[str, str]:
    """Return the sha256 of every corpus file, by its place among them and its name: two files of one name both count.

    Directories are left out, so that a corpus can be moved as a whole.
    """
    return {f"{place} {file.path.name}": sha256_of_file(file.path) for place, file in enumerate(files)}
