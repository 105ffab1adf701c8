"""Trains small cases on real ranks and saves what came out; run by `test_ranks.py`, one launch per world size."""

from __future__ import annotations

import contextlib
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import torch
import torch.distributed
from torch import nn

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment
from adapt.core.spans import LabelForm, LabelLoss, Reading, SpannedText, read_with_targets
from adapt.model.expert_parallel import own_experts
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.routers.expert_choice import ExpertChoiceConfig
from adapt.model.routers.large_margin import LargeMarginConfig
from adapt.model.routers.s_base import SBaseConfig
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top1 import Top1Config
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig, PartSchedules, WeightSchedule
from adapt.text.mixing import RowList
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import Algorithm, OptimizerConfig
from adapt.train.paged_adamw import Paging, weights_in_place
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only

STEPS = 4
BATCH_ROWS = 9  # odd: with two ranks and micro-batches of 4, one rank has an empty micro-batch
MASK = 4
DENSE = GPTConfig(
    n_layers=4, hidden_size=32, n_heads=2, context_length=48, vocab_size=120, experts=[0], is_residual=True, init_std=0.1
)
SPARSE = replace(DENSE, experts=[3, 5])
MODELS = {
    "dense": DENSE,
    "sparse": SPARSE,
    "noisy": replace(SPARSE, router=Top1Config(jitter=0.3, z_loss_weight=0.01)),
    "large margin": replace(SPARSE, router=LargeMarginConfig(margin=3, beta_start=1.0)),
    "expert choice": replace(SPARSE, router=ExpertChoiceConfig()),
    "s-base": replace(SPARSE, router=SBaseConfig(), capacity_factor=0.9),
    "sigmoid bias": replace(SPARSE, router=SigmoidBiasConfig(rate=0.02)),
}
OBJECTIVES = {
    ("clm", "step"): ObjectiveConfig(balance=BalanceConfig(weight=0.1)),
    ("mlm", "step"): ObjectiveConfig(pseudo_label=LabelLoss.MLM, balance=BalanceConfig(weight=0.1)),
    ("clm", "scheduled"): ObjectiveConfig(
        balance=BalanceConfig(weight=0.1),
        schedules=PartSchedules(
            pseudo_label=WeightSchedule(start=0.0, end=2.0, begins_at=0.25), balance=WeightSchedule(start=2.0, end=1.0)
        ),
        gradient_shares_every_steps=2,
    ),
    ("clm", "sequence"): ObjectiveConfig(balance=BalanceConfig(weight=0.1, scope=BalanceScope.SEQUENCE)),
}
# name -> (model, objective, micro-batch rows, padding, ZeRO stage)
CASES = {
    "dense, one cut": ("dense", ("clm", "step"), 10, 1, 2),
    "dense, other micro-batches and padding": ("dense", ("clm", "step"), 3, 16, 2),
    "sparse, one cut": ("sparse", ("clm", "step"), 10, 1, 2),
    "sparse, accumulation 2": ("sparse", ("clm", "step"), 5, 1, 2),
    "sparse, other micro-batches and padding": ("sparse", ("clm", "step"), 3, 16, 2),
    "sparse, ZeRO-1": ("sparse", ("clm", "step"), 4, 1, 1),
    "sparse, masked labels": ("sparse", ("mlm", "step"), 4, 1, 2),
    "sparse, balance by sequence": ("sparse", ("clm", "sequence"), 4, 7, 2),
    "weighted readings, schedules and gradient shares": ("noisy", ("clm", "scheduled"), 3, 1, 2),
    "sparse, ZeRO-0": ("sparse", ("clm", "step"), 4, 1, 0),
    "LAMB, ZeRO-0": ("sigmoid bias", ("clm", "step"), 4, 1, 0),
    "experts alone": ("sparse", ("clm", "step"), 4, 1, 2),
    "tables faster, ZeRO-2": ("sparse", ("clm", "step"), 4, 1, 2),
    "tables faster, ZeRO-0": ("sparse", ("clm", "step"), 4, 1, 0),
    "noise and z-loss": ("noisy", ("clm", "step"), 3, 16, 2),
    "large margin": ("large margin", ("clm", "step"), 4, 1, 2),
    "expert choice": ("expert choice", ("clm", "step"), 4, 1, 1),
    "s-base with dropping": ("s-base", ("clm", "step"), 4, 7, 2),
    "sigmoid bias": ("sigmoid bias", ("clm", "step"), 4, 1, 2),
}
TRAINED = {"experts alone": Trained.EXPERTS}
WEIGHTED = "weighted readings, schedules and gradient shares"
RESUMED = ("sigmoid bias", "LAMB, ZeRO-0")
FROZEN = "frozen in bf16"
# One of each kind by number of ranks; tests of the others are slow.
FAST = {
    1: ("dense, other micro-batches and padding", "large margin"),
    2: (
        "sparse, one cut", "sparse, other micro-batches and padding", WEIGHTED, "LAMB, ZeRO-0", "tables faster, ZeRO-2",
        "experts alone", "expert choice", "sigmoid bias", f"{RESUMED[0]}, resumed", FROZEN,
    ),
}  # fmt: skip
# A key bias has no effect on attention: its true gradient is 0, what arrives is rounding, and Adam with eps 1e-8 would blow that
# up to full-size steps of random sign. eps well above rounding keeps the update a continuous function of the gradient.
OPTIMIZER = OptimizerConfig(lr=3e-3, clip=0.5, eps=1e-5)
TABLES_RATIO = 3.0  # of the learning rate of token tables to the others'


