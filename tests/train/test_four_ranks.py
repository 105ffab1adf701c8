"""Four real ranks at every ZeRO stage, whatever the cut, against a plain loop: dense and sparse, both balances, all parts."""

from __future__ import annotations

from typing import Any

import pytest

from adapt.objective import PARTS
from tests.support.forked_ranks import launch_ranks
from tests.support.plain_loop import assert_same_training, plain_loop
from tests.support.ranks.four_rank_cases import CASES, WORLD_SIZE, Case
from tests.support.ranks.rank_cases import MODELS, STEPS, plain_rows

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def results(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch every case once."""
    return launch_ranks("four_rank_cases", tmp_path_factory.mktemp("four"), WORLD_SIZE, timeout_s=1200)


@pytest.fixture(scope="module")
def plain() -> dict[tuple[object, ...], dict[str, Any]]:
    """Train each model and loss once in one plain process."""
    return {}


@pytest.mark.parametrize("case", CASES, ids=str)
def test_four_ranks_give_the_ledger_and_weights_of_a_plain_loop(results: dict[str, Any], plain: Any, case: Case) -> None:
    key = (case.model, case.label, case.scope)
    if key not in plain:
        plain[key] = plain_loop(MODELS[case.model], case.objective, plain_rows(case.objective), STEPS)
    assert_same_training(results[str(case)], plain[key])
    for line in results[str(case)]["history"]:
        counted = {part for part in PARTS if line[f"count/{part}"]}
        assert counted == set(PARTS) - ({"balance"} if case.model == "dense" else set())
