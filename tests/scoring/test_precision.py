"""Scoring in 16 bits stays near fp32, and scores that are not finite are refused instead of ranked."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from adapt.core.errors import AdaptError, CheckpointError, ConfigError
from adapt.core.precision import Precision
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from tests.support.inner_parts import block_of
from tests.support.tiny_models import tiny_config

KINDS = frozenset({Span.LABEL})


def candidates() -> list[Reading]:
    kinds_T = np.array([0] * 7 + [2])
    return [
        read_with_targets(SpannedText(ids_T=np.array([2, 7, 8, 9, 5, 6, 7, label]), kinds_T=kinds_T), LabelForm.CLM, 4)
        for label in (11, 12, 13)
    ]


def scorer(precision: Precision, spoilt: float = 0.0) -> TreeScorer:
    model = materialize(GPT(tiny_config([4, 6], vocab_size=60)), seed=4).eval()
    for name, parameter in model.named_parameters():
        if ".router." not in name:
            parameter.data = parameter.data.to(precision.dtype)
    if spoilt:
        with torch.no_grad():
            block_of(model, 2).attention.qkv.weight.mul_(spoilt)
    return TreeScorer(model, ScorerConfig(precision=precision))


@pytest.mark.parametrize(("precision", "bound"), [(Precision.FP16, 0.01), (Precision.BF16, 0.1)])
def test_scores_in_16_bits_are_those_of_fp32_within_rounding(precision: Precision, bound: float) -> None:
    (exact,), (rounded,) = (list(scorer(p).score([candidates()], KINDS)) for p in (Precision.FP32, precision))
    difference = np.abs(exact - rounded).max()
    assert 0 < difference < bound


@pytest.mark.parametrize(
    ("precision", "spoilt", "error", "words"),
    [
        (Precision.FP16, 1e6, ConfigError, "scorer.precision=fp16: scores are not finite.*use scorer.precision=bf16"),
        (Precision.FP32, float("nan"), CheckpointError, "weights are damaged"),
    ],
)
def test_scores_that_are_not_finite_are_refused(precision: Precision, spoilt: float, error: type[AdaptError], words: str) -> None:
    with pytest.raises(error, match=words):
        list(scorer(precision, spoilt).score([candidates()], KINDS))
