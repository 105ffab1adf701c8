"""Losses of documents under a base, for the corpus stage: text in, nats a character out.

A document is read as in pretraining: behind a document start, and so many tokens of it at most. Texts are sorted by length and read
in batches of a bounded number of tokens; which batches follows only from the texts, and so do the bits of the losses.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.core.precision import Precision
from adapt.core.spans import NO_TARGET, LabelForm, Span, SpannedText, read_with_targets
from adapt.scoring.scorer_config import ScorerConfig

_BATCH_TOKENS = 4096


@dataclass(frozen=True, kw_only=True)
class BaseLosses:
    """A base by its directory; each process that asks it opens it once."""

    weights: Path
    precision: Precision
    tokens: int

    def __call__(self, texts: Sequence[str]) -> NDArray[np.float64]:
        """Return the mean loss of each text's characters, in nats."""
        import torch

        from adapt.model.batches import collate
        from adapt.objective import token_nll

        opened = _opened(self.weights, self.precision)
        tokenizer, model = opened.tokenizer, opened.model
        most = min(self.tokens, model.context_length - 1)
        ids = [one[:most] for one in tokenizer.encode_documents(list(texts))]
        # Where a text is cut, only the characters that were read count.
        characters = [
            len(text) if len(own) < most else max(len(tokenizer.decode(own)), 1) for text, own in zip(texts, ids, strict=True)
        ]
        sums_D = np.zeros(len(texts))
        for batch in _batches([len(one) + 1 for one in ids]):
            rows = [[_reading([tokenizer.bos_id, *ids[place]])] for place in batch]
            with torch.no_grad():
                laid_out = collate(rows).to(opened.device)
                has_target = laid_out.targets_BT != NO_TARGET
                hidden_BTH = model(laid_out.inputs).hidden_BTH
                nll_N = token_nll(model, hidden_BTH[has_target], laid_out.targets_BT[has_target])
            rows_N = has_target.nonzero()[:, 0].cpu().numpy()
            sums_D[batch] = np.bincount(rows_N, nll_N.double().cpu().numpy(), minlength=len(batch))
        return sums_D / np.maximum(characters, 1)


@functools.cache
def _opened(weights: Path, precision: Precision) -> Any:
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # imports torch

    return open_checkpoint(weights, ScorerConfig(precision=precision))


def _reading(ids: list[int]) -> Any:
    kinds_T = np.full(len(ids), int(Span.CONTEXT), np.int64)
    return read_with_targets(SpannedText(ids_T=np.asarray(ids, np.int64), kinds_T=kinds_T), LabelForm.CLM)


def _batches(lengths: Sequence[int]) -> list[list[int]]:
    """Return places of texts in batches of a bounded number of tokens with their padding, short ones first."""
    found: list[list[int]] = []
    for place in np.argsort(lengths, kind="stable").tolist():
        if found and (len(found[-1]) + 1) * lengths[place] <= _BATCH_TOKENS:
            found[-1].append(place)
        else:
            found.append([place])
    return found
