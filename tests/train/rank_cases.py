"""Trains small cases on real ranks and saves what came out; started as a process by `test_ranks.py`, one launch per world size."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import torch

from adapt.core.runtime import rank_from_environment
from adapt.core.spans import LabelForm, LabelLoss, Reading, SpannedText, read_with_targets
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.objective import BalanceConfig, BalanceScope, ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer import OptimizerConfig
from adapt.train.train_config import TrainConfig

STEPS = 4
BATCH_ROWS = 9  # odd: with two ranks and micro-batches of 4, one rank has an empty micro-batch
MASK = 4
MODELS = {
    kind: GPTConfig(
        n_layers=4, hidden_size=32, n_heads=2, context_length=48, vocab_size=120, experts=experts, is_residual=True, init_std=0.1
    )
    for kind, experts in (("dense", [0]), ("sparse", [3, 5]))
}
OBJECTIVES = {
    ("clm", "step"): ObjectiveConfig(balance=BalanceConfig(weight=0.1)),
    ("mlm", "step"): ObjectiveConfig(pseudo_label=LabelLoss.MLM, balance=BalanceConfig(weight=0.1)),
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
}
# A key bias has no effect on attention: its true gradient is 0, what arrives is rounding, and Adam with eps 1e-8 would blow that
# up to full-size steps of random sign. eps well above rounding keeps the update a continuous function of the gradient.
OPTIMIZER = OptimizerConfig(lr=3e-3, clip=0.5, eps=1e-5)


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


def main(place: Path) -> None:
    from adapt.train.engine import Engine
    from adapt.train.loop import Trainer
    from adapt.train.tracking import NoTracker

    torch.set_num_threads(1)
    rank = rank_from_environment()
    results = {}
    for name, (kind, objective_name, micro_batch, padding, stage) in CASES.items():
        objective = OBJECTIVES[objective_name]
        engine_config = EngineConfig(world_size=rank.world_size, zero_stage=stage, micro_batch=micro_batch, pad_multiple=padding)
        engine = Engine(materialize(GPT(MODELS[kind]), seed=3), engine_config, OPTIMIZER, rank)
        trainer = Trainer(engine, engine_config, objective, seed=5)
        source = ReadingList(readings(objective.pseudo_label))
        config = TrainConfig(steps=STEPS, batch_rows=BATCH_ROWS, optimizer=OPTIMIZER, save_every_steps=100)
        work = place / f"work {name}"
        if rank.is_main:
            work.mkdir(parents=True)
        engine.barrier()
        history = trainer.train(source, config, work, NoTracker()).history
        measured = {part: value.value for part, value in trainer.measure(source).items()}
        weights = {key: value.clone() for key, value in engine.named_weights()}
        results[name] = {"history": history, "weights": weights, "measured": measured}
    if rank.is_main:
        torch.save(results, place / "results.pt")
    engine.barrier()
    engine.close()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
