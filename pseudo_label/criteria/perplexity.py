"""`perplexity`: of the whole filled prompt. Over text, prompt and label tokens alike (all that have a prediction):

ppl = exp(-(1/n) sum log p); the key is -log ppl, so that the candidate with the lowest perplexity wins.

The label is never masked here: the tokens after it are scored given it.
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3.sum(axis=1) / scores.tokens_C3.sum(axis=1)


register(Criterion(name="perplexity", kinds=frozenset(Span), key=_key, form=LabelForm.CLM))
