"""Trains with masters and moments in the host's memory and beside the weights, across kills, and saves both; for two ranks."""

from __future__ import annotations

import contextlib
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.train.engine_config import EngineConfig
from tests.support.ranks.paged_cases import MODEL, OBJECTIVE
from tests.support.ranks.rank_cases import Killed, leave, plain_rows, train_on_ranks

STEPS, KILLED_AT = 4, 3  # behind the state of step 2


@dataclass(frozen=True, kw_only=True)
class Case:
    """An engine, rows that a rank takes at once, and whether the state is on the host before a kill, else behind it."""

    stage: int
    precision: Precision
    micro_batch: int
    host_first: bool

    def __str__(self) -> str:
        return f"ZeRO-{self.stage}, {self.precision.value}, {self.micro_batch} rows, {'from' if self.host_first else 'to'} the host"


CASES = (
    Case(stage=1, precision=Precision.FP32, micro_batch=9, host_first=True),
    Case(stage=2, precision=Precision.BF16, micro_batch=3, host_first=False),
)


def run(case: Case, place: Path, on_host: bool, killed_at: int | None = None) -> dict[str, Any]:
    engine = EngineConfig(
        world_size=rank_from_environment().world_size,
        zero_stage=case.stage,
        precision=case.precision,
        micro_batch=case.micro_batch,
        expert_parallel=2,
    )
    rows = plain_rows(OBJECTIVE)
    return train_on_ranks(MODEL, OBJECTIVE, rows, engine, place, STEPS, killed_at=killed_at, on_host=on_host)


def main(place: Path) -> None:
    torch.set_num_threads(1)
    results: dict[str, Any] = {}
    for case in CASES:
        results[f"{case}, undisturbed"] = run(case, place / f"{case} undisturbed", on_host=False)
        with contextlib.suppress(Killed):
            run(case, place / str(case), case.host_first, KILLED_AT)
        results[str(case)] = run(case, place / str(case), not case.host_first)
    leave(results, place)
