"""One training job on one rank: measure held-out rows, train, measure again, and write the model's checkpoint."""

from __future__ import annotations

import json
import logging
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from torch import Tensor

from adapt.checkpoint.offload import OffloadConfig, OptimizerIn
from adapt.checkpoint.weights import save_trained
from adapt.core.artifacts import FIGURES_FILE, short_key, write_atomically
from adapt.core.faults import writable
from adapt.core.json_files import write_json
from adapt.core.runtime import RankInfo, seed_for
from adapt.core.typed import to_plain
from adapt.model.buffers import named_state
from adapt.model.distillation import Teacher
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.objective import PartValue
from adapt.objective_config import ObjectiveConfig
from adapt.text.contract import TextTokenizer
from adapt.text.packing import FirstRows, InTurn, RowSource
from adapt.train.chosen_experts import choose_experts, said_of_chosen, train_only_chosen
from adapt.train.cost_estimate import estimate
from adapt.train.engine import Engine
from adapt.train.engine_config import EngineConfig, deepspeed_config
from adapt.train.expert_loads import ExpertLoads, Shares, compared
from adapt.train.live import LiveFile
from adapt.train.loop import Trainer, TrainResult
from adapt.train.measured_cost import longest_row, peak_bytes
from adapt.train.paged_adamw import Paging
from adapt.train.perplexity import ppl_increase
from adapt.train.shrinking import shrink
from adapt.train.tensor_stream import TensorsOnDisk, save_one_by_one
from adapt.train.trackers import open_tracker
from adapt.train.tracking import RunIdentity, TrackerConfig
from adapt.train.train_config import TrainConfig
from adapt.train.trainable import train_only
from adapt.train.training_state import load_moments, save_moments
from adapt.train.zero0_engine import open_engine

HISTORY_FILE = "history.jsonl"
HELD_OUT_FILE = "held_out.json"
OUTCOME_FILE = "outcome.json"
DEEPSPEED_FILE = "deepspeed.json"
GENERAL_FILE = "general.json"
GENERAL_TEXT = "general text"
_BEGUN_TOKENS, _CONTINUED_TOKENS = 12, 24
Losses = list[list[float]]  # by row: the sum of NLL, the number of targets
_SAID = ("beginning", "before", "after")

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Settings of a job and where it writes: `result` becomes the artifact, `work` outlives a kill.

    `moments_from` is a checkpoint's directory whose optimizer moments are taken; absent, they start at 0. Where perplexity on
    general text rose by more than the share `most_increase`, only a part of the change is kept; absent, all of it is.
    """

    engine: EngineConfig
    objective: ObjectiveConfig
    train: TrainConfig
    tracker: TrackerConfig
    name: str
    group: str
    stage: str
    seed: int
    result: str
    work: str
    tracking_dir: str
    offload: OffloadConfig = field(default_factory=OffloadConfig)
    moments_from: str | None = None
    most_increase: float | None = None


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Rows to train on, held-out rows by name (a domain, a task), and rows of general text that must not be forgotten.

    Of so many of the last, `continuations`, the beginning is continued greedily, before and after. Rows to read `first`
    have steps of their own. `start` reads the weights again that training started from.
    """

    training: RowSource
    held_out: Mapping[str, RowSource]
    general: RowSource | None = None
    continuations: int = 0
    first: FirstRows | None = None
    start: Callable[[], Iterable[tuple[str, Tensor]]] | None = None


