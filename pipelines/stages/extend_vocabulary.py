"""Stage `extend_vocabulary`: a base of this project and domain text to the same base with more pieces in its vocabulary.

The new rows of the embedding, which is the output layer too, are the means of the rows of the old tokens that a piece is made of.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import TYPE_CHECKING, Any

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError
from adapt.core.progress import progress
from adapt.text.corpus import is_held_out, read_documents
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from adapt.text.vocabulary_extension import Extension, ExtensionConfig, extend
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.models import weights_of
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

if TYPE_CHECKING:
    from torch import Tensor

NAME = "extend_vocabulary"
EMBEDDING = "embedding.weight"
_HELD_OUT = 2000


@dataclass(frozen=True, kw_only=True)
class ExtensionReads(Reads):
    """The base, the domain's text, whose domains do not matter here, and the settings."""

    base: Artifact
    extend_vocabulary: ExtensionConfig
    corpus: CorpusReads


class ExtendVocabulary(Stage[ExtensionReads]):
    """Extend the vocabulary of `checkpoint`, or of the run's base, by pieces of `data.corpus`."""

    name = NAME
    is_per_task = False

    def reads(self, run: Run, task: TaskConfig | None) -> ExtensionReads:
        base = run.base()
        check_own(weights_of(base))
        corpus = CorpusReads.of(run.config.data, with_domains=False)
        return ExtensionReads(base=base, extend_vocabulary=run.config.extend_vocabulary, corpus=corpus)

    def build(self, reads: ExtensionReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.weights import iterate_tensors, load_config, save_model

        place, settings = weights_of(reads.base), reads.extend_vocabulary
        tokenizer = Tokenizer.load(place)
        found = extend(tokenizer, self._texts(reads, wants_held_out=False), settings)
        held_out = list(islice(self._texts(reads, wants_held_out=True), _HELD_OUT))
        config = replace(load_config(place), vocab_size=found.tokenizer.vocab_size)
        save_model(result, config, extended(iterate_tensors(place), found), found.tokenizer)
        before, after = (sum(map(len, one.encode_documents(held_out))) for one in (tokenizer, found.tokenizer))
        n = max(len(held_out), 1)
        return {
            "pieces": len(found.pieces),
            "vocab_size": found.tokenizer.vocab_size,
            "held_out": len(held_out),
            "tokens_per_document": before / n,
            "tokens_per_document_extended": after / n,
            "first_pieces": found.pieces[:50],
        }

    def _texts(self, reads: ExtensionReads, *, wants_held_out: bool) -> Iterator[str]:
        share = reads.extend_vocabulary.held_out_share
        documents = (document for file in reads.corpus.corpus_files for document in read_documents(file))
        chosen = islice(documents, reads.extend_vocabulary.max_documents)
        said = "held-out text" if wants_held_out else "reading"
        return (d.text for d in progress(chosen, said, unit="doc") if is_held_out(d.text, share) == wants_held_out)

    def describe(self, artifact: Artifact) -> str:
        m = artifact.metrics
        before, after = m["tokens_per_document"], m["tokens_per_document_extended"]
        saved = 1 - after / before if before else 0.0
        return (
            f"{m['pieces']} new pieces, {m['vocab_size']} in all; {m['held_out']} held-out documents take {after:.1f} tokens each, "
            f"before {before:.1f} ({100 * saved:.1f} % saved)"
        )


STAGE = ExtendVocabulary()


def check_own(place: Path) -> None:
    """Raise CheckpointError for a base whose vocabulary cannot be extended."""
    if is_hf_directory(place) or not (place / MODEL_FILE).is_file():
        raise CheckpointError(
            f"{place}: {NAME} takes checkpoints of this project with a SentencePiece tokenizer; a Hugging Face base keeps its own"
        )


def extended(tensors: Iterator[tuple[str, Tensor]], found: Extension) -> Iterator[tuple[str, Tensor]]:
    """Yield a checkpoint's tensors, the embedding with a row more for each new piece: the mean of its old tokens' rows."""
    import torch

    for name, tensor in tensors:
        if name == EMBEDDING:
            rows = [tensor[torch.tensor(old)].float().mean(dim=0) for old in found.old_tokens]
            tensor = torch.cat([tensor, torch.stack(rows).to(tensor.dtype)])
        yield name, tensor
