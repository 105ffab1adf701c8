"""Rules for a next token: each is that of transformers, and draws are those of the row's key, whatever the other rows are."""

from __future__ import annotations

from collections.abc import Callable
from functools import partial
from typing import Any

import pytest
import torch
from torch import Tensor
from transformers import (
    LogitsProcessorList,
    RepetitionPenaltyLogitsProcessor,
    TemperatureLogitsWarper,
    TopKLogitsWarper,
    TopPLogitsWarper,
)

from adapt.core.errors import ConfigError
from adapt.model.sampling import among_top_k, among_top_p, drawn, next_tokens, penalized
from adapt.model.sampling_config import GenerationConfig, SamplingConfig

VOCAB = 37
ROWS = [[3, 4, 3, 36], [0, 1, 2, 9], [5, 5, 5, 5]]
IDS = torch.tensor(ROWS)
Rule = Callable[[Tensor], Tensor]


def logits(seed: int) -> Tensor:
    """Return logits, some of them level with others."""
    found = torch.randn(3, VOCAB, generator=torch.Generator().manual_seed(seed)) * 3
    return torch.where(found > 1, found.round(), found)


def _own(rule: Callable[[Tensor, Any], Tensor], setting: Any, x: Tensor) -> Tensor:
    return rule(x, setting)


def _theirs(rule: Any, x: Tensor) -> Tensor:
    found: Tensor = rule(IDS, x)
    return found


RULES: dict[str, tuple[Rule, Rule]] = {
    "penalty 1.3": (lambda x: penalized(x, ROWS, 1.3), lambda x: RepetitionPenaltyLogitsProcessor(1.3)(IDS, x)),
    "penalty 0.7": (lambda x: penalized(x, ROWS, 0.7), lambda x: RepetitionPenaltyLogitsProcessor(0.7)(IDS, x)),
    **{f"top k {k}": (partial(_own, among_top_k, k), partial(_theirs, TopKLogitsWarper(k))) for k in (1, 2, 10, VOCAB, 500)},
    **{f"top p {p}": (partial(_own, among_top_p, p), partial(_theirs, TopPLogitsWarper(p))) for p in (1e-6, 0.3, 0.9, 0.999)},
}


@pytest.mark.parametrize("name", RULES)
def test_a_rule_is_that_of_transformers(name: str) -> None:
    own, theirs = RULES[name]
    for seed in range(30):
        given = logits(seed)
        kept = given.clone()
        torch.testing.assert_close(own(given), theirs(given.clone()), rtol=0, atol=0)
        assert torch.equal(given, kept)


def test_all_of_the_likeliest_tokens_is_all() -> None:
    assert torch.equal(among_top_p(logits(0), 1.0), logits(0))


@pytest.mark.parametrize("temperature", [0.3, 1.0, 2.5])
def test_together_they_draw_from_what_transformers_leaves(temperature: float) -> None:
    config = SamplingConfig(temperature=temperature, top_k=12, top_p=0.8, repetition_penalty=1.2)
    theirs = LogitsProcessorList(
        [
            RepetitionPenaltyLogitsProcessor(1.2), TemperatureLogitsWarper(temperature), TopKLogitsWarper(12),
            TopPLogitsWarper(0.8),
        ]
    )  # fmt: skip
    given, n_draws = logits(4), 4000
    probs = theirs(IDS, given.clone()).softmax(dim=-1)
    counts = torch.zeros(3, VOCAB)
    for draw in range(n_draws):
        tokens = next_tokens(given, ROWS, torch.arange(3) + 100 * draw, 0, config)
        counts[torch.arange(3), tokens] += 1
    assert not counts[probs == 0].any()
    assert float((counts / n_draws - probs).abs().max()) < 0.04


def test_a_draw_is_the_token_in_whose_part_the_number_lies() -> None:
    given = torch.tensor([[0.25, 0.5, 0.25]]).log().repeat(5, 1)
    assert drawn(given, torch.tensor([0.0, 0.24, 0.26, 0.74, 0.9999])).tolist() == [0, 0, 1, 1, 2]
    excluded = torch.tensor([[-torch.inf, 0.0, -torch.inf, 0.0, -torch.inf]]).repeat(2, 1)
    assert drawn(excluded, torch.tensor([0.0, 1 - 2.0**-24])).tolist() == [1, 3]


def test_a_row_draws_the_same_beside_others_and_other_tokens_later() -> None:
    config, keys = SamplingConfig(temperature=1.0), torch.tensor([11, 12, 13])
    given = torch.zeros(3, VOCAB)
    together = [next_tokens(given, ROWS, keys, step, config).tolist() for step in range(20)]
    alone = [next_tokens(given[1:2], ROWS[1:2], keys[1:2], step, config).item() for step in range(20)]
    assert [tokens[1] for tokens in together] == alone
    assert len(set(alone)) > 10
    assert [tokens[0] for tokens in together] != alone


def test_without_a_temperature_the_likeliest_token_follows_after_the_penalty() -> None:
    given = torch.tensor([[2.0, 1.9, 0.0]])
    keys = torch.tensor([1])
    assert next_tokens(given, [[0]], keys, 0, SamplingConfig()).tolist() == [0]
    assert next_tokens(given, [[0]], keys, 0, SamplingConfig(repetition_penalty=1.1)).tolist() == [1]


@pytest.mark.parametrize(
    ("settings", "words"),
    [
        ({"top_k": 5}, "top_k: is for tokens that are drawn; set temperature"),
        ({"top_p": 0.5}, "top_p: is for tokens that are drawn"),
        ({"temperature": 0.0}, "temperature: 0.0 is out of range"),
        ({"temperature": 1.0, "top_p": 1.5}, "top_p: 1.5 is out of range"),
        ({"temperature": 1.0, "top_k": 0}, "top_k: 0 is out of range"),
        ({"repetition_penalty": -1.0}, "repetition_penalty"),
        ({"stop": ["a", ""]}, "stop: has an empty text"),
    ],
)
def test_settings_that_mean_nothing_are_refused(settings: dict[str, Any], words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        GenerationConfig(**settings)
