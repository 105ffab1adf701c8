"""Trains small cases with experts shared by ranks; run by `test_expert_parallel.py`, one launch per world size."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.config import Recompute
from adapt.model.routers.contract import RouterConfig
from adapt.model.routers.hard import HardConfig
from adapt.model.routers.hash import HashConfig
from adapt.model.routers.large_margin import LargeMarginConfig
from adapt.model.routers.random_groups import RandomGroupsConfig
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top1 import Top1Config
from adapt.model.routers.top2 import Top2Config
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from tests.support.ranks.rank_cases import SPARSE, Killed, leave, plain_rows, train_on_ranks

STEPS = 5
MODEL = replace(SPARSE, experts=[4, 8])
OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.1))
ROWS = plain_rows(OBJECTIVE)
ROUTERS: dict[str, RouterConfig] = {
    "top1": Top1Config(jitter=0.3, z_loss_weight=0.01),
    "top2": Top2Config(),
    "large_margin": LargeMarginConfig(margin=3, beta_start=1.0),
    "hash": HashConfig(),
    "sigmoid_bias": SigmoidBiasConfig(rate=0.02),
    "random_groups": RandomGroupsConfig(),
    "hard": HardConfig(),
}
CROSSED = "sigmoid_bias"
MEASURED = "top1"
CROSSINGS = {"from 1 to 2": (1, 2), "from 2 to 1": (2, 1)}
WITH_SHARES = replace(OBJECTIVE, gradient_shares_every_steps=2)


@dataclass(frozen=True, kw_only=True)
class Case:
    """A router, how many ranks share its experts, the ZeRO stage, and what is computed again."""

    router: str
    expert_parallel: int
    stage: int
    recompute: Recompute = Recompute.NONE

    def __str__(self) -> str:
        again = "" if self.recompute is Recompute.NONE else f", {self.recompute.value} recomputation"
        return f"{self.router}, expert parallel {self.expert_parallel}, ZeRO-{self.stage}{again}"


def cases_of(world_size: int) -> list[Case]:
    """Return every router at every way to share experts, in both stages by turns; top1 in both, unshared too; some recomputed."""
    sizes = [2] if world_size == 2 else [2, world_size]
    by_turns = [
        Case(router=router, expert_parallel=size, stage=1 + (index + turn) % 2)
        for turn, size in enumerate(sizes)
        for index, router in enumerate(ROUTERS)
    ]
    more = [Case(router="top1", expert_parallel=size, stage=stage) for size in (1, *sizes) for stage in (1, 2)]
    again = [Case(router="top2", expert_parallel=2, stage=2, recompute=what) for what in (Recompute.SELECTIVE, Recompute.FULL)]
    return list(dict.fromkeys([*by_turns, *more, *again]))


def measured_cases(world_size: int) -> list[Case]:
    """Return cases in which the parts' gradients are measured: every way to share experts, some of them recomputed."""
    sizes = [1, 2] if world_size == 2 else [1, 2, world_size]
    again = [Case(router=MEASURED, expert_parallel=2, stage=2, recompute=what) for what in (Recompute.SELECTIVE, Recompute.FULL)]
    return [*(Case(router=MEASURED, expert_parallel=size, stage=2) for size in sizes), *again]


def engine_config(case: Case, world_size: int) -> EngineConfig:
    """Return settings that cut a step into two micro-batches, of which some rank's last one is empty."""
    return EngineConfig(
        world_size=world_size,
        expert_parallel=case.expert_parallel,
        zero_stage=case.stage,
        precision=Precision.FP32,
        micro_batch=8 // world_size,
        activation_checkpointing=case.recompute,
    )


# On two ranks, one of each kind; tests of the others are slow.
FAST = (
    str(Case(router="top1", expert_parallel=2, stage=1)),
    str(Case(router="top2", expert_parallel=2, stage=2, recompute=Recompute.SELECTIVE)),
    f"measured, {Case(router=MEASURED, expert_parallel=2, stage=2, recompute=Recompute.FULL)}",
    "from 2 to 1",
)


def names_of(world_size: int) -> list[str]:
    """Return the names of all results."""
    measured = (f"measured, {case}" for case in measured_cases(world_size))
    return [*map(str, cases_of(world_size)), *measured, *CROSSINGS]


def main(place: Path, *names: str) -> None:
    rank = rank_from_environment()
    plain = {str(case): (case, OBJECTIVE) for case in cases_of(rank.world_size)}
    measured = {f"measured, {case}": (case, WITH_SHARES) for case in measured_cases(rank.world_size)}
    results = {}
    for name in names:
        if name in CROSSINGS:
            results[name] = crossed(name, place / name)
            continue
        case, objective = (plain | measured)[name]
        config, settings = replace(MODEL, router=ROUTERS[case.router]), engine_config(case, rank.world_size)
        results[name] = train_on_ranks(config, objective, ROWS, settings, place / name, STEPS)
    leave(results, place)


def crossed(name: str, work: Path) -> dict[str, Any]:
    """Train at one size until killed, and go on at the other."""
    config, world_size = replace(MODEL, router=ROUTERS[CROSSED]), rank_from_environment().world_size
    killed, resumed = (engine_config(Case(router=CROSSED, expert_parallel=size, stage=2), world_size) for size in CROSSINGS[name])
    with contextlib.suppress(Killed):
        train_on_ranks(config, OBJECTIVE, ROWS, killed, work, STEPS, killed_at=3)
    return train_on_ranks(config, OBJECTIVE, ROWS, resumed, work, STEPS)