def run_training(
    model: GPT | HFModel,
    tokenizer: TextTokenizer,
    data: TrainData,
    job: TrainJob,
    rank: RankInfo,
    teacher: Teacher | None = None,
) -> None:
    """Train a model, by a teacher where one is given, and leave its checkpoint, history and held-out ledgers in `job.result`.

    Raises:
        TrainingError: a loss or a norm is not finite.
        ConfigError: the disk cannot hold the states, or the optimizer's scratch file.
    """
    result, work = Path(job.result), Path(job.work)
    train_only(model, job.train.trains, job.train.lora, job.seed)
    on_host = job.offload.optimizer is OptimizerIn.CPU
    engine = open_engine(model, job.engine, job.train.decayed_optimizer, rank, paging_of(job, rank), on_host=on_host)
    if job.moments_from is not None:
        load_moments(Path(job.moments_from), engine)
    trainer = Trainer(engine, job.engine, job.objective, job.seed, teacher)
    identity = RunIdentity(
        name=job.name, group=job.group, stage=job.stage, key=short_key(work), directory=Path(job.tracking_dir),
        config={"train": to_plain(job.train), "objective": to_plain(job.objective), "seed": job.seed},
    )  # fmt: skip
    attempt = _attempt(work, rank)
    with open_tracker(job.tracker, identity, rank.is_main) as tracker:
        started = time.monotonic()
        before = _measured(trainer, data)
        _choose_experts(engine, before.loads, job)
        beginnings = _beginnings(data)
        said_before = trainer.continuations(beginnings, _CONTINUED_TOKENS)
        if rank.is_main:
            _say_estimate(model, data, job, time.monotonic() - started)
        live = LiveFile(work) if rank.is_main else None
        outcome = trainer.train(data.training, job.train, work, tracker, time.monotonic() - started, live, data.first)
        after = _measured(trainer, data)
        kept = _shrunk(engine, trainer, data, job, before.general, after.general)
        if kept < 1:
            after = _measured(trainer, data)
        said_after = trainer.continuations(beginnings, _CONTINUED_TOKENS)
        tracker.conclude(_held_out_values(before.ledgers, after.ledgers), {})
    if rank.is_main:
        said = list(zip(beginnings, said_before, said_after, strict=True))
        with writable(result):
            save_trained(result, model, engine.named_weights(), tokenizer, job.train.save_precision)
            _write_figures(result, job, outcome, before, after, [tuple(map(tokenizer.decode, each)) for each in said])
            figures = {
                "tokens_per_s": outcome.tokens_per_s, "attempts": attempt, "skipped_steps": outcome.skipped_steps,
                "kept_change": kept, "peak_bytes": peak_bytes(), "row_tokens": longest_row(data.training),
            }  # fmt: skip
            write_json(work / OUTCOME_FILE, figures)
    else:
        for _ in engine.named_weights():  # gathering is a collective
            pass
    if job.train.keeps_moments:
        with writable(result):
            save_moments(result, engine)
    engine.barrier()
    engine.close()


def _write_figures(
    result: Path, job: TrainJob, outcome: TrainResult, before: _Measured, after: _Measured, said: Sequence[tuple[str, ...]]
) -> None:
    """Write a training's history and what was measured before and after it; `said` are beginnings with both continuations."""
    lines = "".join(json.dumps(line) + "\n" for line in outcome.history)
    (result / HISTORY_FILE).write_text(lines, encoding="utf-8")
    held_out = {name: {"before": _values(before.ledgers[name]), "after": _values(ledger)} for name, ledger in after.ledgers.items()}
    write_json(result / HELD_OUT_FILE, held_out)
    if after.general:
        texts = [dict(zip(_SAID, each, strict=True)) for each in said]
        write_json(result / GENERAL_FILE, {"before": before.general, "after": after.general, "continuations": texts})
    if outcome.loads:
        ExpertLoads(steps=outcome.loads, measured=compared(before.loads, after.loads)).write(result / FIGURES_FILE)
    write_json(result / DEEPSPEED_FILE, deepspeed_config(job.engine, job.train.optimizer))


def _choose_experts(engine: Engine, loads: Mapping[str, Shares], job: TrainJob) -> None:
    """Train only the experts that the held-out rows are routed to, where the settings say so."""
    coverage, model = job.train.expert_coverage, engine.module
    if coverage is None:
        return
    assert isinstance(model, GPT | HFModel)
    chosen = choose_experts([shares for name, shares in loads.items() if name != GENERAL_TEXT], coverage)
    n_trained = train_only_chosen(model, chosen, model.expert_counts, job.engine.expert_share(engine.rank.rank))
    if engine.rank.is_main:
        logger.info("%s", said_of_chosen(chosen, model.expert_counts, n_trained))


