"""The training loop: for each step count, accumulate, update, and write a ledger line; resumable at any step boundary."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import cast

import numpy as np
import torch
from torch import Tensor
from tqdm import tqdm

from adapt.core.progress import TimeLeft
from adapt.core.runtime import seed_for
from adapt.core.scorer import FloatArray
from adapt.core.spans import NO_TARGET, Reading, Span
from adapt.model.batches import Batch, collate
from adapt.model.continuing import greedy_tokens
from adapt.model.distillation import Teacher
from adapt.model.health import LayerSums
from adapt.model.inputs import CausalBase
from adapt.objective import (
    PARTS,
    Contribution,
    PartValue,
    check_balance_gradient,
    contribution,
    ledger_from,
    ledger_total,
    part_counts,
    part_weights,
    parts_of,
    token_nll,
)
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import FirstRows, InTurn, RowSource
from adapt.train.divergence import check_losses
from adapt.train.engine import Engine
from adapt.train.engine_config import EngineConfig
from adapt.train.expert_loads import Shares, StepLoads, is_kept, rounded
from adapt.train.gradient_shares import gradient_shares
from adapt.train.live import LiveFile
from adapt.train.measured_cost import peak_bytes
from adapt.train.optimizer import StepOutcome
from adapt.train.optimizer_config import learning_rate
from adapt.train.stopping import Stopped, StopRequest, stop_requests
from adapt.train.tracking import Tracker
from adapt.train.train_config import TrainConfig
from adapt.train.training_state import Progress, StateWriter, load_newest_state

logger = logging.getLogger(__name__)
_FIRST_SAID_S = 5.0


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """What a run leaves beside its weights: the history of ledgers, experts' loads at some steps, and speed.

    `skipped_steps` are those that overflowed in fp16.
    """

    history: list[dict[str, float]]
    loads: list[StepLoads]
    tokens_per_s: float

    @property
    def skipped_steps(self) -> int:
        return sum(int(line.get("skipped", 0)) for line in self.history)


@dataclass(frozen=True, kw_only=True)
class Totals:
    """Global sums of one step or one pass; `n_stops` ranks were asked to stop."""

    ledger: dict[str, PartValue]
    layers: list[LayerSums]
    n_stops: float


class Trainer:
    """Runs one model through one objective on all ranks."""

    def __init__(
        self, engine: Engine, engine_config: EngineConfig, objective: ObjectiveConfig, seed: int, teacher: Teacher | None = None
    ) -> None:
        self._engine = engine
        self._config = engine_config
        self._objective = objective
        self._seed = seed
        self._teacher = teacher
        self._base = cast(CausalBase, engine.module)
        self._expert_counts = self._base.expert_counts

    def train(
        self,
        source: RowSource,
        config: TrainConfig,
        work: Path,
        tracker: Tracker,
        afterwards_s: float = 0.0,
        live: LiveFile | None = None,
        first: FirstRows | None = None,
    ) -> TrainResult:
        """Train to the last step, going on from the newest state in `work`; `afterwards_s` count as time left behind it.

        The first steps read the rows of `first`, where they are given.

        Each step is shown in `live`, where it is given.

        Raises:
            Stopped: a rank was asked to stop; the state of the last step is saved.
            TrainingError: a part of the loss, or the gradient norm, is not finite, or a loss explodes; the balance loss does not
                reach a router; a state cannot be written.
        """
        engine = self._engine
        progress = self._progress(work, config)
        tracker.follow(progress.history)
        order = InTurn(source=source, batch=config.batch_rows, seed=self._seed, first=first)
        engine.module.train()
        is_first = True
        started, tokens_done = time.monotonic(), 0.0
        left = TimeLeft("training", config.steps, "step", done=progress.step, first_s=_FIRST_SAID_S, afterwards_s=afterwards_s)
        bar = tqdm(
            total=config.steps, initial=progress.step, desc="training", unit="step", leave=False, delay=2.0,
            disable=None if engine.rank.is_main else True,
        )  # fmt: skip
        with bar, StateWriter(work, engine, config.keep_states) as states, stop_requests() as request:
            while progress.step < config.steps:
                micro_batches = self._micro_batches(*order.rows_at(progress.step), progress.step)
                if is_first and config.trains_routers:
                    check_balance_gradient(self._base, micro_batches[0], self._objective)
                is_first = False
                line, n_stops = self._step(micro_batches, progress, config, request)
                tokens_done += line["tokens"]
                tokens_per_s = tokens_done / (time.monotonic() - started)
                tracker.log({**line, "tokens_per_s": tokens_per_s}, step=progress.step)
                bar.set_postfix(loss=f"{line['loss/total']:.3f}", refresh=False)
                bar.update()
                said = left.advance()
                if said is not None:
                    logger.info("%s", said)
                if live is not None:
                    live.show(
                        line, config.steps, tokens_per_s, left.left_s, peak_bytes, lambda: _rounded(progress.lagged_shares_LE)
                    )
                states.check()
                is_last = progress.step == config.steps
                if progress.step % config.save_every_steps == 0 or is_last or n_stops:
                    states.save(progress)
                if n_stops and not is_last:
                    states.wait()
                    raise Stopped(f"stopped after step {progress.step} of {config.steps}")
        elapsed = max(time.monotonic() - started, 1e-9)
        return TrainResult(history=progress.history, loads=progress.loads, tokens_per_s=tokens_done / elapsed)

    def _progress(self, work: Path, config: TrainConfig) -> Progress:
        """Return where to go on: at the newest state, or at the start."""
        progress = load_newest_state(work, self._engine)
        if progress is not None:
            logger.info("going on from step %d of %d", progress.step, config.steps)
            return progress
        even = [torch.full((count,), 1.0 / count, dtype=torch.float64) for count in self._expert_counts]
        return Progress(step=0, lagged_shares_LE=even, history=[], loads=[])

    def _step(
        self, micro_batches: list[Batch], progress: Progress, config: TrainConfig, request: StopRequest
    ) -> tuple[dict[str, float], float]:
        """Do one step and write it down in `progress`; return its line of history and how many ranks were asked to stop.

        A step that fp16 skips leaves the model as it was, routers' state too; its rows have had their turn, and the learning rate
        goes on by the step.
        """
        lr = learning_rate(config.optimizer, progress.step, config.steps)
        objective = self._objective.at(progress.step / config.steps)
        totals, shares = self._accumulate(micro_batches, progress, objective, request)
        outcome = self._engine.step(lr)
        if not outcome.is_skipped:
            self._base.after_step([layer.counts_E for layer in totals.layers])
        progress.step += 1
        progress.lagged_shares_LE = [layer.shares_E for layer in totals.layers]
        line = _history_line(progress.step, lr, outcome, totals, self._base.router_traits.looks_ahead)
        if not outcome.is_skipped:
            line |= shares
        progress.history.append(line)
        if self._expert_counts and is_kept(progress.step, config.steps):
            progress.loads.append(StepLoads(step=progress.step, shares=_rounded(progress.lagged_shares_LE)))
        return line, totals.n_stops

    def measure(self, source: RowSource) -> tuple[dict[str, PartValue], Shares]:
        """Return the ledger of one pass over a source, without the routers' own losses, and the loads of experts."""
        rows = [(index, 0) for index in range(len(source))]
        chunk = self._config.micro_batch * self._engine.rank.world_size * 16
        counts = self._zeros()
        parts: list[Contribution] = []
        even = [torch.full((n,), 1.0 / n) for n in self._expert_counts]
        self._engine.module.eval()
        with torch.no_grad():
            for start in range(0, len(rows), chunk):
                batches = self._micro_batches(source, rows[start : start + chunk], None)
                local = sum((part_counts(self._base, batch, self._teacher) for batch in batches), self._zeros())
                parts += [self._contribution(batch, local, even, self._objective) for batch in batches]
                counts += local
        self._engine.module.train()
        totals = self._totals(parts, self._engine.all_sum(counts), self._objective)
        taught = () if self._teacher is None else (self._teacher.part,)
        wanted = [part for part in totals.ledger if part in (*PARTS, *taught)]
        return {part: totals.ledger[part] for part in wanted}, _rounded([layer.shares_E for layer in totals.layers])

    @torch.no_grad()
    def row_losses(self, source: RowSource) -> tuple[FloatArray, Shares]:
        """Return (sum of NLL, number of targets) of each row of a source [R, 2], and experts' loads, on every rank."""
        engine, size = self._engine, self._config.micro_batch
        found_R2 = torch.zeros(len(source), 2, dtype=torch.float64)
        layers = [LayerSums.empty(n_experts) for n_experts in self._expert_counts]
        mine = range(engine.rank.rank, len(source), engine.rank.world_size)
        engine.module.eval()
        for start in range(0, -(-len(source) // engine.rank.world_size), size):
            rows = list(mine[start : start + size])
            batch = collate([source.row(row, 0) for row in rows], self._config.pad_multiple).to(engine.device)
            has_target = batch.targets_BT != NO_TARGET
            output = self._base(batch.inputs)
            nll_N = token_nll(self._base, output.hidden_BTH[has_target], batch.targets_BT[has_target])
            layers = [sums + LayerSums.of(report).cpu() for sums, report in zip(layers, output.routing, strict=True)]
            row_N = has_target.nonzero()[:, 0].cpu()
            sums_B = torch.zeros(len(has_target), dtype=torch.float64).index_add(0, row_N, nll_N.double().cpu())
            found_R2[rows, 0] = sums_B[: len(rows)]
            found_R2[rows, 1] = has_target.sum(1).double().cpu()[: len(rows)]
        engine.module.train()
        losses_R2 = np.asarray(engine.all_sum(found_R2.flatten()).reshape(-1, 2).numpy())
        return losses_R2, _rounded([LayerSums(engine.all_sum(sums.values_S)).shares_E for sums in layers])

    def continuations(self, beginnings: Sequence[Sequence[int]], n_tokens: int) -> list[list[int]]:
        """Return the likeliest tokens after each beginning, on every rank."""
        self._engine.module.eval()
        found = greedy_tokens(self._base, beginnings, n_tokens, self._engine.device)
        self._engine.module.train()
        return found

    def _micro_batches(self, source: RowSource, rows: Sequence[tuple[int, int]], step: int | None) -> list[Batch]:
        """Cut this rank's share of a step; every rank gets the same number of micro-batches, empty ones if need be."""
        rank, world = self._engine.rank.rank, self._engine.rank.world_size
        size = self._config.micro_batch
        n_batches = -(-len(rows) // (world * size))
        mine = [(source.row(*at), seed_for(self._seed, step, *at)) for at in rows[rank::world]]
        mine.sort(key=lambda row: sum(len(reading) for reading in row[0]))
        cuts = [mine[i * size : (i + 1) * size] for i in range(n_batches)]
        return [self._laid_out(cut, step) for cut in cuts]

    def _laid_out(self, rows: Sequence[tuple[list[Reading], int]], step: int | None) -> Batch:
        readings, keys = [row for row, _ in rows], [key for _, key in rows]
        return collate(readings, self._config.pad_multiple, step, keys).to(self._engine.device)

    def _accumulate(
        self, micro_batches: list[Batch], progress: Progress, objective: ObjectiveConfig, request: StopRequest
    ) -> tuple[Totals, dict[str, float]]:
        """Add up a step's gradient; return its totals, and the parts' shares in the gradient where they are due."""
        counts = self._engine.all_sum(
            sum((part_counts(self._base, batch, self._teacher) for batch in micro_batches), self._zeros())
        )
        parts: list[Contribution] = []

        def contribute(batch: Batch) -> Contribution:
            return self._contribution(batch, counts, progress.lagged_shares_LE, objective)

        shares = self._gradient_shares(micro_batches, contribute, progress.step + 1, objective)
        for index, batch in enumerate(micro_batches):
            is_last = index == len(micro_batches) - 1

            def loss(batch: Batch = batch) -> Tensor:
                part = contribute(batch)
                parts.append(part)
                return part.loss

            self._engine.accumulate(loss, is_last)
        totals = self._totals(parts, counts, objective, is_stopping=request.is_made)
        check_losses(self._engine.module, totals.ledger, micro_batches, self._engine.all_sum, progress.step + 1)
        return totals, shares

    def _gradient_shares(
        self, micro_batches: list[Batch], contribute: Callable[[Batch], Contribution], step: int, objective: ObjectiveConfig
    ) -> dict[str, float]:
        every = self._objective.gradient_shares_every_steps
        if not every or step % every:
            return {}
        scale = self._engine.loss_scale
        return gradient_shares(
            self._engine.module,
            parts_of(self._base, self._teacher),
            part_weights(self._base, objective, self._teacher),
            micro_batches,
            contribute,
            self._engine.norm_over_ranks,
            self._engine.rank.world_size,
            1.0 if scale is None else scale.scale,
        )

    def _contribution(self, batch: Batch, counts: Tensor, lagged_LE: Sequence[Tensor], objective: ObjectiveConfig) -> Contribution:
        return contribution(self._base, batch, counts, lagged_LE, objective, self._engine.rank.world_size, self._teacher)

    def _totals(
        self, parts: Sequence[Contribution], counts: Tensor, objective: ObjectiveConfig, *, is_stopping: bool = False
    ) -> Totals:
        """Sum everything over micro-batches, and over the ranks in one call."""
        pieces = [torch.tensor([is_stopping], dtype=torch.float64), sum((part.sums_P.cpu() for part in parts), self._zeros())]
        for index, n_experts in enumerate(self._expert_counts):
            pieces.append(sum((part.layers[index].cpu() for part in parts), LayerSums.empty(n_experts)).values_S)
        n_stops, sums, *layers = self._engine.all_sum(torch.cat(pieces)).split([len(piece) for piece in pieces])
        reduced = [LayerSums(values) for values in layers]
        ledger = ledger_from(self._base, sums, counts, reduced, objective, self._teacher)
        return Totals(ledger=ledger, layers=reduced, n_stops=float(n_stops))

    def _zeros(self) -> Tensor:
        return torch.zeros(len(parts_of(self._base, self._teacher)), dtype=torch.float64)


def _rounded(shares_LE: Sequence[Tensor]) -> Shares:
    return rounded([shares_E.tolist() for shares_E in shares_LE])


def _history_line(step: int, lr: float, outcome: StepOutcome, totals: Totals, looks_ahead: bool) -> dict[str, float]:
    line = {"step": float(step), "lr": lr}
    if outcome.grad_norm is not None:
        line["grad_norm"] = outcome.grad_norm
    if outcome.loss_scale is not None:
        line |= {"loss_scale": outcome.loss_scale, "skipped": float(outcome.is_skipped)}
    line["loss/total"] = ledger_total(totals.ledger)
    for name, part in totals.ledger.items():
        line[f"loss/{name}"] = part.value
        line[f"count/{name}"] = part.count
        line[f"weight/{name}"] = part.weight
    line["tokens"] = sum(totals.ledger[name].count for name in PARTS[: len(Span)])
    for layer, sums in enumerate(totals.layers):
        line.update({f"router/{name}/{layer}": value for name, value in sums.health().items()})
    if looks_ahead:
        line["router/looks_ahead"] = 1.0
    return line
