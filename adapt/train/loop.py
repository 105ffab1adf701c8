"""The training loop: for each step count, accumulate, update, and write a ledger line; resumable at any step boundary."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import torch
from torch import Tensor
from tqdm import tqdm

from adapt.core.errors import TrainingError
from adapt.model.batches import Batch, collate
from adapt.model.inputs import CausalBase
from adapt.objective import (
    PARTS,
    Contribution,
    ObjectiveConfig,
    PartValue,
    balance_value,
    contribution,
    ledger_from,
    ledger_total,
    part_counts,
)
from adapt.text.packing import RowSource, StepOrder
from adapt.train.engine import Engine
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer import learning_rate
from adapt.train.tracking import Tracker
from adapt.train.train_config import TrainConfig
from adapt.train.training_state import Progress, load_newest_state, save_state

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves beside its weights: the history of ledgers, and speed."""

    history: list[dict[str, float]]
    tokens_per_s: float


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Global sums of one step or one pass."""

    ledger: dict[str, PartValue]
    prob_sums_LE: list[Tensor]
    counts_LE: list[Tensor]


class Trainer:
    """Runs one model through one objective on all ranks."""

    def __init__(self, engine: Engine, engine_config: EngineConfig, objective: ObjectiveConfig, seed: int) -> None:
        self._engine = engine
        self._config = engine_config
        self._objective = objective
        self._seed = seed
        self._base = cast(CausalBase, engine.module)
        self._expert_counts = self._base.expert_counts

    def train(self, source: RowSource, config: TrainConfig, work: Path, tracker: Tracker) -> TrainResult:
        """Train to the last step, going on from the newest state in `work`.

        Raises:
            TrainingError: a part of the loss, or the gradient norm, is not finite.
        """
        engine = self._engine
        progress = load_newest_state(work, engine)
        if progress is not None:
            logger.info("going on from step %d of %d", progress.step, config.steps)
        else:
            even = [torch.full((count,), 1.0 / count, dtype=torch.float64) for count in self._expert_counts]
            progress = Progress(step=0, lagged_shares_LE=even, history=[])
        order = StepOrder(n_rows=len(source), batch=config.batch_rows, seed=self._seed)
        engine.module.train()
        started, tokens_done = time.monotonic(), 0.0
        bar = tqdm(
            total=config.steps, initial=progress.step, desc="training", unit="step", leave=False, delay=2.0,
            disable=None if engine.rank.is_main else True,
        )  # fmt: skip
        while progress.step < config.steps:
            lr = learning_rate(config.optimizer, progress.step, config.steps)
            micro_batches = self._micro_batches(source, order.rows_at(progress.step), progress.step)
            totals = self._accumulate(micro_batches, progress.lagged_shares_LE)
            grad_norm = engine.step(lr)
            progress.step += 1
            progress.lagged_shares_LE = [counts / counts.sum().clamp_min(1) for counts in totals.counts_LE]
            line = _history_line(progress.step, lr, grad_norm, totals)
            progress.history.append(line)
            tokens_done += line["tokens"]
            tokens_per_s = tokens_done / (time.monotonic() - started)
            tracker.log({**line, "tokens_per_s": tokens_per_s}, step=progress.step)
            bar.set_postfix(loss=f"{line['loss/total']:.3f}", refresh=False)
            bar.update()
            if progress.step % config.save_every_steps == 0 or progress.step == config.steps:
                save_state(work, engine, progress, config.keep_states)
        bar.close()
        elapsed = max(time.monotonic() - started, 1e-9)
        return TrainResult(history=progress.history, tokens_per_s=tokens_done / elapsed)

    def measure(self, source: RowSource) -> dict[str, PartValue]:
        """Return the ledger of one pass over a source, without training."""
        rows = [(index, 0) for index in range(len(source))]
        chunk = self._config.micro_batch * self._engine.rank.world_size * 16
        sums = torch.zeros(len(PARTS), dtype=torch.float64)
        counts = torch.zeros_like(sums)
        probs = [torch.zeros(n, dtype=torch.float64) for n in self._expert_counts]
        loads = [torch.zeros(n, dtype=torch.float64) for n in self._expert_counts]
        even = [torch.full((n,), 1.0 / n) for n in self._expert_counts]
        self._engine.module.eval()
        with torch.no_grad():
            for start in range(0, len(rows), chunk):
                batches = self._micro_batches(source, rows[start : start + chunk], None)
                local = sum((part_counts(b, len(self._expert_counts)) for b in batches), torch.zeros_like(sums))
                parts = [self._contribution(batch, local, even) for batch in batches]
                counts += local
                sums += sum(part.sums_P.cpu() for part in parts)
                for layer in range(len(probs)):
                    probs[layer] += sum(part.prob_sums_LE[layer].cpu() for part in parts)
                    loads[layer] += sum(part.counts_LE[layer].cpu() for part in parts)
        self._engine.module.train()
        sums, counts, probs, loads = self._reduce(sums, counts, probs, loads)
        return ledger_from(sums, counts, probs, loads, self._objective)

    def _micro_batches(self, source: RowSource, rows: Sequence[tuple[int, int]], step: int | None) -> list[Batch]:
        """Cut this rank's share of a step; every rank gets the same number of micro-batches, empty ones if need be."""
        rank, world = self._engine.rank.rank, self._engine.rank.world_size
        size = self._config.micro_batch
        n_batches = -(-len(rows) // (world * size))
        mine = [source.row(index, epoch) for index, epoch in rows[rank::world]]
        mine.sort(key=lambda row: sum(len(reading) for reading in row))
        cuts = [mine[i * size : (i + 1) * size] for i in range(n_batches)]
        return [collate(cut, self._config.pad_multiple, step).to(self._engine.device) for cut in cuts]

    def _accumulate(self, micro_batches: list[Batch], lagged_LE: list[Tensor]) -> Totals:
        n_moe = len(self._expert_counts)
        local = sum((part_counts(b, n_moe) for b in micro_batches), torch.zeros(len(PARTS), dtype=torch.float64))
        counts = self._engine.all_sum(local)
        parts: list[Contribution] = []
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1

            def loss(batch: Batch = batch) -> Tensor:
                part = self._contribution(batch, counts, lagged_LE)
                parts.append(part)
                return part.loss

            self._engine.accumulate(loss, is_last)
        sums = torch.stack([part.sums_P.cpu() for part in parts]).sum(0)
        probs = [sum((p.prob_sums_LE[i].cpu() for p in parts), torch.zeros(n)) for i, n in enumerate(self._expert_counts)]
        loads = [sum((p.counts_LE[i].cpu() for p in parts), torch.zeros(n)) for i, n in enumerate(self._expert_counts)]
        sums, _, probs, loads = self._reduce(sums, torch.zeros_like(sums), probs, loads)
        ledger = ledger_from(sums, counts, probs, loads, self._objective)
        for name, part in ledger.items():
            if not math.isfinite(part.value):
                raise TrainingError(f"loss/{name} is {part.value}; the last saved state is kept; lower the learning rate")
        return Totals(ledger=ledger, prob_sums_LE=probs, counts_LE=loads)

    def _contribution(self, batch: Batch, counts: Tensor, lagged_LE: Sequence[Tensor]) -> Contribution:
        return contribution(self._base, batch, counts, lagged_LE, self._objective, self._engine.rank.world_size)

    def _reduce(
        self, sums: Tensor, counts: Tensor, probs: list[Tensor], loads: list[Tensor]
    ) -> tuple[Tensor, Tensor, list[Tensor], list[Tensor]]:
        """Sum everything over the ranks in one call."""
        pieces = [t.double() for t in (sums, counts, *probs, *loads)]
        flat = self._engine.all_sum(torch.cat(pieces))
        back = list(flat.split([len(piece) for piece in pieces]))
        n_moe = len(probs)
        return back[0], back[1], back[2 : 2 + n_moe], back[2 + n_moe :]


def _history_line(step: int, lr: float, grad_norm: float, totals: Totals) -> dict[str, float]:
    line = {"step": float(step), "lr": lr, "grad_norm": grad_norm, "loss/total": ledger_total(totals.ledger)}
    for name, part in totals.ledger.items():
        line[f"loss/{name}"] = part.value
        line[f"count/{name}"] = part.count
    line["tokens"] = sum(totals.ledger[name].count for name in PARTS[:-1])
    for layer, (probs_E, counts_E) in enumerate(zip(totals.prob_sums_LE, totals.counts_LE, strict=True)):
        line[f"router/max_load/{layer}"] = float(counts_E.max() * len(counts_E) / counts_E.sum().clamp_min(1))
        line[f"router/dead/{layer}"] = float((counts_E == 0).sum())
        line[f"router/balance/{layer}"] = balance_value(probs_E, counts_E)
    return line
