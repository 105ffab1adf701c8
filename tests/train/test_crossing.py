"""A run that goes from 2 ranks to 1 and on to 4, experts shared by 2, 1 and 2 of them, trains what one plain process trains."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest

from tests.support.forked_ranks import launch_ranks
from tests.support.plain_loop import assert_same_training, plain_loop
from tests.support.ranks.crossing_cases import CASES, NOISY, OBJECTIVE, PHASES, ROWS, STEPS

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def crossed(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """Launch one phase after the other; return what the last one came to."""
    place: Path = tmp_path_factory.mktemp("crossed")
    found: dict[str, Any] = {}
    for number, phase in enumerate(PHASES):
        assert not found, "a phase that is killed has no result"
        found = launch_ranks("crossing_cases", place, phase.world_size, str(number))
        saved = {name: sorted(state.name for state in (place / name).glob("step-*")) for name in CASES}
        newest = STEPS if phase.killed_at is None else phase.killed_at - 1
        assert {states[-1] for states in saved.values()} == {f"step-{newest:08d}"}
    return found


@pytest.fixture(scope="module")
def plain() -> dict[str, Any]:
    """Train in one plain process, with the same router noise: its key is of seed, step, example and layer."""
    return plain_loop(NOISY, OBJECTIVE, ROWS, STEPS)


@pytest.mark.parametrize("name", CASES)
def test_other_numbers_of_ranks_go_on_to_the_same_training(crossed: dict[str, Any], plain: dict[str, Any], name: str) -> None:
    assert len(crossed[name]["history"]) == STEPS
    assert_same_training(crossed[name], plain)
