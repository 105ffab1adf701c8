"""What `pipelines.tune` does in the processes of one trial: training steps on rows of random tokens, timed.

A step goes through the training loop itself, with forward, backward, clipping, update and the ledger. Random tokens spread over
experts more evenly than text does.
"""

from __future__ import annotations

import contextlib
import tempfile
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import torch

from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig, OptimizerIn
from adapt.checkpoint.weights import load_model
from adapt.core.runtime import RankInfo, generator_for, rank_from_environment
from adapt.core.spans import LabelForm, Reading, SpannedText, read_with_targets
from adapt.model.config import GPTConfig
from adapt.model.expert_parallel import own_experts
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel
from adapt.model.lora_config import LoraConfig
from adapt.objective_config import ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.measured_cost import peak_bytes
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import Paging, weights_in_place
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only

_FOREIGN_TOKENS = 512
_FIRST_ID = 5  # behind special tokens


@dataclass(frozen=True, kw_only=True)
class Batch:
    """What all trials train on: rows of a step over all ranks, tokens of a row (None: the context), and steps that are timed."""

    rows: int
    tokens: int | None
    steps: int


@dataclass(frozen=True, kw_only=True)
class Subject:
    """What is trained: an untrained model of some sizes, or a checkpoint; which of its parameters, and under which loss."""

    model: GPTConfig | Path
    trains: Trained
    lora: LoraConfig
    objective: ObjectiveConfig
    optimizer: OptimizerConfig
    seed: int


@dataclass(frozen=True, kw_only=True)
class RankSteps:
    """What one rank saw: seconds of each timed step, its largest memory, tokens of a step over all ranks, and losses and norms.

    `numbers` are the losses and gradient norms of all steps, to the last bit.

    `failure` says why there is nothing to see.
    """

    seconds: tuple[float, ...] = ()
    peak: int = 0
    tokens: int = 0
    numbers: tuple[str, ...] = ()
    failure: str | None = None


class _Enough(Exception):
    """Ends training before it saves a state."""


class _Clock(NoTracker):
    """Notes when steps end, and what their losses were."""

    def __init__(self, steps: int) -> None:
        self._steps = steps
        self.ends: list[float] = []
        self.numbers: list[str] = []

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self.ends.append(time.perf_counter())
        self.numbers += [float(metrics[name]).hex() for name in ("loss/total", "grad_norm") if name in metrics]
        if len(self.ends) > self._steps:
            raise _Enough


class _RandomRows:
    """Rows of random tokens, each one document."""

    def __init__(self, n_rows: int, length: int, n_ids: int) -> None:
        self._n_rows, self._length, self._n_ids = n_rows, length, n_ids

    def __len__(self) -> int:
        return self._n_rows

    def row(self, index: int, epoch: int) -> list[Reading]:
        first = min(_FIRST_ID, self._n_ids - 1)
        ids_T = generator_for("tune", index).integers(first, self._n_ids, self._length)
        return [read_with_targets(SpannedText(ids_T=ids_T, kinds_T=ids_T * 0), LabelForm.CLM)]


def time_rank(subject: Subject, batch: Batch, engine: EngineConfig, offload: OffloadConfig, scratch: str) -> RankSteps:
    """Train on this rank, and return what it saw; running out of memory is an answer."""
    try:
        return _timed(subject, batch, engine, offload, Path(scratch))
    except (torch.OutOfMemoryError, MemoryError):
        return RankSteps(failure="out of memory")
    except RuntimeError as error:
        if "allocate memory" not in str(error):
            raise
        return RankSteps(failure="out of memory")


def _timed(subject: Subject, batch: Batch, config: EngineConfig, offload: OffloadConfig, scratch: Path) -> RankSteps:
    from adapt.train.loop import Trainer
    from adapt.train.zero0_engine import open_engine  # imports DeepSpeed, which only ranks need

    rank = rank_from_environment()
    with tempfile.TemporaryDirectory(prefix=f".tune-{rank.rank:05d}-", dir=scratch) as place:
        paging = Paging.of(offload, Path(place) / "optimizer", subject.seed)
        with weights_in_place(paging, only_births=True):
            model = _model(subject, config, offload.frozen_weights, rank)
        length = batch.tokens or min(model.context_length, _FOREIGN_TOKENS if isinstance(model, HFModel) else model.context_length)
        rows = _RandomRows(batch.rows * (batch.steps + 1), length, model.vocab_size)
        train_only(model, subject.trains, subject.lora, subject.seed)
        on_host = offload.optimizer is OptimizerIn.CPU
        engine = open_engine(model, config, subject.optimizer, rank, paging, on_host=on_host)
        clock = _Clock(batch.steps)
        train = TrainConfig(
            steps=batch.steps + 2, batch_rows=batch.rows, optimizer=subject.optimizer, trains=subject.trains, lora=subject.lora
        )
        with contextlib.suppress(_Enough):
            Trainer(engine, config, subject.objective, subject.seed).train(rows, train, Path(place), clock)
        engine.barrier()
        engine.close()
    seconds = tuple(end - start for start, end in zip(clock.ends, clock.ends[1:], strict=False))
    return RankSteps(seconds=seconds, peak=peak_bytes(), tokens=batch.rows * length, numbers=tuple(clock.numbers))


def _model(subject: Subject, config: EngineConfig, frozen: FrozenWeightsIn, rank: RankInfo) -> GPT | HFModel:
    share = config.expert_share(rank.rank)
    if isinstance(subject.model, Path):
        return load_model(subject.model, share=share, frozen=frozen)
    return materialize(own_experts(GPT(subject.model), share), subject.seed)
