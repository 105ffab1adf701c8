"""Trains all of a tiny base of every Hugging Face family on real ranks; run by `test_hf_ranks.py`, once for all names."""

from __future__ import annotations

import contextlib
from pathlib import Path
from typing import Any

from adapt.checkpoint.weights import load_model
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.hf import HFModel
from adapt.model.hf_families import FAMILIES
from adapt.train.engine_config import EngineConfig
from adapt.train.train_config import TrainConfig
from tests.support.hf_checkpoints import make_model
from tests.support.ranks.rank_cases import BATCH_ROWS, OBJECTIVES, OPTIMIZER, STEPS, Killed, leave, plain_rows, train_model_on_ranks

RESUMED = tuple(f"{family}, resumed" for family in FAMILIES)
FAST = ("deepseek_v3", "deepseek_v3, resumed")
OBJECTIVE = OBJECTIVES["clm", "step"]


def base_of(family: str, place: Path) -> HFModel:
    """Make a base at `place`, where it is not there yet, and open it."""
    if not place.is_dir():
        make_model(place, family, 120)
    model = load_model(place)
    assert isinstance(model, HFModel)
    return model


def run_case(family: str, place: Path, killed_at: int | None = None) -> dict[str, Any]:
    rank = rank_from_environment()
    model = base_of(family, place.parent / f"{family}-{rank.rank}")
    engine = EngineConfig(world_size=rank.world_size, zero_stage=2, micro_batch=4, precision=Precision.FP32)
    training = TrainConfig(steps=STEPS, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=2)
    return train_model_on_ranks(model, OBJECTIVE, plain_rows(OBJECTIVE), engine, place, training, killed_at=killed_at)


def main(place: Path, *names: str) -> None:
    results: dict[str, Any] = {}
    for family in {name.removesuffix(", resumed") for name in names}:
        base_of(family, place / f"{family}-{rank_from_environment().rank}")  # once ranks have met, only rank 0 writes one
    for name in names:
        family = name.removesuffix(", resumed")
        if name.endswith(", resumed"):
            with contextlib.suppress(Killed):
                run_case(family, place / name, killed_at=3)
        results[name] = run_case(family, place / name)
    leave(results, place)
