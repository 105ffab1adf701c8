"""A base's own text: what it says when its tokens are drawn one by one, as general text where `data.corpus` gives none.

A base from elsewhere was pretrained on text that nobody has at hand. Its own samples stand for that text: the rise of their mean
loss is an estimate of the divergence KL(base || adapted) for each token, which is 0 for a model that says what the base says.
Other samples are replayed in training, where the base's distributions are held to; what is measured is drawn apart from them.
"""

from __future__ import annotations

import enum
import itertools
import logging
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.artifacts import Artifact
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.text.packing import ReadingList
from pipelines.stages.contract import Reads, Workshop, key_of
from pipelines.stages.models import weights_of

NAME = "own_text"
VERSION = 2  # drawn in parts
OWN_TEXT_FILE = "own_text.npz"
_TOKENS = 64
_AT_ONCE = 256  # rows, which bounds memory
REPLAYED_ROWS = 512

logger = logging.getLogger("pipelines")


class OwnText(enum.IntEnum):
    """What it is drawn for. Seeds are these numbers, so the text is the same whatever a run's seed, and runs can be compared."""

    MEASURED = 0
    REPLAYED = 1


@dataclass(frozen=True, kw_only=True)
class _OwnTextReads(Reads):
    base: Artifact
    own_text_rows: int
    own_text_tokens: int
    own_text_use: OwnText


def own_text(shop: Workshop, base: Artifact, n_rows: int, use: OwnText) -> Artifact:
    """Return `n_rows` documents that a base says, made once for a base and a use."""

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.vocabulary import load_tokenizer  # these import torch
        from adapt.checkpoint.weights import load_model
        from adapt.model.continuing import drawn_tokens

        model = load_model(weights_of(base))
        tokenizer = load_tokenizer(weights_of(base), model)
        logger.info("drawing %d documents of the base's own text", n_rows)
        rows: list[list[int]] = []
        for seed in itertools.count(use, len(OwnText)):
            rows += drawn_tokens(model, [[tokenizer.bos_id]] * min(_AT_ONCE, n_rows - len(rows)), _TOKENS, seed)
            if len(rows) == n_rows:
                break
        ends = {tokenizer.bos_id, tokenizer.eos_id}
        # A document ends where the base ends it, behind its end mark.
        cut = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
        ids = [np.asarray([tokenizer.bos_id, *row], np.int64) for row in cut]
        np.savez(result / OWN_TEXT_FILE, ids=np.concatenate(ids), lengths=np.asarray([len(row) for row in ids]))
        return {"rows": n_rows, "tokens": sum(map(len, ids))}

    reads = _OwnTextReads(base=base, own_text_rows=n_rows, own_text_tokens=_TOKENS, own_text_use=use)
    name = NAME if use is OwnText.MEASURED else f"{NAME}_replayed"
    return shop.produce(key_of(name, VERSION, reads), build, name)


def own_text_rows(place: Path) -> ReadingList:
    """Return the documents as rows, one each."""
    with np.load(place / OWN_TEXT_FILE) as found:
        rows = np.split(found["ids"], np.cumsum(found["lengths"])[:-1])
    return ReadingList([_reading(ids_T) for ids_T in rows])


def _reading(ids_T: np.ndarray) -> Reading:
    kinds_T = np.full(len(ids_T), int(Span.CONTEXT), np.int64)
    return read_with_targets(SpannedText(ids_T=ids_T, kinds_T=kinds_T), LabelForm.CLM)
