"""Candidates that share anything or nothing, of any length and number: in one step and in two, the scores of full passes."""

from __future__ import annotations

import numpy as np
import pytest

from adapt.core.spans import LabelForm, Reading, Span, join_parts, read_with_targets
from adapt.model.gpt import GPT, materialize
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from tests.support.every_case import for_every
from tests.support.full_passes import EVERY, MASK, SMALL, assert_equal, one_at_a_time
from tests.support.tiny_models import tiny_config

KINDS = [EVERY, frozenset({Span.LABEL}), frozenset({Span.PROMPT})]


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request: pytest.FixtureRequest) -> GPT:
    experts = {"dense": [0], "sparse": [4]}[request.param]
    return materialize(GPT(tiny_config(experts, n_layers=2, vocab_size=SMALL)), seed=4).eval()


def candidate(random: np.random.Generator, *, has_start: bool) -> Reading:
    """Draw a text over three tokens, so that candidates are often the same, or the beginning of one another."""
    length = int(random.integers(2, 12))
    ids = random.integers(3, 6, length).tolist()
    if has_start:
        ids[0] = 2
    form = list(LabelForm)[int(random.integers(2))]
    start = int(random.integers(1, length))
    end = int(random.integers(start + 1, length + 1))
    kinds = [Span.CONTEXT] * start + [Span.LABEL] * (end - start) + [Span.PROMPT] * (length - end)
    return read_with_targets(join_parts([([token], kind) for token, kind in zip(ids, kinds, strict=True)]), form, MASK)


@for_every(seed=range(24))
def test_random_candidates_score_as_in_full_passes_in_one_step_and_in_two(model: GPT, seed: int) -> None:
    random = np.random.default_rng(seed)
    has_start = seed % 2 == 0  # without it, candidates may share nothing at all

    def some(most: int) -> list[Reading]:
        return [candidate(random, has_start=has_start) for _ in range(int(random.integers(1, most + 1)))]

    given = [(some(4), some(5)) for _ in range(int(random.integers(1, 6)))]
    if seed % 5 == 0:
        given = [(coarse, fine + coarse) for coarse, fine in given]  # a group's word may be a label's
    chosen = [sorted(random.choice(len(fine), int(random.integers(1, len(fine) + 1)), replace=False)) for _, fine in given]
    config = ScorerConfig(
        layout=list(Layout)[seed % 4],
        max_batch_tokens=[1, 30, 100, 8192][int(random.integers(4))],
        window=int(random.integers(1, 6)),
        logit_rows=int(random.integers(1, 9)),
    )
    scorer, kinds = TreeScorer(model, config), KINDS[seed % 3]
    wanted = [(one_at_a_time(model, coarse, kinds), one_at_a_time(model, fine, kinds)) for coarse, fine in given]
    together = scorer.score([coarse + fine for coarse, fine in given], kinds)
    assert_equal(list(together), [np.concatenate(pair) for pair in wanted])
    in_two = list(scorer.score_in_two_steps(given, kinds, lambda index, _: chosen[index]))
    assert [result.chosen for result in in_two] == chosen
    assert_equal([result.coarse_G3 for result in in_two], [coarse for coarse, _ in wanted])
    assert_equal([result.fine_F3 for result in in_two], [fine[places] for (_, fine), places in zip(wanted, chosen, strict=True)])
