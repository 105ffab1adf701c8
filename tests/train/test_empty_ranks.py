"""Ranks without a row take part in every step, whatever is computed again and however experts are shared; nobody waits for ever."""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest

from tests.support.plain_loop import assert_same_training, launch_ranks, plain_loop
from tests.support.ranks.empty_rank_cases import BATCH_ROWS, CASES, OBJECTIVE, ROUTER, STEPS
from tests.support.ranks.expert_parallel_cases import MODEL, ROUTERS, ROWS

TIME_LIMIT_S = 300  # it takes some 40 s where it does not hang


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once, on two ranks."""
    return launch_ranks("empty_rank_cases", tmp_path_factory.mktemp("empty"), 2, timeout_s=TIME_LIMIT_S)


@pytest.mark.parametrize("name", CASES)
def test_steps_of_one_row_train_as_in_one_process(results: dict[str, Any], name: str) -> None:
    config = replace(MODEL, router=ROUTERS[ROUTER])
    assert_same_training(results[name], plain_loop(config, OBJECTIVE, ROWS, STEPS, batch_rows=BATCH_ROWS, measures_parts=True))
