"""Computes gradients in bf16 on real ranks and saves what they come to; started by `test_rounded_training.py`."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from expert_parallel_cases import MODEL, OBJECTIVE, ROWS
from rank_cases import OPTIMIZER
from torch import Tensor, nn

from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment, seed_for
from adapt.model.batches import collate
from adapt.model.gpt import GPT, materialize
from adapt.objective import contribution, part_counts
from adapt.train.engine_config import EngineConfig, GradientCommunication

IN_BF16 = EngineConfig(world_size=2, precision=Precision.BF16, micro_batch=4)
CASES = {
    "top1": IN_BF16,
    "sums in bf16": replace(IN_BF16, gradient_communication=GradientCommunication.MODEL),
}


def made(name: str) -> tuple[nn.Module, Any]:
    """Return a case's model and engine."""
    from adapt.train.engine import Engine

    model = materialize(GPT(MODEL), seed=3)
    return model, Engine(model, CASES[name], OPTIMIZER, rank_from_environment())


def loss_of(model: Any) -> Tensor:
    """Return the loss of this rank's rows, divided by the counts of all."""
    rank = rank_from_environment()
    rows = [(row, seed_for("row", index)) for index, row in enumerate(ROWS)]
    whole, own = (
        collate([row for row, _ in some], 1, 3, [key for _, key in some]) for some in (rows, rows[rank.rank :: rank.world_size])
    )
    even = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    return contribution(model, own, part_counts(model, whole), even, OBJECTIVE, rank.world_size).loss


def summed_gradients(name: str) -> dict[str, Mapping[str, Tensor]]:
    """Return by name the gradient that the engine comes to, and the mean over ranks of each one's own, summed in fp32."""
    import deepspeed

    rank = rank_from_environment()
    model, engine = made(name)
    parameters = dict(model.named_parameters())
    own = torch.autograd.grad(loss_of(model), list(parameters.values()))
    wanted = {}
    for key, gradient in zip(parameters, own, strict=True):
        wanted[key] = gradient.float()
        torch.distributed.all_reduce(wanted[key])
        wanted[key] /= rank.world_size
    engine.accumulate(lambda: loss_of(model), is_last=True)
    found = {key: deepspeed.utils.safe_get_full_grad(parameter).clone() for key, parameter in parameters.items()}
    return {"found": found, "wanted": wanted}


def main(place: Path) -> None:
    torch.set_num_threads(1)
    results = {f"{name}, gradients": summed_gradients(name) for name in CASES}
    if rank_from_environment().is_main:
        torch.save(results, place / "results.pt")
    torch.distributed.barrier()
    torch.distributed.destroy_process_group()


if __name__ == "__main__":
    main(Path(sys.argv[1]))
