"""A training step by its definition: count, differentiate each batch, add up; the texts it reads, and its ledger."""

from __future__ import annotations

import functools
import operator
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapt.core.spans import LabelLoss, Reading, Span, join_parts, read_for_training
from adapt.model.batches import Batch
from adapt.model.gpt import GPT
from adapt.model.health import LayerSums
from adapt.objective import (
    ObjectiveConfig,
    PartValue,
    contribution,
    ledger_from,
    part_counts,
)

SMALL, MASK = 60, 59
UNEVEN = [torch.tensor([0.7, 0.1, 0.15, 0.05]), torch.tensor([0.05, 0.5, 0.05, 0.2, 0.1, 0.1])]


def readings(form: LabelLoss, n: int = 7) -> list[Reading]:
    """Return texts of unequal length, each a context, a prompt, a label and, for some, a tail."""
    found = []
    for seed in range(n):
        random = np.random.default_rng(seed)
        context, prompt, label, tail = (random.integers(1, MASK, size).tolist() for size in (3 + seed, 4, 1 + seed % 3, seed % 2))
        parts = [(context, Span.CONTEXT), (prompt, Span.PROMPT), (label, Span.LABEL), (tail, Span.CONTEXT)]
        found.append(read_for_training(join_parts(parts), form, MASK))
    return found


@dataclass(frozen=True, kw_only=True)
class Step:
    """A step summed over its micro-batches and ranks."""

    loss: float
    sums_P: Tensor
    layers: list[LayerSums]
    gradients: dict[str, Tensor]


def counted(model: GPT, batches: Sequence[Batch]) -> Tensor:
    return torch.stack([part_counts(model, batch) for batch in batches]).sum(0)


def stepped(model: GPT, batches: Sequence[Batch], config: ObjectiveConfig, world_size: int = 1) -> Step:
    """Do what a training step does: count first, then add up; every parameter must get a gradient from every batch."""
    counts_P = counted(model, batches)
    shares = [share for share in UNEVEN if len(share) in model.expert_counts]
    parts = [contribution(model, batch, counts_P, shares, config, world_size) for batch in batches]
    names, parameters = zip(*model.named_parameters(), strict=True)
    gradients = [torch.autograd.grad(part.loss, parameters) for part in parts]
    return Step(
        loss=sum(float(part.loss.detach()) for part in parts) / world_size,
        sums_P=torch.stack([part.sums_P for part in parts]).sum(0),
        layers=[functools.reduce(operator.add, layer) for layer in zip(*(part.layers for part in parts), strict=True)],
        gradients={name: torch.stack(grads).sum(0) / world_size for name, *grads in zip(names, *gradients, strict=True)},
    )


def ledger_of(model: GPT, step: Step, batches: Sequence[Batch], config: ObjectiveConfig) -> dict[str, PartValue]:
    return ledger_from(model, step.sums_P, counted(model, batches), step.layers, config)
