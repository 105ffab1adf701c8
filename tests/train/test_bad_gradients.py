"""A gradient that is not finite, under losses that are, ends a run and is named: on one rank and two, at every ZeRO stage."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapt.model.gpt import GPT, materialize
from adapt.train.divergence import where_gradients_break
from tests.support.plain_loop import launch_ranks
from tests.support.ranks.gradient_cases import CASES, EXPERTS, LAST_NORM, QKV, cases_of
from tests.support.tiny_models import tiny_config


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """Return what each rank said of every case."""
    return list(launch_ranks("gradient_cases", tmp_path_factory.mktemp("gradients"), request.param)["of each rank"])


@pytest.mark.parametrize("name", list(CASES))
def test_a_gradient_that_is_not_finite_is_named_on_every_rank_and_the_state_before_is_kept(
    results: list[dict[str, Any]], name: str
) -> None:
    if name not in cases_of(len(results)):
        pytest.skip("one rank has nobody to share experts with")
    (message, kept), *others = [said[name] for said in results]
    assert [other[0] for other in others] == [message] * (len(results) - 1)
    assert kept == ["step-00000002"]
    assert message.startswith("the gradient norm is not finite")
    if name == "several":
        assert f"first, in the model's order, in the gradient of {QKV}, last in that of {LAST_NORM} (3 in all)" in message
    else:
        assert f"in the gradient of {EXPERTS if name == 'shared experts' else QKV} alone" in message
    assert ("at the least loss scale, 1" in message) == ("fp16" in name)
    assert "the last saved state is kept; lower the learning rate or use engine.precision=" in message


def test_a_norm_that_overflows_by_itself_is_told_apart() -> None:
    model = materialize(GPT(tiny_config([3])), seed=1)
    gradients = [(parameter, torch.full_like(parameter, 3e38)) for parameter in model.parameters()]
    assert "their norm alone overflows" in where_gradients_break(model, gradients, lambda values: values)
