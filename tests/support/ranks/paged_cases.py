"""Trains with the optimizer's state in memory and in a file, across kills, and saves both; started by `test_paged_training.py`.

Arguments: where to work, and `few` or `all`.
"""

from __future__ import annotations

import contextlib
import itertools
import sys
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.offload import MomentFormat
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.gpt import GPTConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.paged_adamw import Paging
from tests.support.ranks.rank_cases import OBJECTIVES, SPARSE, Killed, leave, plain_rows, train_on_ranks

STEPS, KILLED_AT = 20, 11  # behind the state of step 10
FEW_STEPS, FEW_KILLED_AT = 6, 5
MODEL: GPTConfig = replace(SPARSE, experts=[4])
OBJECTIVE = OBJECTIVES["clm", "step"]
BLOCK = 4096
LEAST_BYTES = 64  # so that nearly all tensors of this small model are in files


@dataclass(frozen=True, kw_only=True)
class Case:
    """An engine; rows that a rank takes at once (9 rows are a step); where the state is before the kill, and behind it.

    `paged` has the optimizer's state and gradients in files, `mapped` the weights too.
    """

    stage: int
    micro_batch: int = 9
    precision: Precision = Precision.FP32
    expert_parallel: int = 1
    before: str = "paged"
    behind: str = "mapped"

    def __str__(self) -> str:
        shared = f", experts on {self.expert_parallel}" if self.expert_parallel > 1 else ""
        return f"ZeRO-{self.stage}, {self.precision.value}, {self.micro_batch} rows{shared}, {self.before} then {self.behind}"


FEW = (
    Case(stage=0, micro_batch=5),
    Case(stage=2, before="memory"),
    Case(stage=2, micro_batch=5, precision=Precision.BF16, before="mapped", behind="memory"),
)


def every_case(world_size: int) -> tuple[Case, ...]:
    """Return the cases of so many ranks: with 9 rows at a time one micro-batch makes a step, with 5 rows (on two ranks 3) two."""
    halves = 5 if world_size == 1 else 3
    cases = [
        Case(stage=stage, micro_batch=rows, precision=precision, expert_parallel=shared)
        for stage, rows, precision, shared in itertools.product(
            (0, 1, 2), (9, halves), (Precision.FP32, Precision.BF16, Precision.FP16), range(1, world_size + 1)
        )
        if (stage == 2 or precision is Precision.FP32 or (stage == 1 and precision is Precision.FP16)) and (stage or shared == 1)
    ]
    return (*cases, Case(stage=1, before="memory"), Case(stage=2, behind="memory"), Case(stage=2, behind="paged"))


def run(case: Case, place: Path, steps: int, kind: str, killed_at: int | None = None, moments: str = "fp32") -> dict[str, Any]:
    rank = rank_from_environment()
    engine = EngineConfig(
        world_size=rank.world_size,
        zero_stage=case.stage,
        precision=case.precision,
        micro_batch=case.micro_batch,
        expert_parallel=case.expert_parallel,
    )
    paging = None
    if kind != "memory":
        paging = Paging(
            place=place / f".optimizer-{rank.rank}",
            moments=MomentFormat(moments),
            has_weights=kind == "mapped",
            seed=1,
            block=BLOCK,
            least_bytes=LEAST_BYTES,
        )
    rows = plain_rows(OBJECTIVE)
    return train_on_ranks(MODEL, OBJECTIVE, rows, engine, place, steps, killed_at=killed_at, paging=paging)


def main(place: Path, which: str) -> None:
    torch.set_num_threads(1)
    is_few = which == "few"
    steps, killed_at = (FEW_STEPS, FEW_KILLED_AT) if is_few else (STEPS, KILLED_AT)
    results: dict[str, Any] = {}
    for case in FEW if is_few else every_case(rank_from_environment().world_size):
        results[f"{case}, undisturbed"] = run(case, place / f"{case} undisturbed", steps, "memory")
        with contextlib.suppress(Killed):
            run(case, place / str(case), steps, case.before, killed_at)
        results[str(case)] = run(case, place / str(case), steps, case.behind)
    rounded = Case(stage=0 if is_few else 2)
    results["bf16 moments, undisturbed"] = run(rounded, place / "bf16 undisturbed", steps, "paged", moments="bf16")
    with contextlib.suppress(Killed):
        run(rounded, place / "bf16", steps, "paged", killed_at, "bf16")
    results["bf16 moments"] = run(rounded, place / "bf16", steps, "paged", moments="bf16")
    results["fp32 moments"] = run(rounded, place / "fp32", steps, "memory")
    results["left"] = sorted(str(left) for left in place.glob("*/.optimizer*"))
    leave(results, place)


if __name__ == "__main__":
    main(Path(sys.argv[1]), sys.argv[2])
