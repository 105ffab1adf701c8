"""Ranks without a row take part in every step, whatever is computed again and however experts are shared; nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.forked_ranks import Launched, slow_unless
from tests.support.plain_loop import assert_same_training, plain_loop
from tests.support.ranks.empty_rank_cases import BATCH_ROWS, CASES, FAST, OBJECTIVE, ROUTER, STEPS
from tests.support.ranks.expert_parallel_cases import MODEL, ROUTERS, ROWS

TIME_LIMIT_S = 300  # all of them take some 20 s where it does not hang


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> Launched:
    """Launch every case once, on two ranks."""
    return Launched("empty_rank_cases", tmp_path_factory.mktemp("empty"), 2, list(CASES), FAST, timeout_s=TIME_LIMIT_S)


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    config = replace(MODEL, router=ROUTERS[ROUTER])
    return plain_loop(config, OBJECTIVE, ROWS, STEPS, batch_rows=BATCH_ROWS, measures_parts=True)


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_unless(name in FAST)) for name in CASES])
def test_steps_of_one_row_train_as_in_one_process(results: Launched, plain: dict[str, Any], name: str) -> None:
    assert_same_training(results[name], plain)
