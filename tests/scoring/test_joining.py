"""Rows that begin alike are read together where that costs less, and score as they do by themselves."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import numpy as np
import pytest

from adapt.core.spans import LabelForm, Reading, Span, join_parts, read_with_targets
from adapt.model.gpt import GPT, materialize
from adapt.scoring.joining import joined_groups
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree import build_tree
from adapt.scoring.tree_scorer import TreeScorer
from tests.support.every_case import for_every
from tests.support.full_passes import BOS, EVERY, SMALL, assert_equal, one_at_a_time
from tests.support.tiny_models import tiny_config

LABELS = ([11], [12, 13], [12, 14, 15])
KINDS = frozenset({Span.LABEL})


@pytest.fixture(scope="module", params=["dense", "sparse"])
def model(request: pytest.FixtureRequest) -> GPT:
    experts = {"dense": [0], "sparse": [4, 6]}[request.param]
    return materialize(GPT(tiny_config(experts, vocab_size=SMALL)), seed=4).eval()


def rows_with(beginning: Sequence[int], seed: int = 0, n_rows: int = 9, n_labels: int = 3, domain: int = 0) -> list[list[Reading]]:
    """Return examples whose texts go on from one beginning."""
    random = np.random.default_rng(seed)
    found = []
    for _ in range(n_rows):
        text = random.integers(20, 50, int(random.integers(2, 9))).tolist()
        parts = [([BOS], Span.CONTEXT), (list(beginning), Span.PROMPT), (text, Span.CONTEXT)]
        texts = [join_parts([*parts, (label, Span.LABEL)]) for label in LABELS[:n_labels]]
        found.append([replace(read_with_targets(text, LabelForm.CLM), domain=domain) for text in texts])
    return found


def tokens_read(model: GPT, examples: Sequence[Sequence[Reading]], config: ScorerConfig) -> int:
    """Return how many positions the model computes."""
    taken: list[int] = []
    handle = model.register_forward_pre_hook(lambda _, inputs: taken.append(inputs[0].ids_BT.numel()))
    list(TreeScorer(model, config).score(examples, KINDS))
    handle.remove()
    return sum(taken)


@for_every(seed=range(3), kinds=[KINDS, EVERY])
def test_joined_rows_score_as_full_passes_of_their_candidates(model: GPT, seed: int, kinds: frozenset[Span]) -> None:
    given = [*rows_with(range(5, 30), seed), *rows_with(range(5, 18), seed + 50), *rows_with([], seed + 99)]
    groups = joined_groups([build_tree(example, kinds) for example in given], model.hidden_size, 4096)
    assert max(map(len, groups)) > 2, "nothing was joined, so that this shows nothing"
    found = list(TreeScorer(model, ScorerConfig()).score(given, kinds))
    assert_equal(found, [one_at_a_time(model, candidates, kinds) for candidates in given])


def test_a_beginning_that_rows_share_is_read_once_for_several(model: GPT) -> None:
    given = rows_with(range(5, 55), n_labels=1)
    assert tokens_read(model, given, ScorerConfig()) < 0.6 * tokens_read(model, given, ScorerConfig(layout=Layout.PACKED))
    without = rows_with([], n_labels=1)
    assert tokens_read(model, without, ScorerConfig()) <= tokens_read(model, without, ScorerConfig(layout=Layout.PACKED))


def test_rows_of_different_domains_and_large_groups_are_not_joined() -> None:
    given = [*rows_with(range(5, 55)), *rows_with(range(5, 55), domain=1)]
    trees = [build_tree(example, KINDS) for example in given]
    groups = joined_groups(trees, 64, 4096)
    assert sorted(place for group in groups for place in group) == list(range(len(trees)))
    assert all(len({trees[place].domain for place in group}) == 1 for group in groups)
    assert max(map(len, groups)) > 1
    assert max(map(len, joined_groups(trees, 64, len(trees[0])))) == 1


def test_no_rows_are_no_groups() -> None:
    assert joined_groups([], 64, 4096) == []
