"""General text beside a task: what adaptation must not forget, and what may be mixed into it.

`general_text` keeps the documents of `data.corpus` as token ids in an artifact of their own, made once per (corpus, base): those
held out by the rule of pretraining, so that no base trained here has seen them, and, where they are replayed, the others. Without
a corpus a Hugging Face base is measured on its own text (`own_text.py`). Losses by row, before and after, become a perplexity with
the interval of its rise, resampled in pairs (Koehn 2004, EMNLP, section 4). Beginnings of the same text are continued greedily
before and after: a model that says the same words whatever one asks shows it there.

Legend: R rows, S resamples.
"""

from __future__ import annotations

import logging
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, TrainingError
from adapt.core.scorer import FloatArray
from adapt.text.packing import PackedCorpus, RowSource, SomeRows
from adapt.text.tokenized_corpus import TokenizedCorpus, open_tokenized, tokenize_corpus
from adapt.train.perplexity import ppl_increase
from pipelines.config.schema import GateAction, GateConfig, PipelineConfig
from pipelines.stages.contract import Reads, Workshop, key_of
from pipelines.stages.corpus_reads import CorpusReads
from pipelines.stages.models import weights_of
from pipelines.stages.own_text import OWN_TEXT_FILE, own_text_rows
from pipelines.stages.products import Continuations, GeneralPerplexity

NAME = "general_text"
VERSION = 2  # documents of Hugging Face bases start as their tokenizer says
_RESAMPLES = 10_000
_RUN = 4  # words
_MOST_SHARED = 0.25  # rise of the share of runs that several continuations have
_PERCENTILES = (2.5, 97.5)
_TRAINING, _HELD_OUT = "train", "held_out"

logger = logging.getLogger("pipelines")


@dataclass(frozen=True, kw_only=True)
class GeneralTextReads(Reads):
    """The corpus; the documents for training are kept only where they are replayed."""

    held_out_share: float
    wants_training: bool
    corpus: CorpusReads

    @classmethod
    def of(cls, config: PipelineConfig, *, is_foreign: bool = False) -> GeneralTextReads | None:
        """Return what general text is made of; None where no `data.corpus` is given. A foreign base has text of its own.

        Raises:
            ConfigError: something needs it, and there is none.
        """
        if not config.data.corpus:
            refuse_needed(config, is_foreign=is_foreign)
            return None
        return cls(
            held_out_share=config.pretrain.held_out_share,
            wants_training=bool(config.continue_pretrain.replay_share),
            corpus=CorpusReads.of(config.data),
        )


@dataclass(frozen=True, kw_only=True)
class _InTokens(Reads):
    """General text, and the base in whose tokens it is kept."""

    text: GeneralTextReads
    base: Artifact


def general_text(shop: Workshop, reads: GeneralTextReads, base: Artifact) -> Artifact:
    """Return general text in the base's tokens."""
    place = weights_of(base)

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        tokenizer = tokenizer_of(place)
        places = tokenize_corpus(
            reads.corpus.corpus_files, tokenizer, result / "tokens", reads.held_out_share, wants_training=reads.wants_training
        )
        return {path.name: len(open_tokenized(path).lengths_D) for path in places if path.is_dir()}

    return shop.produce(key_of(NAME, VERSION, _InTokens(text=reads, base=base)), build, NAME)


def refuse_needed(config: PipelineConfig, *, is_foreign: bool = False) -> None:
    """Raise ConfigError for settings that need general text, where there is none."""
    needs = {
        "gate.max_general_ppl_increase": config.gate.max_general_ppl_increase is not None and not is_foreign,
        "continue_pretrain.replay_share": bool(config.continue_pretrain.replay_share) and not is_foreign,
        "continue_pretrain.curriculum.documents": config.continue_pretrain.curriculum.documents > 0,
    }
    for name, is_needed in needs.items():
        if is_needed:
            raise ConfigError(f"{name}: needs general text; give data.corpus=[FILE or GLOB, ...]")


