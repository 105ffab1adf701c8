"""A base's own text: what it says when its tokens are drawn one by one, as general text where `data.corpus` gives none.

A base from elsewhere was pretrained on text that nobody has at hand. Its own samples stand for that text: the rise of their mean
loss is an estimate of the divergence KL(base || adapted) for each token, which is 0 for a model that says what the base says.
"""

from __future__ import annotations

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
VERSION = 1
OWN_TEXT_FILE = "own_text.npz"
_TOKENS = 64
_SEED = 0  # the same text whatever the run's seed, so that runs can be compared


@dataclass(frozen=True, kw_only=True)
class _OwnTextReads(Reads):
    base: Artifact
    own_text_rows: int
    own_text_tokens: int


def own_text(shop: Workshop, base: Artifact, n_rows: int) -> Artifact:
    """Return `n_rows` documents that a base says, made once for a base."""

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        from adapt.checkpoint.vocabulary import load_tokenizer  # these import torch
        from adapt.checkpoint.weights import load_model
        from adapt.model.continuing import drawn_tokens

        model = load_model(weights_of(base))
        tokenizer = load_tokenizer(weights_of(base), model)
        rows = drawn_tokens(model, [[tokenizer.bos_id]] * n_rows, _TOKENS, _SEED)
        ends = {tokenizer.bos_id, tokenizer.eos_id}
        # A document ends where the base ends it, behind its end mark.
        cut = [row[: next((i + 1 for i, token in enumerate(row) if token in ends), len(row))] for row in rows]
        ids = [np.asarray([tokenizer.bos_id, *row], np.int64) for row in cut]
        np.savez(result / OWN_TEXT_FILE, ids=np.concatenate(ids), lengths=np.asarray([len(row) for row in ids]))
        return {"rows": n_rows, "tokens": sum(map(len, ids))}

    reads = _OwnTextReads(base=base, own_text_rows=n_rows, own_text_tokens=_TOKENS)
    return shop.produce(key_of(NAME, VERSION, reads), build, NAME)


def own_text_rows(place: Path) -> ReadingList:
    """Return the documents as rows for measuring."""
    with np.load(place / OWN_TEXT_FILE) as found:
        rows = np.split(found["ids"], np.cumsum(found["lengths"])[:-1])
    return ReadingList([_reading(ids_T) for ids_T in rows])


def _reading(ids_T: np.ndarray) -> Reading:
    kinds_T = np.full(len(ids_T), int(Span.CONTEXT), np.int64)
    return read_with_targets(SpannedText(ids_T=ids_T, kinds_T=kinds_T), LabelForm.CLM)
