"""`domain_pmi`: log P(label | text, prompt) minus its mean over other texts of the domain, each read before the same label.

What a candidate gets anywhere in the domain says nothing of this text; an empty prompt, which `pmi` takes, knows less of that than
the domain's own unlabeled texts. Source: Fei et al. 2023, "Mitigating label biases for in-context learning", arXiv:2305.19148,
section 4 (there: random words of the domain).
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, Null, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    assert null is not None, "domain_pmi is scored together with texts of the domain"
    return scores.sums_C3[:, Span.LABEL] - null.sums_C3[:, Span.LABEL]


register(Criterion(name="domain_pmi", kinds=frozenset({Span.LABEL}), key=_key, null=Null.DOMAIN))
