"""All of a base of every Hugging Face family on two ranks: a plain loop's training, and the same bits after a kill."""

from __future__ import annotations

from pathlib import Path

import pytest
import torch

from adapt.model.hf_families import FAMILIES
from tests.support.forked_ranks import Launched, slow_unless
from tests.support.plain_loop import assert_same_training, plain_loop_of
from tests.support.ranks.hf_cases import FAST, OBJECTIVE, RESUMED, base_of
from tests.support.ranks.rank_cases import STEPS, plain_rows


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    return Launched("hf_cases", tmp_path_factory.mktemp("ranks"), 2, [*FAMILIES, *RESUMED], FAST, timeout_s=1200)


@pytest.mark.parametrize("family", [pytest.param(family, marks=slow_unless(family in FAST)) for family in FAMILIES])
def test_two_ranks_train_what_a_plain_loop_trains(results: Launched, family: str, tmp_path: Path) -> None:
    wanted = plain_loop_of(base_of(family, tmp_path / "base"), OBJECTIVE, plain_rows(OBJECTIVE), STEPS)
    assert_same_training(results[family], wanted)
    assert set(results[family]["weights"]) == set(wanted["weights"])


@pytest.mark.parametrize("family", [pytest.param(family, marks=slow_unless(f"{family}, resumed" in FAST)) for family in FAMILIES])
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(results: Launched, family: str) -> None:
    whole, resumed = results[family], results[f"{family}, resumed"]
    assert resumed["history"] == whole["history"]
    assert all(torch.equal(resumed["weights"][key], value) for key, value in whole["weights"].items())
