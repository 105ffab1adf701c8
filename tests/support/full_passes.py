"""References by full forward passes: a pass for each candidate of the tree scorer, a pass for each token of a continuation."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
import torch

from adapt.core.scorer import FloatArray
from adapt.core.spans import NO_TARGET, Reading, Span
from adapt.model.gpt import GPT
from adapt.model.inputs import CausalBase, ModelInputs

SMALL, MASK, BOS = 60, 59, 2
EVERY = frozenset(Span)


@torch.no_grad()
def one_at_a_time(model: GPT, candidates: Sequence[Reading], kinds: frozenset[Span] = EVERY) -> FloatArray:
    """Run each reading alone through the whole model and sum its targets by kind."""
    sums = np.zeros((len(candidates), len(Span)))
    for candidate, reading in enumerate(candidates):
        ids_BT = torch.from_numpy(reading.inputs_T).unsqueeze(0)
        inputs = ModelInputs(
            ids_BT=ids_BT,
            positions_BT=torch.arange(len(reading)).unsqueeze(0),
            documents_BT=torch.ones_like(ids_BT),
            domains_BT=torch.zeros_like(ids_BT),
            is_packed=False,
            mask_BSW=torch.ones(1, len(reading), len(reading), dtype=torch.bool) if reading.is_bidirectional else None,
        )
        log_probs_TV = model.logits(model(inputs).hidden_BTH[0]).log_softmax(-1)
        for place in range(len(reading)):
            target, kind = int(reading.targets_T[place]), int(reading.kinds_T[place])
            if target != NO_TARGET and Span(kind) in kinds:
                sums[candidate, kind] += float(log_probs_TV[place, target])
    return sums


def assert_equal(found: Sequence[FloatArray], wanted: Sequence[FloatArray]) -> None:
    assert len(found) == len(wanted)
    for one, other in zip(found, wanted, strict=True):
        np.testing.assert_allclose(one, other, atol=1e-4, rtol=0)


@torch.no_grad()
def one_by_one(model: CausalBase, beginning: Sequence[int], n_tokens: int) -> list[int]:
    """Return the likeliest tokens, each from a full pass over a row of its own."""
    ids = list(beginning)
    for _ in range(n_tokens):
        row = torch.tensor([ids])
        inputs = ModelInputs(
            ids_BT=row, positions_BT=torch.arange(len(ids))[None], documents_BT=torch.ones_like(row),
            domains_BT=torch.zeros_like(row), is_packed=False,
        )  # fmt: skip
        ids.append(int(model.logits(model(inputs).hidden_BTH[:, -1]).argmax()))
    return ids[len(beginning) :]
