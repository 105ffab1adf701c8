"""`total`: log P of the whole filled prompt, every token of text, prompt and label that has a prediction.

For blanks inside the text and labels between two texts: what follows the label counts. Candidates share what stands before it.

The label is never masked here: the tokens after it are scored given it.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3.sum(axis=1)


register(Criterion(name="total", kinds=frozenset(Span), key=_key, form=LabelForm.CLM))
