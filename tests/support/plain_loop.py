"""The reference for training on ranks: a plain PyTorch loop over the same global batches."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.core.runtime import seed_for
from adapt.core.spans import Reading
from adapt.model.batches import Batch, collate
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.hf import HFModel
from adapt.objective import contribution, ledger_from, part_counts, part_weights, parts_of
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import StepOrder
from adapt.train.optimizer import make_optimizer
from adapt.train.optimizer_config import OptimizerConfig, learning_rate
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only
from tests.support.ranks.rank_cases import BATCH_ROWS, OPTIMIZER

TOLERANCE = 1e-5


def plain_loop(
    config: GPTConfig,
    whole: ObjectiveConfig,
    rows: list[list[Reading]],
    steps: int,
    *,
    trains: Trained = Trained.ALL,
    measures_parts: bool = False,
    settings: OptimizerConfig = OPTIMIZER,
    skipped: tuple[int, ...] = (),
    batch_rows: int = BATCH_ROWS,
) -> dict[str, Any]:
    """Train without DeepSpeed: whole batches, AdamW, clipping; `measures_parts` differentiates each part at every second step.

    The steps in `skipped`, from 1, change nothing but the shares of the next one.
    """
    model = materialize(GPT(config), seed=3)
    train_only(model, trains)
    return plain_loop_of(
        model, whole, rows, steps, measures_parts=measures_parts, settings=settings, skipped=skipped, batch_rows=batch_rows
    )


def plain_loop_of(
    model: GPT | HFModel,
    whole: ObjectiveConfig,
    rows: list[list[Reading]],
    steps: int,
    *,
    measures_parts: bool = False,
    settings: OptimizerConfig = OPTIMIZER,
    skipped: tuple[int, ...] = (),
    batch_rows: int = BATCH_ROWS,
) -> dict[str, Any]:
    """Train a model whose trained parameters were chosen."""
    optimizer = make_optimizer(model, settings)
    tables = [model.embedding.weight] if isinstance(model, GPT) else []
    shares = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    order = StepOrder(n_rows=len(rows), batch=batch_rows, seed=5)
    history = []
    for step in range(steps):
        places = order.rows_at(step)
        batch = collate([rows[index] for index, _ in places], 1, step, [seed_for(5, step, *place) for place in places])
        counts, objective = part_counts(model, batch), whole.at(step / steps)
        norms = part_norms(model, batch, counts, shares, objective) if measures_parts and step % 2 else {}
        part = contribution(model, batch, counts, shares, objective, world_size=1)
        part.loss.backward()
        norm = torch.nn.utils.clip_grad_norm_(model.parameters(), OPTIMIZER.clip)
        for group in optimizer.param_groups:
            is_of_tokens = any(parameter is table for parameter in group["params"] for table in tables)
            group["lr"] = learning_rate(OPTIMIZER, step, steps) * (settings.embedding_lr_ratio if is_of_tokens else 1)
        if step + 1 not in skipped:
            optimizer.step()
            model.after_step([layer.counts_E for layer in part.layers])
        optimizer.zero_grad()
        shares = [layer.shares_E for layer in part.layers]
        ledger = ledger_from(model, part.sums_P, counts, part.layers, objective)
        history.append({"grad_norm": float(norm), **norms, **{f"loss/{p}": ledger[p].value for p in parts_of(model)}})
    return {"history": history, "weights": dict(named_state(model))}


def part_norms(
    model: GPT | HFModel, batch: Batch, counts_P: Tensor, shares: list[Tensor], objective: ObjectiveConfig
) -> dict[str, float]:
    """Differentiate one part after the other by itself."""
    norms = {}
    for place, (part, weight) in enumerate(zip(parts_of(model), part_weights(model, objective), strict=True)):
        if weight:
            model.zero_grad()
            contribution(model, batch, counts_P, shares, objective, world_size=1).losses_P[place].backward()
            norms[part] = float(torch.nn.utils.get_total_norm([p.grad for p in model.parameters() if p.grad is not None]))
    model.zero_grad()
    total = sum(norms.values())
    return {f"gradient_norm/{p}": n for p, n in norms.items()} | {f"gradient_share/{p}": n / total for p, n in norms.items()}


def assert_same_training(found: dict[str, Any], expected: dict[str, Any]) -> None:
    """Hold losses, gradient norms and weights of two runs against each other."""
    for want, got in zip(expected["history"], found["history"], strict=True):
        for key, value in want.items():
            assert got[key] == pytest.approx(value, rel=TOLERANCE, abs=TOLERANCE), key
    for key, value in expected["weights"].items():
        assert torch.allclose(found["weights"][key], value, rtol=0, atol=TOLERANCE), key
