"""A gradient that is not finite, under losses that are, ends a run and is named: on one rank and two, at every ZeRO stage."""

from __future__ import annotations

import pytest
import torch

from adapt.model.gpt import GPT, materialize
from adapt.train.divergence import where_gradients_break
from tests.support.forked_ranks import Launched, slow_unless
from tests.support.ranks.gradient_cases import EXPERTS, FAST, LAST_NORM, QKV, cases_of
from tests.support.tiny_models import tiny_config


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[int, Launched]:
    """Return what each rank said of every case, by the number of ranks."""
    place = tmp_path_factory.mktemp
    return {n: Launched("gradient_cases", place(f"gradients_{n}"), n, cases_of(n), FAST[n]) for n in FAST}


@pytest.mark.parametrize(
    ("n_ranks", "name"),
    [pytest.param(n, name, id=f"{n} ranks-{name}", marks=slow_unless(name in FAST[n])) for n in FAST for name in cases_of(n)],
)
def test_a_gradient_that_is_not_finite_is_named_on_every_rank_and_the_state_before_is_kept(
    results: dict[int, Launched], n_ranks: int, name: str
) -> None:
    (message, kept), *others = results[n_ranks][name]
    assert [other[0] for other in others] == [message] * (n_ranks - 1)
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
