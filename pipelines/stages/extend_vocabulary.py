"""Stage `extend_vocabulary`: a base and domain text to the same base with more pieces in its vocabulary.

The new rows of the embedding and of the output layer are the means of the rows of the old tokens that a piece is made of. A base of
this project gives one of this project, a Hugging Face directory another one.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import is_delta, is_hf_directory
from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object
from adapt.core.progress import progress
from adapt.text.contract import TextTokenizer
from adapt.text.corpus import is_held_out, read_documents
from adapt.text.hf_tokenizer import TOKENIZER_FILE
from adapt.text.hf_vocabulary_extension import check_merges, extend_hf
from adapt.text.tokenizer import MODEL_FILE, Tokenizer
from adapt.text.vocabulary_extension import Extension, ExtensionConfig, extend
from pipelines.stages.contract import Reads, Stage, Workshop
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.models import weights_of
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

NAME = "extend_vocabulary"
_HELD_OUT, _SHOWN = 2000, 50


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
        check_extendable(weights_of(base))
        corpus = CorpusReads.of(run.config.data, with_domains=False)
        return ExtensionReads(base=base, extend_vocabulary=run.config.extend_vocabulary, corpus=corpus)

    def build(self, reads: ExtensionReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        place, settings = weights_of(reads.base), reads.extend_vocabulary
        extend_base = extend_foreign if is_hf_directory(place) else extend_own
        tokenizer, found = extend_base(place, self._texts(reads, wants_held_out=False), settings, result)
        held_out = list(islice(self._texts(reads, wants_held_out=True), _HELD_OUT))
        before, after = (sum(map(len, one.encode_documents(held_out))) for one in (tokenizer, found.tokenizer))
        n = max(len(held_out), 1)
        return {
            "pieces": len(found.pieces),
            "vocab_size": found.tokenizer.vocab_size,
            "held_out": len(held_out),
            "tokens_per_document": before / n,
            "tokens_per_document_extended": after / n,
            "first_pieces": first_pieces(found),
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


def check_extendable(place: Path) -> None:
    """Raise CheckpointError for a base whose vocabulary cannot be extended."""
    if is_delta(place):
        raise CheckpointError(f"{place}: is a delta, which has no vocabulary of its own; export it with export.form=merged first")
    if not is_hf_directory(place):
        if not (place / MODEL_FILE).is_file():
            raise CheckpointError(
                f"{place}: has no {MODEL_FILE}; {NAME} takes bases with a SentencePiece tokenizer of this project"
            )
        return
    if not (place / TOKENIZER_FILE).is_file():
        raise CheckpointError(
            f"{place}: has no {TOKENIZER_FILE}, to which pieces could be added (in transformers, AutoTokenizer's from_pretrained "
            "and then save_pretrained)"
        )
    check_merges(read_object(place / TOKENIZER_FILE), str(place / TOKENIZER_FILE))


def extend_own(place: Path, texts: Iterable[str], settings: ExtensionConfig, result: Path) -> tuple[TextTokenizer, Extension]:
    """Write a base of this project, extended by pieces of the texts, and return its old tokenizer and what is new."""
    from adapt.checkpoint.extended_base import extended
    from adapt.checkpoint.weights import iterate_tensors, load_config, save_model

    tokenizer = Tokenizer.load(place)
    found = extend(tokenizer, texts, settings)
    config = replace(load_config(place), vocab_size=found.tokenizer.vocab_size)
    save_model(result, config, extended(iterate_tensors(place), found), found.tokenizer)
    return tokenizer, found


def extend_foreign(place: Path, texts: Iterable[str], settings: ExtensionConfig, result: Path) -> tuple[TextTokenizer, Extension]:
    """Write a Hugging Face base, extended by pieces of the texts, and return its old tokenizer and what is new."""
    from adapt.checkpoint.extended_base import open_extendable, write_extended

    tokenizer, store, tables = open_extendable(place)
    found = extend_hf(tokenizer, texts, settings)
    write_extended(result, place, found, store, tables)
    return tokenizer, found


def first_pieces(found: Extension) -> list[str]:
    """Return some new pieces for a reader: those of a byte-level tokenizer as text."""
    if isinstance(found.tokenizer, Tokenizer):
        return found.pieces[:_SHOWN]
    return [found.tokenizer.decode([found.first + place]) for place in range(min(_SHOWN, len(found.pieces)))]
