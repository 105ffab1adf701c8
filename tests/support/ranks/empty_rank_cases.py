"""Trains with steps of one row, so that all ranks but one have none; run by `test_empty_ranks.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.config import Recompute
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from tests.support.ranks.expert_parallel_cases import MODEL, ROUTERS, ROWS
from tests.support.ranks.rank_cases import leave, train_on_ranks

STEPS = 3
BATCH_ROWS = 1
ROUTER = "top1"
OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.1), gradient_shares_every_steps=2)
CASES = {f"expert parallel {size}, {again.value}": (size, again) for size in (1, 2) for again in Recompute}

# One of each size, and one of each way to compute again; tests of the others are slow.
FAST = ("expert parallel 1, full", "expert parallel 2, selective")


def main(place: Path, *names: str) -> None:
    rank = rank_from_environment()
    config = replace(MODEL, router=ROUTERS[ROUTER])
    results = {}
    for name in names:
        size, again = CASES[name]
        engine = EngineConfig(
            world_size=rank.world_size,
            expert_parallel=size,
            activation_checkpointing=again,
            micro_batch=4,
            precision=Precision.FP32,
        )
        results[name] = train_on_ranks(config, OBJECTIVE, ROWS, engine, place / name, STEPS, batch_rows=BATCH_ROWS)
    leave(results, place)