def readings(form: LabelForm) -> list[Reading]:
    """Return readings of unequal length with all three kinds of tokens."""
    random = np.random.default_rng(0)
    found = []
    for _ in range(23):
        length = int(random.integers(8, 40))
        kinds = np.zeros(length, np.int64)
        kinds[-5:-3], kinds[-3:-1], kinds[-1] = 1, 2, 1
        found.append(read_with_targets(SpannedText(ids_T=random.integers(5, 120, length), kinds_T=kinds), form, MASK))
    return found


def plain_rows(objective: ObjectiveConfig) -> list[list[Reading]]:
    """Return rows of one reading each, in the form that an objective trains."""
    return [[reading] for reading in readings(LabelForm(objective.pseudo_label.value))]


def rows_of(name: str) -> list[list[Reading]]:
    """Return a case's rows: one reading each, or two of one text whose weights sum to 1."""
    rows = plain_rows(OBJECTIVES[CASES[name][1]])
    if name != WEIGHTED:
        return rows
    found = [reading for (reading,) in rows]
    random = np.random.default_rng(1)
    weights = random.random(len(found))
    return [[replace(r, weight=float(w)), replace(r, weight=float(1 - w))] for r, w in zip(found, weights, strict=True)]


def optimizer_of(name: str) -> OptimizerConfig:
    if name.startswith("tables faster"):
        return replace(OPTIMIZER, embedding_lr_ratio=TABLES_RATIO)
    return replace(OPTIMIZER, algorithm=Algorithm.LAMB) if name.startswith("LAMB") else OPTIMIZER


class Killed(Exception):
    """Stands for whatever ends a process."""


def run_case(name: str, place: Path, killed_at: int | None = None) -> dict[str, Any]:
    """Train a case in `place`, going on from what is saved there."""
    kind, objective_name, micro_batch, padding, stage = CASES[name]
    world_size = rank_from_environment().world_size
    engine = EngineConfig(
        world_size=world_size, zero_stage=stage, precision=Precision.FP32, micro_batch=micro_batch, pad_multiple=padding
    )
    return train_on_ranks(
        MODELS[kind], OBJECTIVES[objective_name], rows_of(name), engine, place, STEPS,
        killed_at=killed_at, trains=TRAINED.get(name, Trained.ALL), optimizer=optimizer_of(name),
    )  # fmt: skip


