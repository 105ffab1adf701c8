"""`total_domain_pmi`: log P of the whole filled prompt minus the mean of log P(label) over other texts of the domain.

For cloze, as `total_pmi`, with the null context of `domain_pmi`: of those texts only what stands before the blank is read.

The label is never masked here: the tokens after it are scored given it.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, Null, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    assert null is not None, "total_domain_pmi is scored together with texts of the domain"
    return scores.sums_C3.sum(axis=1) - null.sums_C3[:, Span.LABEL]


register(Criterion(name="total_domain_pmi", kinds=frozenset(Span), key=_key, form=LabelForm.CLM, null=Null.DOMAIN))
