"""Continuations: on a kept past and together they are what one full pass after another gives."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapt.checkpoint.weights import load_model
from adapt.model.continuing import drawn_tokens, greedy_tokens
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import ModelInputs
from tests.support.full_passes import one_by_one
from tests.support.hf_checkpoints import make_model
from tests.support.tiny_models import tiny_config

_BEGINNINGS = [[5, 6, 7], [8, 9], [3, 4, 5], [11]]


@pytest.mark.parametrize("kind", ["own", "foreign"])
def test_greedy_continuations_are_those_of_full_passes(kind: str, tmp_path: Path) -> None:
    model = materialize(GPT(tiny_config()), seed=0).eval() if kind == "own" else load_model(make_model(tmp_path, "llama", 70))
    found = greedy_tokens(model, _BEGINNINGS, 6)
    assert found == [one_by_one(model, beginning, 6) for beginning in _BEGINNINGS]
    assert len({tuple(one) for one in found}) > 1


def test_draws_follow_from_the_seed_and_have_the_models_shares(tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path, "llama", 24))
    assert drawn_tokens(model, [[3]] * 4, 5, seed=1) == drawn_tokens(model, [[3]] * 4, 5, seed=1)
    drawn = [row[0] for row in drawn_tokens(model, [[3]] * 4000, 1, seed=2)]
    row = torch.tensor([[3]])
    inputs = ModelInputs(
        ids_BT=row, positions_BT=torch.zeros_like(row), documents_BT=torch.ones_like(row), domains_BT=torch.zeros_like(row)
    )
    with torch.no_grad():
        probs = model.logits(model(inputs).hidden_BTH[0, 0]).softmax(-1)
    shares = torch.bincount(torch.tensor(drawn), minlength=24) / 4000
    assert float((shares - probs).abs().max()) < 0.04


def test_a_continuation_ends_with_the_context(tmp_path: Path) -> None:
    model = load_model(make_model(tmp_path, "llama", 70, max_position_embeddings=8))
    assert [len(found) for found in greedy_tokens(model, [[1, 2, 3], [1] * 8], 20)] == [5, 0]
