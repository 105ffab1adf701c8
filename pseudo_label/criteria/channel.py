"""`channel`: log P(text | label), for prompts whose label stands first: summed over the field tokens, not the label's.

Source: Min et al. 2022, "Noisy channel language model prompting", arXiv:2108.04106.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3[:, Span.CONTEXT]


register(Criterion(name="channel", kinds=frozenset({Span.CONTEXT}), key=_key, form=LabelForm.CLM))
