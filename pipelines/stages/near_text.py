"""General text chosen for a task: documents of `data.corpus` that are near to its unlabeled rows, or as many random ones.

They are kept in shards, an artifact of their own made once per (corpus, rows, choice, seed): other commands take its directory as
`data.corpus`. What pretraining holds out is left out, and so is what shares a passage with evaluation texts.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any

from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.artifacts import Artifact
from adapt.core.errors import DataError
from adapt.core.json_files import write_json
from adapt.text.cleaning.config import OverlapConfig
from adapt.text.cleaning.overlap import EvaluationIndex
from adapt.text.corpus import find_corpus
from adapt.text.near_documents import CurriculumConfig, When, choose_documents
from adapt.text.packing import PackedCorpus
from adapt.text.shards import SHARDS, ShardWriter
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from pipelines.config.adapt_settings import AdaptConfig
from pipelines.stages.contract import Reads, Workshop, key_of
from pipelines.stages.forgetting import GeneralTextReads
from pipelines.stages.models import context_of, weights_of
from pipelines.stages.products import NEAR_FILE, ReadText
from pipelines.stages.rows import TaskData, adaptation_rows

NAME = "near_text"
VERSION = 1
_TARGET_ROWS = 10_000  # of each task: more say nothing new of its n-grams
_SHARD_BYTES = 64_000_000
_ROW_TOKENS = 1024  # a base with a long context reads text in rows of this length
_SAMPLES, _SAMPLE_CHARACTERS = 3, 200


@dataclass(frozen=True, kw_only=True)
class NearTextReads(Reads):
    """The corpus, the rows of tasks that documents are to be near to, and how they are chosen."""

    curriculum: CurriculumConfig
    choice_seed: int
    text: GeneralTextReads
    targets: tuple[TaskData, ...]


def near_text(shop: Workshop, reads: NearTextReads) -> Artifact:
    """Return the documents that are chosen."""
    chosen_by = replace(reads.curriculum, steps=None, when=When.BEFORE)  # these two change no choice
    keyed = replace(reads, curriculum=chosen_by, text=replace(reads.text, wants_training=False))

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        rows = [row for data in keyed.targets for row in adaptation_rows(shop, data, _TARGET_ROWS).rows]
        targets = ["\n".join(row.texts.values()) for row in rows]
        found = choose_documents(
            keyed.text.corpus.corpus_files, targets, chosen_by, keyed.choice_seed, keyed.text.held_out_share,
            _evaluation_texts(keyed), work,
        )  # fmt: skip
        writer = ShardWriter(result, 0, _SHARD_BYTES)
        for one in found.documents:
            writer.write({"text": one.text, "domain": one.domain})
        writer.close()
        write_json(result / SHARDS, {"shards": [asdict(shard) for shard in writer.shards]})
        nearest = sorted(found.documents, key=lambda one: -one.nearness)[:_SAMPLES]
        shown = [{"domain": one.domain, "nearness": one.nearness, "text": one.text[:_SAMPLE_CHARACTERS]} for one in nearest]
        write_json(result / NEAR_FILE, {"nearest": shown})
        return {
            "documents": len(found.documents),
            "characters": sum(len(one.text) for one in found.documents),
            "by_domain": {name: list(counts) for name, counts in found.by_domain.items()},
            "nearness": list(found.nearness),
            "kept_out": found.kept_out,
        }

    place = NAME + "/" + "+".join(data.task.name for data in keyed.targets)
    return shop.produce(key_of(NAME, VERSION, keyed), build, place)


def tokens_of(work: Path) -> Path:
    """Return where the chosen documents are in a base's tokens."""
    return work / NAME / "train"


def make_tokens(near: Artifact, base: Artifact, work: Path) -> None:
    """Put the chosen documents into a base's tokens, unless they are there."""
    tokenize_corpus(find_corpus([str(near.path)]), tokenizer_of(weights_of(base)), work / NAME, 0.0)


def text_rows(tokens: Path, context_length: int, seed: int) -> PackedCorpus:
    """Return the chosen documents as rows of at most a thousand tokens."""
    return PackedCorpus(open_tokenized(tokens), min(context_length, _ROW_TOKENS), seed, 0.0, None)


def read_text(near: Artifact, tokens: Path, base: Artifact, settings: AdaptConfig, seed: int) -> ReadText:
    """Return how much of the chosen documents is read, and when."""
    curriculum, made = settings.curriculum, near.metrics
    n_rows = len(text_rows(tokens, context_of(weights_of(base)), seed))
    if not n_rows:
        raise DataError("data.corpus: no document that was chosen has two tokens; set continue_pretrain.curriculum.documents=0")
    if curriculum.steps is not None:
        n_rows = curriculum.steps * settings.batch_rows
    return ReadText(
        choice=curriculum.choice.value,
        when=curriculum.when.value,
        documents=made["documents"],
        characters=made["characters"],
        rows=n_rows,
        by_domain={name: tuple(counts) for name, counts in made["by_domain"].items()},
        nearness=tuple(made["nearness"]),
        kept_out=made["kept_out"],
    )


def _evaluation_texts(reads: NearTextReads) -> EvaluationIndex | None:
    """Return the texts that are kept out; None where none are."""
    texts = {
        f"{data.task.name}/{split}": [text for row in data.read(split) for text in row.texts.values()]
        for data in reads.targets
        for split in data.existing(data.exclude)
    }
    passage = OverlapConfig()
    return EvaluationIndex.of_texts(texts, passage.characters, passage.shortest) if texts else None