def measured_rows(general: Path, context_length: int, limit: int) -> RowSource:
    """Return rows of general text for measuring: held-out documents, or a base's own text."""
    if (general / OWN_TEXT_FILE).is_file():
        return own_text_rows(general)
    return SomeRows(PackedCorpus(_opened(general, _HELD_OUT), context_length, 0, 0.0, None), limit)


def replayed_rows(general: Path, context_length: int, seed: int) -> RowSource:
    """Return rows of general text for training: documents, or a base's own text."""
    if (general / OWN_TEXT_FILE).is_file():
        return own_text_rows(general)
    return PackedCorpus(_opened(general, _TRAINING), context_length, seed, 0.0, None)


def general_perplexity(before_R2: FloatArray, after_R2: FloatArray) -> GeneralPerplexity:
    """Compare losses by row, (sum of NLL, number of targets) each, of the same rows before and after."""
    tokens_R, rise_R = before_R2[:, 1], after_R2[:, 0] - before_R2[:, 0]
    total = tokens_R.sum()
    drawn_SR = np.random.default_rng(0).multinomial(len(tokens_R), np.full(len(tokens_R), 1 / len(tokens_R)), size=_RESAMPLES)
    low, high = np.percentile(np.expm1(drawn_SR @ rise_R / (drawn_SR @ tokens_R)), _PERCENTILES)
    return GeneralPerplexity(
        before=float(np.exp(before_R2[:, 0].sum() / total)),
        after=float(np.exp(after_R2[:, 0].sum() / total)),
        increase=ppl_increase(before_R2, after_R2),
        ci95=(float(low), float(high)),
        tokens=int(total),
    )


def continuations_of(found: Sequence[Mapping[str, str]]) -> Continuations | None:
    """Compare greedy continuations of the same beginnings, before and after; None where nothing was continued."""
    if not found:
        return None
    before, after = ([one[when] for one in found] for when in ("before", "after"))
    return Continuations(
        count=len(found),
        changed=sum(old != new for old, new in zip(before, after, strict=True)),
        shared_before=_shared(before),
        shared_after=_shared(after),
    )


def is_rolled_back(gate: GateConfig, found: GeneralPerplexity, continuations: Continuations | None = None) -> bool:
    """Compare an adaptation with the gate: whether it is to be taken back. What a gate only warns of is logged.

    Raises:
        TrainingError: it forgot more than the gate allows, which is to stop the run.
    """
    limit = gate.max_general_ppl_increase
    if limit is None:
        return False
    is_monotone = continuations is not None and continuations.shared_after - continuations.shared_before > _MOST_SHARED
    if found.increase <= limit and not is_monotone:
        return False
    said = f"{found}, more than gate.max_general_ppl_increase={limit}"
    if found.increase <= limit:
        said = f"{continuations}: the model says the same words whatever it is asked"
    advice = "lower continue_pretrain.optimizer.lr or epochs, or raise continue_pretrain.divergence_weight or replay_share"
    if gate.action in (None, GateAction.STOP):
        raise TrainingError(
            f"{said}; {advice}, or set gate.action=shrink to keep a part of the change, gate.action=roll_back to keep the base"
        )
    is_kept = gate.action is GateAction.WARN
    logger.warning("%s; %s%s", said, advice, "" if is_kept else "; the base stands for the task, gate.action=warn would not")
    return not is_kept


def _shared(texts: Sequence[str]) -> float:
    """Return the share of runs of words that another text has too."""
    runs = [{tuple(words[i : i + _RUN]) for i in range(len(words) - _RUN + 1)} for words in (text.split() for text in texts)]
    owners = Counter(run for own in runs for run in own)
    total = sum(owners.values())
    return sum(count for count in owners.values() if count > 1) / total if total else 0.0


def _opened(general: Path, part: str) -> TokenizedCorpus:
    return open_tokenized(general / "tokens" / part)