def _shrunk(engine: Engine, trainer: Trainer, data: TrainData, job: TrainJob, before: Losses, after: Losses) -> float:
    """Keep as much of the change as general text allows, and return that share."""
    limit, general = job.most_increase, data.general
    if limit is None or general is None:
        return 1.0
    before_R2 = np.asarray(before)
    whole = ppl_increase(before_R2, np.asarray(after))
    if whole <= limit:
        return 1.0
    place = Path(job.work)
    places = {"trained": place / ".trained.safetensors", "start": place / ".start.safetensors"}
    names = [name for name, _ in named_state(engine.module)]
    if engine.rank.is_main:
        with writable(place):
            save_one_by_one(places["trained"], engine.named_weights(), names)
            save_one_by_one(places["start"], () if data.start is None else data.start(), names)
    else:
        for _ in engine.named_weights():  # gathering is a collective
            pass
    engine.barrier()

    def measure() -> float:
        return ppl_increase(before_R2, trainer.row_losses(general)[0])

    share = shrink(engine, TensorsOnDisk(places["trained"]), TensorsOnDisk(places["start"]), measure, whole, limit)
    engine.barrier()
    if engine.rank.is_main:
        for file in places.values():
            file.unlink()
    return share


def paging_of(job: TrainJob, rank: RankInfo) -> Paging | None:
    """Return which files a rank trains with, if any."""
    return Paging.of(job.offload, Path(job.work) / f".optimizer-{rank.rank:05d}", seed_for(job.seed, "rank", rank.rank))


@dataclass(frozen=True, kw_only=True)
class _Measured:
    """The ledgers of the held-out rows by name, the losses of the rows of general text, and experts' loads on all of these."""

    ledgers: dict[str, dict[str, PartValue]]
    general: Losses
    loads: dict[str, Shares]


def _measured(trainer: Trainer, data: TrainData) -> _Measured:
    found = {name: trainer.measure(rows) for name, rows in data.held_out.items()}
    loads = {name: shares for name, (_, shares) in found.items()}
    general: Losses = []
    if data.general is not None:
        losses_R2, loads[GENERAL_TEXT] = trainer.row_losses(data.general)
        general = losses_R2.tolist()
    return _Measured(ledgers={name: ledger for name, (ledger, _) in found.items()}, general=general, loads=loads)


def _beginnings(data: TrainData) -> list[list[int]]:
    """Return how rows of general text begin: their first document's start and some tokens, for rows that go on after them."""
    found: list[list[int]] = []
    for row in range(0 if data.general is None else len(data.general)):
        assert data.general is not None
        inputs_T = data.general.row(row, 0)[0].inputs_T
        if len(inputs_T) > _BEGUN_TOKENS and len(found) < data.continuations:
            found.append(inputs_T[:_BEGUN_TOKENS].tolist())
    return found


def _held_out_values(*measured: Mapping[str, Mapping[str, PartValue]]) -> dict[str, float]:
    """Return the losses of held-out rows before and after by one name each."""
    return {
        f"held_out/{name}/{part}/{when}": value.value
        for when, ledgers in zip(("before", "after"), measured, strict=True)
        for name, ledger in ledgers.items()
        for part, value in ledger.items()
    }


def _say_estimate(model: GPT | HFModel, data: TrainData, job: TrainJob, measured_s: float) -> None:
    """Say what the run will take, from its first step's rows and the time that measuring took."""
    order = InTurn(source=data.training, batch=job.train.batch_rows, seed=job.seed, first=data.first)
    rows, at_first = order.rows_at(0)
    tokens_per_step = sum(len(reading) for at in at_first for reading in rows.row(*at))
    sources = [*data.held_out.values(), *([] if data.general is None else [data.general])]
    measured = sum(len(reading) for source in sources for row in range(len(source)) for reading in source.row(row, 0))
    speed = measured / max(measured_s, 1e-9) if measured else None
    logger.info("%s: %s", job.stage, estimate(model, job.train, tokens_per_step, speed, Path(job.work), measured_s))


def _attempt(work: Path, rank: RankInfo) -> int:
    """Count how often this job was started."""
    if not rank.is_main:
        return 0
    place = work / "attempts"
    attempt = int(place.read_text()) + 1 if place.is_file() else 1
    write_atomically(place, str(attempt))
    return attempt


def _values(ledger: Mapping[str, PartValue]) -> dict[str, Any]:
    return {part: {"value": value.value, "count": value.count} for part, value in ledger.items()}
