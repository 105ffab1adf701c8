"""One and two real ranks under DeepSpeed against a plain PyTorch loop over the same global batches."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any

import pytest
import torch

from adapt.model.gpt import GPT, materialize
from adapt.train.train_config import Trained
from tests.support.forked_ranks import Launched, slow_unless
from tests.support.plain_loop import assert_same_training, plain_loop
from tests.support.ranks.rank_cases import (
    CASES,
    FAST,
    FROZEN,
    MODELS,
    OBJECTIVES,
    RESUMED,
    STEPS,
    TRAINED,
    WEIGHTED,
    names_of,
    optimizer_of,
    rows_of,
)

Results = dict[int, Launched]


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Results:
    """Return what every case comes to, by the number of ranks."""
    place = tmp_path_factory.mktemp
    return {n: Launched("rank_cases", place(f"ranks_{n}"), n, names_of(n), FAST[n]) for n in FAST}


def at_each_size(names: Iterable[str], ending: str = "") -> list[Any]:
    """Return parameters of tests: the number of ranks and a case's name."""
    return [
        pytest.param(n, name, id=f"{n} ranks-{name}", marks=slow_unless(f"{name}{ending}" in FAST[n]))
        for n in FAST
        for name in names
    ]


@pytest.fixture(scope="session")
def plain() -> dict[tuple[object, ...], dict[str, Any]]:
    """Train what does not depend on ranks or cuts once in one plain process."""
    return {}


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(CASES))
def test_ranks_give_the_ledger_and_weights_of_a_plain_loop(results: Results, plain: Any, n_ranks: int, name: str) -> None:
    kind, objective, *_ = CASES[name]
    trains, settings = TRAINED.get(name, Trained.ALL), optimizer_of(name)
    key = (kind, objective, trains, settings.algorithm, settings.embedding_lr_ratio, name == WEIGHTED)
    if key not in plain:
        plain[key] = plain_loop(
            MODELS[kind], OBJECTIVES[objective], rows_of(name), STEPS,
            trains=trains, measures_parts=name == WEIGHTED, settings=settings,
        )  # fmt: skip
    assert_same_training(results[n_ranks][name], plain[key])


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(RESUMED, ", resumed"))
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(results: Results, n_ranks: int, name: str) -> None:
    whole, resumed = results[n_ranks][name], results[n_ranks][f"{name}, resumed"]
    assert resumed["history"] == whole["history"]
    for key, value in whole["weights"].items():
        assert torch.equal(resumed["weights"][key], value), key


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(["sparse, one cut"]))
def test_every_tensor_moves_in_training(results: Results, n_ranks: int, name: str) -> None:
    start = dict(materialize(GPT(MODELS["sparse"]), seed=3).named_parameters())
    trained = results[n_ranks][name]["weights"]
    assert [name for name, value in start.items() if torch.equal(value, trained[name])] == []


def test_what_is_not_trained_stays_to_the_bit_in_bf16_too(results: Results) -> None:
    unchanged = results[2][FROZEN]
    assert {name for name, is_same in unchanged.items() if is_same} == {name for name in unchanged if ".experts." not in name}


@pytest.mark.parametrize(("n_ranks", "name"), at_each_size(["sparse, one cut"]))
def test_measuring_does_not_depend_on_the_cut(results: Results, n_ranks: int, name: str) -> None:
    one, other = results[n_ranks][name]["measured"], results[n_ranks]["sparse, other micro-batches and padding"]["measured"]
    assert one == pytest.approx(other, rel=1e-4)
