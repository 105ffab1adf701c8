"""What `bench plan` does in the processes of one setting: a real training of a few steps, and where its private memory stood.

Private memory is what the kernel calls anonymous (RssAnon): pages of files, such as libraries and mapped checkpoints, are not
counted. A thread reads it every few milliseconds. When the training asks for its first rows of a kind, it has reached a new part:
held-out rows are read once the engine is made, training rows at each step, held-out rows again after the last one.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from adapt.checkpoint.offload import OffloadConfig
from adapt.checkpoint.weights import load_model
from adapt.core.runtime import RankInfo, generator_for, rank_from_environment
from adapt.core.spans import LabelForm, Reading, SpannedText, read_with_targets
from adapt.model.config import GPTConfig
from adapt.model.expert_parallel import own_experts
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel, import_transformers
from adapt.model.lora_config import LoraConfig
from adapt.objective_config import ObjectiveConfig
from adapt.text.contract import TextTokenizer
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import TrackerConfig
from adapt.train.train_config import TrainConfig, Trained
from pipelines.bench.own_memory import memory_mib

_SAMPLED_S = 0.003
_FIRST_ID = 5  # behind special tokens
PARTS = ("weights", "engine", "measuring", "steps", "ending")


@dataclass(frozen=True, kw_only=True)
class Case:
    """A setting: an untrained model of some sizes or a Hugging Face directory, what of it is trained, and how.

    `rows` make a step over all ranks; absent, one micro-batch on each.
    """

    name: str
    model: GPTConfig | Path
    engine: EngineConfig
    tokens: int
    trains: Trained = Trained.ALL
    lora: LoraConfig = LoraConfig()
    offload: OffloadConfig = OffloadConfig()
    rows: int | None = None
    save_every_steps: int = 1000

    @property
    def batch_rows(self) -> int:
        return self.rows or self.engine.micro_batch * self.engine.world_size


@dataclass(frozen=True, kw_only=True)
class RankMemory:
    """Private bytes of one rank: before a model is there, what stood when a part of training began, and the peak of each part."""

    base: int
    stood: Mapping[str, int]
    peaks: Mapping[str, int]

    @property
    def peak(self) -> int:
        return max(self.peaks.values())


class _Sampler:
    """Notes private memory while it runs, by the part that has begun last."""

    def __init__(self) -> None:
        self._ends = threading.Event()
        self._part = ""
        self.stood: dict[str, int] = {}
        self.peaks: dict[str, int] = {}

    def begin(self, part: str) -> None:
        """Begin a part; one that was left before goes on."""
        self._note()
        self._part = part
        self.stood.setdefault(part, private_bytes())
        self._note()

    @contextmanager
    def running(self) -> Iterator[None]:
        thread = threading.Thread(target=self._run, daemon=True)
        thread.start()
        try:
            yield
        finally:
            self._ends.set()
            thread.join()

    def _run(self) -> None:
        while not self._ends.wait(_SAMPLED_S):
            self._note()

    def _note(self) -> None:
        if self._part:
            self.peaks[self._part] = max(self.peaks.get(self._part, 0), private_bytes())


class _Parts:
    """Tells a sampler which part of a training has begun, by the rows that it reads; `trained_rows` are read until it ends."""

    def __init__(self, sampler: _Sampler, trained_rows: int) -> None:
        self._sampler, self._left = sampler, trained_rows

    def at_training(self) -> None:
        self._begin("steps")
        self._left -= 1

    def at_measuring(self) -> None:
        if "steps" not in self._sampler.stood:
            self._begin("measuring")
        elif not self._left:
            self._begin("ending")

    def _begin(self, part: str) -> None:
        if part not in self._sampler.stood:
            self._sampler.begin(part)


class _Rows:
    """Rows of random tokens, each one document, that call when they are read."""

    def __init__(self, n_rows: int, case: Case, n_ids: int, called: Callable[[], None]) -> None:
        self._n_rows, self._length, self._n_ids = n_rows, case.tokens, n_ids
        self._called = called

    def __len__(self) -> int:
        return self._n_rows

    def row(self, index: int, epoch: int) -> list[Reading]:
        self._called()
        first = min(_FIRST_ID, self._n_ids - 1)
        ids_T = generator_for("plan", index).integers(first, self._n_ids, self._length)
        return [read_with_targets(SpannedText(ids_T=ids_T, kinds_T=ids_T * 0), LabelForm.CLM)]


class _NoTokenizer:
    """Stands where a tokenizer would be written."""

    def save(self, directory: Path) -> None:
        return None


def private_bytes() -> int:
    """Return this process's anonymous memory."""
    return int(memory_mib("RssAnon") * 2**20)


def measure_rank(case: Case, steps: int, scratch: str) -> RankMemory:
    """Train so many steps on this rank and return what memory it took."""
    from adapt.train.job import TrainData, TrainJob, run_training  # imports DeepSpeed, which only ranks need

    rank, place = rank_from_environment(), Path(scratch)
    if isinstance(case.model, Path):
        import_transformers()
    sampler = _Sampler()
    with sampler.running():
        base = private_bytes()
        sampler.begin("weights")
        model = _model(case, rank)
        sampler.begin("engine")
        trained_rows = steps * case.batch_rows // rank.world_size + (
            case.batch_rows if rank.is_main else 0
        )  # an estimate reads some
        parts = _Parts(sampler, trained_rows)
        training = _Rows(case.batch_rows * steps, case, model.vocab_size, parts.at_training)
        general = _Rows(case.engine.micro_batch * rank.world_size, case, model.vocab_size, parts.at_measuring)
        job = TrainJob(
            engine=case.engine, objective=ObjectiveConfig(), tracker=TrackerConfig(), offload=case.offload,
            name=case.name, group="bench", stage="plan", seed=0,
            result=str(place / "result"), work=str(place / "work"), tracking_dir=scratch,
            train=TrainConfig(
                steps=steps, batch_rows=case.batch_rows, optimizer=OptimizerConfig(lr=1e-4), trains=case.trains, lora=case.lora,
                save_every_steps=case.save_every_steps,
            ),
        )  # fmt: skip
        data = TrainData(training=training, held_out={}, general=general)
        run_training(model, cast(TextTokenizer, _NoTokenizer()), data, job, rank)
    return RankMemory(base=base, stood=sampler.stood, peaks=sampler.peaks)


def _model(case: Case, rank: RankInfo) -> GPT | HFModel:
    share = case.engine.expert_share(rank.rank)
    if isinstance(case.model, Path):
        return load_model(case.model, share=share, frozen=case.offload.frozen_weights)
    return materialize(own_experts(GPT(case.model), share), seed=0)
