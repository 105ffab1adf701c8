"""Trains in bf16 on real ranks and saves what forward reads, and what gradients come to; started by `test_rounded_training.py`."""

from __future__ import annotations

import contextlib
from collections.abc import Mapping
from dataclasses import replace
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import rank_from_environment, seed_for
from adapt.model.batches import collate
from adapt.model.expert_parallel import own_experts
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.routers.expert_choice import ExpertChoiceConfig
from adapt.objective import contribution, part_counts
from adapt.train.engine_config import EngineConfig, GradientCommunication
from adapt.train.trainable import Trained, train_only
from tests.support.ranks.expert_parallel_cases import MODEL, OBJECTIVE, ROWS
from tests.support.ranks.rank_cases import OPTIMIZER, Killed, leave, train_on_ranks

STEPS = 4
EXPERT_CHOICE = replace(MODEL, router=ExpertChoiceConfig())
IN_BF16 = EngineConfig(world_size=2, precision=Precision.BF16, micro_batch=4)
# name -> (model, settings, what is trained)
CASES: dict[str, tuple[GPTConfig, EngineConfig, Trained]] = {
    "top1": (MODEL, IN_BF16, Trained.ALL),
    "expert choice": (EXPERT_CHOICE, IN_BF16, Trained.ALL),
    "sums in bf16": (MODEL, replace(IN_BF16, gradient_communication=GradientCommunication.MODEL), Trained.ALL),
    "routers alone": (MODEL, IN_BF16, Trained.ROUTER),
    "all but routers": (MODEL, IN_BF16, Trained.DENSE),
    "shared experts": (MODEL, replace(IN_BF16, expert_parallel=2), Trained.ALL),
    "shared experts alone": (MODEL, replace(IN_BF16, expert_parallel=2), Trained.EXPERTS),
}
RESUMED = "top1"
COMPARED = ("top1", "expert choice", "sums in bf16")


def made(name: str) -> tuple[nn.Module, Any]:
    """Return a case's model and engine."""
    from adapt.train.engine import Engine

    rank = rank_from_environment()
    config, settings, trains = CASES[name]
    model = materialize(own_experts(GPT(config), settings.expert_share(rank.rank)), seed=3)
    train_only(model, trains)
    return model, Engine(model, settings, OPTIMIZER, rank)


def forward_reads(name: str) -> dict[str, Any]:
    """Take a step, and return by name what forward reads then and the master beside it."""
    model, engine = made(name)
    engine.accumulate(lambda: loss_of(model), is_last=True)
    engine.step(1e-4)
    masters = {key: value.clone() for key, value in engine.named_weights()}
    return {"read": {key: p.detach().clone() for key, p in model.named_parameters()}, "masters": masters}


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


def trained(name: str, place: Path, killed_at: int | None = None) -> dict[str, Any]:
    config, settings, trains = CASES[name]
    return train_on_ranks(config, OBJECTIVE, ROWS, settings, place, STEPS, killed_at=killed_at, trains=trains)


def refusal(settings: EngineConfig) -> str:
    from adapt.train.engine import Engine

    model = materialize(GPT(MODEL), seed=3)
    train_only(model, Trained.ROUTER)
    try:
        Engine(model, settings, OPTIMIZER, rank_from_environment())
    except ConfigError as error:
        return str(error)
    return "it was taken"


def main(place: Path) -> None:
    results: dict[str, Any] = {f"{name}, read": forward_reads(name) for name in CASES}
    results |= {f"{name}, gradients": summed_gradients(name) for name in COMPARED}
    results["whole"] = trained(RESUMED, place / "whole")
    with contextlib.suppress(Killed):
        trained(RESUMED, place / "killed", killed_at=3)
    results["resumed"] = trained(RESUMED, place / "killed")
    results["routers alone in fp16"] = refusal(replace(IN_BF16, precision=Precision.FP16))
    leave(results, place)
