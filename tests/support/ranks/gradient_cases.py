"""Trains on real ranks until a gradient is not finite, and saves what was said; started by `test_bad_gradients.py`."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.core.errors import TrainingError
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.model.expert_parallel import own_experts
from adapt.model.gpt import GPT, materialize
from adapt.text.mixing import RowList
from adapt.train.engine_config import EngineConfig
from adapt.train.loss_scale import LossScaleConfig
from adapt.train.train_config import TrainConfig
from tests.support.ranks.expert_parallel_cases import MODEL, OBJECTIVE, ROWS
from tests.support.ranks.rank_cases import BATCH_ROWS, OPTIMIZER, Killed, leave

QKV, EXPERTS, LAST_NORM = "blocks.1.attention.qkv.weight", "blocks.3.mlp.experts.down_weight", "final_norm.bias"
LEAST = LossScaleConfig(initial=1, hysteresis=1)
# name -> (parameters whose gradients are spoilt, settings)
CASES: dict[str, tuple[list[str], dict[str, Any]]] = {
    "ZeRO-0": ([QKV], {"zero_stage": 0}),
    "ZeRO-1": ([QKV], {"zero_stage": 1}),
    "ZeRO-2": ([QKV], {"zero_stage": 2}),
    "bf16": ([QKV], {"precision": Precision.BF16}),
    "fp16 at the least scale": ([QKV], {"precision": Precision.FP16, "loss_scale": LEAST}),
    "several": ([LAST_NORM, EXPERTS, QKV], {}),
    "shared experts": ([EXPERTS], {"expert_parallel": 2}),
}
SPOILT_STEP = 3
# One of each kind by number of ranks; tests of the others are slow.
FAST = {1: ("ZeRO-1", "bf16"), 2: ("ZeRO-0", "several", "fp16 at the least scale", "shared experts")}


def cases_of(world_size: int) -> list[str]:
    return [name for name, (_, settings) in CASES.items() if settings.get("expert_parallel", 1) <= world_size]


def said(name: str, place: Path) -> tuple[str, list[str]]:
    """Train a case; return why it ended, and which states are kept."""
    from adapt.train.loop import Trainer
    from adapt.train.tracking import NoTracker
    from adapt.train.zero0_engine import open_engine

    parameters, settings = CASES[name]
    rank, steps_done = rank_from_environment(), 0

    class Count(NoTracker):
        def log(self, metrics: Any, step: int) -> None:
            nonlocal steps_done
            steps_done = step
            if step > SPOILT_STEP:
                raise Killed

    def spoil(gradient: Tensor) -> Tensor:
        if steps_done + 1 < SPOILT_STEP or rank.rank != rank.world_size - 1:
            return gradient
        return gradient.index_fill(0, torch.tensor([len(gradient) - 1]), float("nan"))

    config = EngineConfig(world_size=rank.world_size, micro_batch=4, **{"precision": Precision.FP32, **settings})
    model = materialize(own_experts(GPT(replace(MODEL)), config.expert_share(rank.rank)), seed=3)
    engine = open_engine(model, config, OPTIMIZER, rank)
    for parameter in parameters:
        dict(model.named_parameters())[parameter].register_hook(spoil)
    if rank.is_main:
        place.mkdir(parents=True, exist_ok=True)
    engine.barrier()
    training = TrainConfig(steps=6, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=2)
    try:
        Trainer(engine, config, OBJECTIVE, seed=5).train(RowList(ROWS), training, place, Count())
    except TrainingError as error:
        engine.barrier()
        return str(error), sorted(state.name for state in place.iterdir())
    except Killed:
        pass
    return "it went on", []


def main(place: Path, *names: str) -> None:
    """Save what each rank said, by name."""
    rank = rank_from_environment()
    results = {name: said(name, place / name) for name in names}
    torch.save(results, place / f"results-{rank.rank}.pt")
    torch.distributed.barrier()
    of_each = [torch.load(place / f"results-{other}.pt", weights_only=True) for other in range(rank.world_size)]
    leave({name: [of_one[name] for of_one in of_each] for name in names}, place)
