"""`sum`: log P(label | text and prompt), summed over the label's tokens (the log-likelihood ranking of Brown et al. 2020)."""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3[:, Span.LABEL]


register(Criterion(name="sum", kinds=frozenset({Span.LABEL}), key=_key))
