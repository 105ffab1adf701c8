"""One and two real ranks under DeepSpeed against a plain PyTorch loop over the same global batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapt.model.gpt import GPT, materialize
from adapt.train.train_config import Trained
from tests.support.plain_loop import assert_same_training, launch_ranks, plain_loop
from tests.support.ranks.rank_cases import CASES, MODELS, OBJECTIVES, RESUMED, STEPS, TRAINED, WEIGHTED, optimizer_of, rows_of


@pytest.fixture(scope="module", params=[1, 2], ids=["1 rank", "2 ranks"])
def results(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once per world size."""
    return launch_ranks("rank_cases", tmp_path_factory.mktemp("ranks"), request.param)


@pytest.fixture(scope="session")
def plain() -> dict[tuple[object, ...], dict[str, Any]]:
    """Train what does not depend on ranks or cuts once in one plain process."""
    return {}


@pytest.mark.parametrize("name", list(CASES))
def test_ranks_give_the_ledger_and_weights_of_a_plain_loop(results: dict[str, Any], plain: Any, name: str) -> None:
    kind, objective, *_ = CASES[name]
    trains, settings = TRAINED.get(name, Trained.ALL), optimizer_of(name)
    key = (kind, objective, trains, settings.algorithm, name == WEIGHTED)
    if key not in plain:
        plain[key] = plain_loop(
            MODELS[kind], OBJECTIVES[objective], rows_of(name), STEPS,
            trains=trains, measures_parts=name == WEIGHTED, settings=settings,
        )  # fmt: skip
    assert_same_training(results[name], plain[key])


@pytest.mark.parametrize("name", RESUMED)
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(results: dict[str, Any], name: str) -> None:
    assert results[f"{name}, resumed"]["history"] == results[name]["history"]
    for key, value in results[name]["weights"].items():
        assert torch.equal(results[f"{name}, resumed"]["weights"][key], value), key


def test_every_tensor_moves_in_training(results: dict[str, Any]) -> None:
    start = dict(materialize(GPT(MODELS["sparse"]), seed=3).named_parameters())
    trained = results["sparse, one cut"]["weights"]
    assert [name for name, value in start.items() if torch.equal(value, trained[name])] == []


def test_what_is_not_trained_stays_to_the_bit_in_bf16_too(results: dict[str, Any]) -> None:
    unchanged = results["frozen in bf16"]
    assert {name for name, is_same in unchanged.items() if is_same} == {name for name in unchanged if ".experts." not in name}


def test_measuring_does_not_depend_on_the_cut(results: dict[str, Any]) -> None:
    one, other = results["sparse, one cut"]["measured"], results["sparse, other micro-batches and padding"]["measured"]
    assert one == pytest.approx(other, rel=1e-4)
