"""Trains on as many ranks as there are until it is killed, going on from what others left; started by `test_crossing.py`."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.routers.top1 import Top1Config
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from tests.support.ranks.expert_parallel_cases import MODEL
from tests.support.ranks.rank_cases import Killed, leave, plain_rows, train_on_ranks

STEPS = 8
NOISY = replace(MODEL, router=Top1Config(jitter=0.3, z_loss_weight=0.01))
OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.1))
ROWS = plain_rows(OBJECTIVE)


@dataclass(frozen=True, kw_only=True)
class Phase:
    """A launch: how many ranks, what they share in each case, and the step they are killed at (states are saved every second)."""

    world_size: int
    stage: int
    killed_at: int | None
    expert_parallel: dict[str, int]


PHASES = [
    Phase(world_size=2, stage=2, killed_at=3, expert_parallel={"ranks": 1, "ranks and shared experts": 2}),
    Phase(world_size=1, stage=1, killed_at=5, expert_parallel={"ranks": 1, "ranks and shared experts": 1}),
    Phase(world_size=4, stage=2, killed_at=None, expert_parallel={"ranks": 1, "ranks and shared experts": 2}),
]
CASES = list(PHASES[0].expert_parallel)


def main(place: Path, number: str) -> None:
    phase = PHASES[int(number)]
    rank = rank_from_environment()
    assert rank.world_size == phase.world_size
    results = {}
    for name, expert_parallel in phase.expert_parallel.items():
        engine = EngineConfig(
            world_size=rank.world_size,
            expert_parallel=expert_parallel,
            zero_stage=phase.stage,
            precision=Precision.FP32,
            micro_batch=max(4 // rank.world_size, 2),
        )
        with contextlib.suppress(Killed):
            results[name] = train_on_ranks(NOISY, OBJECTIVE, ROWS, engine, place / name, STEPS, killed_at=phase.killed_at)
    leave(results, place)
