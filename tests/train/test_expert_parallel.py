"""Experts shared by real ranks under DeepSpeed, against one plain process with all experts; refusals and initialisation."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterable
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.model.exchange import ExpertShare
from adapt.model.expert_parallel import own_experts, own_part
from adapt.model.gpt import GPT, materialize
from adapt.train.engine_config import EngineConfig
from tests.support.forked_ranks import Launched, slow_unless
from tests.support.plain_loop import assert_same_training, plain_loop
from tests.support.ranks.expert_parallel_cases import (
    CROSSED,
    CROSSINGS,
    FAST,
    MEASURED,
    MODEL,
    OBJECTIVE,
    ROUTERS,
    ROWS,
    STEPS,
    cases_of,
    measured_cases,
    names_of,
)


@pytest.fixture(scope="module")
def plain() -> Callable[[str], dict[str, Any]]:
    """Return a function that trains a router in one plain process, once."""
    return functools.cache(lambda name: plain_loop(replace(MODEL, router=ROUTERS[name]), OBJECTIVE, ROWS, STEPS))


@pytest.fixture(scope="module")
def on_two_ranks(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched("expert_parallel_cases", tmp_path_factory.mktemp("two"), 2, names_of(2), FAST)


@pytest.fixture(scope="module")
def on_four_ranks(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched("expert_parallel_cases", tmp_path_factory.mktemp("four"), 4, names_of(4), [])


def fast_and_slow(cases: Iterable[object], name: str = "{}") -> list[Any]:
    """Return parameters; `name` forms the name of a case's result."""
    return [pytest.param(case, id=str(case), marks=slow_unless(name.format(case) in FAST)) for case in cases]


@pytest.mark.parametrize("case", fast_and_slow(cases_of(2)))
def test_two_ranks_give_the_losses_norms_and_weights_of_one_process(on_two_ranks: Any, plain: Any, case: Any) -> None:
    assert_same_training(on_two_ranks[str(case)], plain(case.router))


@pytest.mark.slow
@pytest.mark.parametrize("case", cases_of(4), ids=str)
def test_four_ranks_give_the_losses_norms_and_weights_of_one_process(on_four_ranks: Any, plain: Any, case: Any) -> None:
    assert_same_training(on_four_ranks[str(case)], plain(case.router))


@pytest.fixture(scope="module")
def measured() -> dict[str, Any]:
    """Differentiate each part by itself, in one plain process."""
    return plain_loop(replace(MODEL, router=ROUTERS[MEASURED]), OBJECTIVE, ROWS, STEPS, measures_parts=True)


@pytest.mark.parametrize("case", fast_and_slow(measured_cases(2), "measured, {}"))
def test_parts_have_the_share_in_the_gradient_that_they_have_in_one_process(on_two_ranks: Any, measured: Any, case: Any) -> None:
    assert any(key.startswith("gradient_share/") for line in measured["history"] for key in line)
    assert_same_training(on_two_ranks[f"measured, {case}"], measured)


@pytest.mark.slow
@pytest.mark.parametrize("case", measured_cases(4), ids=str)
def test_on_four_ranks_parts_have_the_share_that_they_have_in_one_process(on_four_ranks: Any, measured: Any, case: Any) -> None:
    assert_same_training(on_four_ranks[f"measured, {case}"], measured)


@pytest.mark.parametrize("crossing", fast_and_slow(CROSSINGS))
def test_a_state_saved_at_one_size_goes_on_at_another(on_two_ranks: Any, plain: Any, crossing: str) -> None:
    assert_same_training(on_two_ranks[crossing], plain(CROSSED))


@pytest.mark.slow
@pytest.mark.parametrize("crossing", CROSSINGS)
def test_a_state_saved_on_four_ranks_at_one_size_goes_on_at_another(on_four_ranks: Any, plain: Any, crossing: str) -> None:
    assert_same_training(on_four_ranks[crossing], plain(CROSSED))


@pytest.mark.parametrize("case", fast_and_slow(cases_of(2)))
def test_whatever_received_tokens_moves_where_experts_are_shared(on_two_ranks: Any, plain: Any, case: Any) -> None:
    start = dict(materialize(GPT(replace(MODEL, router=ROUTERS[case.router])), seed=3).named_parameters())
    trained, expected = on_two_ranks[str(case)]["weights"], plain(case.router)["weights"]
    for name, value in start.items():
        assert not torch.equal(value, trained[name]), name
        if name.endswith(("up_bias", "down_bias")):  # without decay, the gradient alone moves them
            moved_E, wanted_E = ((weights[name] != value).any(-1) for weights in (trained, expected))
            assert torch.equal(moved_E, wanted_E), name
            assert moved_E.any(), name


@pytest.mark.parametrize("of", [2, 4])
def test_shares_are_initialised_to_the_weights_of_the_whole(of: int) -> None:
    whole = dict(materialize(GPT(MODEL), seed=3).named_parameters())
    for index in range(of):
        share = ExpertShare(index=index, of=of)
        model = own_experts(GPT(MODEL), share)
        assert all(parameter.is_meta for parameter in model.parameters())
        for name, parameter in materialize(model, seed=3).named_parameters():
            assert torch.equal(parameter, own_part(name, whole[name], share)), name
            assert (len(parameter) < len(whole[name])) == (".experts." in name)


def test_experts_that_cannot_be_shared_evenly_are_refused_with_the_nearest_setting() -> None:
    with pytest.raises(ConfigError, match="4 ranks cannot share the 6 experts of a layer evenly; the nearest setting is 2"):
        own_experts(GPT(replace(MODEL, experts=[8, 6])), ExpertShare(index=0, of=4))
    with pytest.raises(ConfigError, match="no experts that ranks could share; set it to 1"):
        own_experts(GPT(replace(MODEL, experts=[0])), ExpertShare(index=0, of=2))


@pytest.mark.parametrize(("size", "nearest"), [(3, 4), (5, 4), (7, 8), (16, 8)])
def test_a_size_that_does_not_divide_the_ranks_is_refused_with_the_nearest_setting(size: int, nearest: int) -> None:
    with pytest.raises(ConfigError, match=f"expert_parallel: {size} .*the nearest setting is {nearest}"):
        EngineConfig(world_size=8, expert_parallel=size)
