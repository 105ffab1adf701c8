"""`pmi`: log P(label | text, prompt) - log P(label | prompt), pointwise mutual information with the domain conditional.

The null context is the same prompt with every field empty; in a cloze, only the blank. Source: Holtzman et al. 2021, "Surface
form competition", arXiv:2104.08315.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, Null, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    assert null is not None, "pmi is scored together with its null context"
    return scores.sums_C3[:, Span.LABEL] - null.sums_C3[:, Span.LABEL]


register(Criterion(name="pmi", kinds=frozenset({Span.LABEL}), key=_key, null=Null.EMPTY))
