"""Stage `tokenizer`: corpus text to a SentencePiece BPE model."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.progress import progress
from adapt.text.corpus import read_documents
from adapt.text.tokenizer import TokenizerConfig, train_tokenizer
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

NAME = "tokenizer"


@dataclass(frozen=True, kw_only=True)
class TokenizerReads(Reads):
    """The corpus, whose domains do not matter here, and the settings."""

    tokenizer: TokenizerConfig
    corpus: CorpusReads


class TokenizerStage(Stage[TokenizerReads]):
    """Train on `data.corpus`."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> TokenizerReads:
        return TokenizerReads(tokenizer=run.config.tokenizer, corpus=CorpusReads.of(run.config.data, with_domains=False))

    def build(self, reads: TokenizerReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        sizes = {"documents": 0, "characters": 0}

        def texts() -> Iterator[str]:
            for file in reads.corpus.corpus_files:
                for document in progress(read_documents(file), f"reading {file.path.name}", unit="doc"):
                    sizes["documents"] += 1
                    sizes["characters"] += len(document.text)
                    yield document.text

        tokenizer = train_tokenizer(texts(), reads.tokenizer, "data.corpus")
        tokenizer.save(result)
        return {**sizes, "vocab_size": tokenizer.vocab_size}

    def describe(self, artifact: Artifact) -> str:
        m = artifact.metrics
        return f"{m['vocab_size']} tokens from {m['documents']} documents, {m['characters']:,} characters"


STAGE = TokenizerStage()
