"""One training job on one rank: measure held-out rows, train, measure again, and write the model's checkpoint."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.weights import save_trained
from adapt.core.artifacts import writable, write_atomically
from adapt.core.runtime import RankInfo
from adapt.core.typed import to_plain
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.objective import ObjectiveConfig, PartValue
from adapt.text.contract import TextTokenizer
from adapt.text.packing import RowSource
from adapt.train.engine import Engine
from adapt.train.engine_config import EngineConfig, deepspeed_config
from adapt.train.loop import Trainer
from adapt.train.tracking import RunIdentity, TrackerConfig, open_tracker
from adapt.train.train_config import TrainConfig

HISTORY_FILE = "history.jsonl"
HELD_OUT_FILE = "held_out.json"
OUTCOME_FILE = "outcome.json"
DEEPSPEED_FILE = "deepspeed.json"


@dataclass(frozen=True, kw_only=True)
class TrainJob:
    """Settings of a job and where it writes: `result` becomes the artifact, `work` outlives a kill."""

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


@dataclass(frozen=True, kw_only=True)
class TrainData:
    """Rows to train on, and held-out rows by name (a domain, a task)."""

    training: RowSource
    held_out: Mapping[str, RowSource]


def run_training(model: GPT | HFModel, tokenizer: TextTokenizer, data: TrainData, job: TrainJob, rank: RankInfo) -> None:
    """Train a model and leave its checkpoint, history and held-out ledgers in `job.result`.

    Raises:
        TrainingError: a loss or a norm is not finite.
    """
    result, work = Path(job.result), Path(job.work)
    engine = Engine(model, job.engine, job.train.optimizer, rank)
    trainer = Trainer(engine, job.engine, job.objective, job.seed)
    identity = RunIdentity(
        name=job.name, group=job.group, stage=job.stage, attempt=_attempt(work, rank), directory=Path(job.tracking_dir),
        config={"train": to_plain(job.train), "objective": to_plain(job.objective), "seed": job.seed},
    )  # fmt: skip
    with open_tracker(job.tracker, identity, rank.is_main) as tracker:
        before = {name: trainer.measure(rows) for name, rows in data.held_out.items()}
        outcome = trainer.train(data.training, job.train, work, tracker)
        after = {name: trainer.measure(rows) for name, rows in data.held_out.items()}
        for name in after:
            tracker.log({f"held_out/{name}/{part}": value.value for part, value in after[name].items()}, job.train.steps)
    if rank.is_main:
        with writable(result):
            save_trained(result, model, engine.named_weights(), tokenizer, job.train.save_precision)
            lines = "".join(json.dumps(line) + "\n" for line in outcome.history)
            (result / HISTORY_FILE).write_text(lines, encoding="utf-8")
            held_out = {name: {"before": _values(before[name]), "after": _values(after[name])} for name in after}
            _write(result / HELD_OUT_FILE, held_out)
            _write(result / DEEPSPEED_FILE, deepspeed_config(job.engine, job.train.optimizer))
            _write(work / OUTCOME_FILE, {"tokens_per_s": outcome.tokens_per_s, "attempts": identity.attempt})
    else:
        for _ in engine.named_weights():  # gathering is a collective
            pass
    engine.barrier()
    engine.close()


def _attempt(work: Path, rank: RankInfo) -> int:
    """Count how often this job was started: a tracked run that was killed is not written over."""
    if not rank.is_main:
        return 0
    place = work / "attempts"
    attempt = int(place.read_text()) + 1 if place.is_file() else 1
    write_atomically(place, str(attempt))
    return attempt


def _values(ledger: Mapping[str, PartValue]) -> dict[str, Any]:
    return {part: {"value": value.value, "count": value.count} for part, value in ledger.items()}


def _write(path: Path, value: Any) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
