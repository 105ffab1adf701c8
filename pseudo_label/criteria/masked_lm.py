"""`masked_lm`: the label's tokens predicted in place, each at its own `<mask>`, summed, whatever form the stage trains.

The number of masks is the label's number of tokens, so labels of unequal length are compared as they are by `sum`. `<mask>` is
trained by span masking in pretraining and by masked labels in adaptation. Source: Schick and Schuetze 2021, "It's not just size
that matters", arXiv:2009.07118, section 3.1 (products over the masks, here all at once).
"""

from __future__ import annotations

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, register


def _key(scores: CandidateScores, null: CandidateScores | None) -> FloatArray:
    return scores.sums_C3[:, Span.LABEL]


register(Criterion(name="masked_lm", kinds=frozenset({Span.LABEL}), key=_key, form=LabelForm.MLM))
