"""General text beside a task: what adaptation must not forget, and what may be mixed into it.

`general_text` keeps the documents of `data.corpus` as token ids in an artifact of their own, made once per (corpus, base): those
held out by the rule of pretraining, so that no base trained here has seen them, and, where they are replayed, the others. Losses
by row, before and after, become a perplexity with the interval of its rise, resampled in pairs (Koehn 2004, EMNLP, section 4).

Legend: R rows, S resamples.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.core.artifacts import Artifact
from adapt.core.errors import ConfigError, TrainingError
from adapt.core.scorer import FloatArray
from adapt.text.packing import PackedCorpus, SomeRows
from adapt.text.tokenized_corpus import TokenizedCorpus, open_tokenized, tokenize_corpus
from pipelines.config.schema import GateAction, GateConfig, PipelineConfig
from pipelines.stages.contract import Reads, Workshop, key_of
from pipelines.stages.corpus import CorpusReads
from pipelines.stages.models import weights_of
from pipelines.stages.products import GeneralPerplexity

NAME = "general_text"
VERSION = 2  # documents of Hugging Face bases start as their tokenizer says
_RESAMPLES = 10_000
_PERCENTILES = (2.5, 97.5)
_TRAINING, _HELD_OUT = "train", "held_out"


@dataclass(frozen=True, kw_only=True)
class GeneralTextReads(Reads):
    """The corpus; the documents for training are kept only where they are replayed."""

    held_out_share: float
    wants_training: bool
    corpus: CorpusReads

    @classmethod
    def of(cls, config: PipelineConfig) -> GeneralTextReads | None:
        """Return what general text is made of; None where no `data.corpus` is given.

        Raises:
            ConfigError: something needs it, and there is none.
        """
        if not config.data.corpus:
            refuse_needed(config)
            return None
        return cls(
            held_out_share=config.pretrain.held_out_share,
            wants_training=config.continue_pretrain.replay_share > 0,
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


def refuse_needed(config: PipelineConfig) -> None:
    """Raise ConfigError for settings that need general text, where there is none."""
    needs = {
        "gate.max_general_ppl_increase": config.gate.max_general_ppl_increase is not None,
        "continue_pretrain.replay_share": config.continue_pretrain.replay_share > 0,
    }
    for name, is_needed in needs.items():
        if is_needed:
            raise ConfigError(f"{name}: needs general text; give data.corpus=[FILE or GLOB, ...]")


def held_out_rows(general: Path, context_length: int, limit: int) -> SomeRows:
    """Return rows of held-out general text for measuring."""
    return SomeRows(PackedCorpus(_opened(general, _HELD_OUT), context_length, 0, 0.0, None), limit)


def replayed_rows(general: Path, context_length: int, seed: int) -> PackedCorpus:
    """Return rows of general text for training."""
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
        increase=float(np.expm1(rise_R.sum() / total)),
        ci95=(float(low), float(high)),
        tokens=int(total),
    )


def is_rolled_back(gate: GateConfig, found: GeneralPerplexity) -> bool:
    """Compare an adaptation with the gate: whether it is to be taken back.

    Raises:
        TrainingError: it forgot more than the gate allows, which is to stop the run.
    """
    limit = gate.max_general_ppl_increase
    if limit is None or found.increase <= limit:
        return False
    if gate.action is GateAction.ROLL_BACK:
        return True
    raise TrainingError(
        f"{found}, more than gate.max_general_ppl_increase={limit}; lower continue_pretrain.optimizer.lr or epochs, raise "
        "continue_pretrain.replay_share, or set gate.action=roll_back to keep the base"
    )


def _opened(general: Path, part: str) -> TokenizedCorpus:
    return open_tokenized(general / "tokens" / part)
