"""`per_character`: the label's log-likelihood divided by its characters, so that the tokenizer's cuts do not matter."""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3[:, Span.LABEL] / scores.characters_C


register(Criterion(name="per_character", kinds=frozenset({Span.LABEL}), key=_key))