def train_on_ranks(
    config: GPTConfig,
    objective: ObjectiveConfig,
    rows: list[list[Reading]],
    engine_config: EngineConfig,
    place: Path,
    steps: int,
    *,
    killed_at: int | None = None,
    trains: Trained = Trained.ALL,
    optimizer: OptimizerConfig = OPTIMIZER,
    batch_rows: int = BATCH_ROWS,
    paging: Paging | None = None,
    on_host: bool = False,
) -> dict[str, Any]:
    """Train on this launch's ranks and return history, full weights and what was measured at the end."""
    rank = rank_from_environment()
    with weights_in_place(paging, only_births=True):
        model = materialize(own_experts(GPT(config), engine_config.expert_share(rank.rank)), seed=3)
    train_only(model, trains)
    training = TrainConfig(steps=steps, batch_rows=batch_rows, optimizer=optimizer, save_every_steps=2, trains=trains)
    return train_model_on_ranks(
        model, objective, rows, engine_config, place, training, killed_at=killed_at, paging=paging, on_host=on_host
    )


def train_model_on_ranks(
    model: nn.Module,
    objective: ObjectiveConfig,
    rows: list[list[Reading]],
    engine_config: EngineConfig,
    place: Path,
    training: TrainConfig,
    *,
    killed_at: int | None = None,
    paging: Paging | None = None,
    on_host: bool = False,
) -> dict[str, Any]:
    """Train a model whose trained parameters were chosen."""
    from adapt.train.loop import Trainer
    from adapt.train.tracking import NoTracker
    from adapt.train.zero0_engine import open_engine

    class KillingTracker(NoTracker):
        def log(self, metrics: Any, step: int) -> None:
            if step == killed_at:
                raise Killed

    rank = rank_from_environment()
    engine = open_engine(model, engine_config, training.optimizer, rank, paging, on_host=on_host)
    trainer = Trainer(engine, engine_config, objective, seed=5)
    source = RowList(rows)
    if rank.is_main:
        place.mkdir(parents=True, exist_ok=True)
    engine.barrier()
    history = trainer.train(source, training, place, KillingTracker()).history
    measured = {part: value.value for part, value in trainer.measure(source)[0].items()}
    weights = {key: value.clone() for key, value in engine.named_weights()}
    return {"history": history, "weights": weights, "measured": measured}


def frozen_in_bf16(place: Path) -> dict[str, bool]:
    """Train the experts alone in bf16, stop, go on; return by name whether a weight came out as it went in, to the bit."""
    from adapt.train.engine import Engine
    from adapt.train.loop import Trainer
    from adapt.train.tracking import NoTracker

    rank, engine_config = rank_from_environment(), EngineConfig(precision=Precision.BF16, micro_batch=4)
    start = {name: p.detach().clone() for name, p in materialize(GPT(SPARSE), seed=3).named_parameters()}
    for steps in (2, 4):
        model = materialize(GPT(SPARSE), seed=3)
        train_only(model, Trained.EXPERTS)
        engine = Engine(model, replace(engine_config, world_size=rank.world_size), OPTIMIZER, rank)
        trainer = Trainer(engine, engine_config, OBJECTIVES["clm", "step"], seed=5)
        config = TrainConfig(steps=steps, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, trains=Trained.EXPERTS)
        if rank.is_main:
            place.mkdir(parents=True, exist_ok=True)
        engine.barrier()
        trainer.train(RowList(rows_of("experts alone")), config, place, NoTracker())
        found = {name: torch.equal(weight, start[name]) for name, weight in engine.named_weights() if name in start}
    return found


def leave(results: dict[str, Any], place: Path) -> None:
    """Save what a script found, by rank 0, and part from the other ranks."""
    if rank_from_environment().is_main:
        torch.save(results, place / "results.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


def names_of(world_size: int) -> list[str]:
    """Return the names of all results; the one in bf16 does not depend on the ranks."""
    return [*CASES, *(f"{name}, resumed" for name in RESUMED), *([FROZEN] if world_size > 1 else [])]


def main(place: Path, *names: str) -> None:
    results: dict[str, Any] = {}
    for name in names:
        case = name.removesuffix(", resumed")
        if name == FROZEN:
            results[name] = frozen_in_bf16(place / name)
            continue
        if name.endswith(", resumed"):
            with contextlib.suppress(Killed):
                run_case(case, place / name, killed_at=3)
        results[name] = run_case(case, place / name)
    leave(results, place)
