"""`total_pmi`: log P of the whole filled prompt minus log P(label) under the null context (every field empty; only the blank).

For cloze: without the second term a frequent candidate wins over a fitting one.

The label is never masked here: the tokens after it are scored given it.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, Null, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    assert null is not None, "total_pmi is scored together with its null context"
    return scores.sums_C3.sum(axis=1) - null.sums_C3[:, Span.LABEL]


register(Criterion(name="total_pmi", kinds=frozenset(Span), key=_key, form=LabelForm.CLM, null=Null.EMPTY))
