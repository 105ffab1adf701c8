"""`mean`: the label's log-likelihood divided by its number of tokens, so that long labels are not punished for length."""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3[:, Span.LABEL] / scores.tokens_C3[:, Span.LABEL]


register(Criterion(name="mean", kinds=frozenset({Span.LABEL}), key=_key))
