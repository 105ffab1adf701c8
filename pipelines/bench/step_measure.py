"""What `bench step` does in its child processes: time training steps of a sparse and a dense model, and of the loop around them.

On a CPU the models run as in training: under the engine (ZeRO-2, one rank), on rows of a packed corpus, through the objective of
pretraining. On CUDA, where a large sparse model's optimizer states would not fit on one device, forward and backward run on the
bare model in the number format of its weights, over rows of one document each, and the micro-batch is the largest that fits.
"""

from __future__ import annotations

import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo, generator_for
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.config import GPTConfig
from adapt.model.counting import count_parameters
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import CausalBase
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig, PartWeights
from adapt.text.corpus import find_corpus, read_documents
from adapt.text.packing import PackedCorpus, RowSource, StepOrder
from adapt.text.tokenized_corpus import open_tokenized, tokenize_corpus
from adapt.text.tokenizer import TokenizerConfig, train_tokenizer
from adapt.train.engine_config import EngineConfig
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig
from pipelines.bench.contract import Stopwatch, cpu_seconds, cuda_seconds, interleaved_medians, wall_seconds
from pipelines.bench.plain_loop import plain_step
from pipelines.config.schema import PretrainConfig

SPARSE, DENSE = "sparse", "dense"
_PLAIN = "plain"
_TOKENIZER_WORDS = 2400
_MICRO_BATCHES = (32, 16, 8, 4, 2, 1)


@dataclass(frozen=True, kw_only=True)
class StepCase:
    """A sparse model and its batch; the dense model is the same with an MLP in place of every routed layer.

    `rows` absent: on a CPU as many as it takes to hold `tokens`, on CUDA the most that fit.
    """

    name: str
    model: GPTConfig
    precision: Precision
    tokens: int
    rows: int | None = None
    device: str = "cpu"

    @property
    def models(self) -> dict[str, GPTConfig]:
        return {SPARSE: self.model, DENSE: replace(self.model, experts=[0])}


@dataclass(frozen=True, kw_only=True)
class LoopShare:
    """What the training loop makes of a model: tokens it predicts a second, and the share of a step outside the engine's calls."""

    tokens_per_s: float
    outside: float


@dataclass(frozen=True, kw_only=True)
class PlainShare:
    """The plain loop: tokens it predicts a second, and whether it was compiled."""

    tokens_per_s: float
    how: str


@dataclass(frozen=True, kw_only=True)
class StepTimes:
    """Median seconds of forward + backward and of the optimizer step (none on CUDA), and what the loop adds."""

    rows: int
    tokens: int
    seconds: Mapping[str, float]
    optimizer: Mapping[str, float]
    loops: Mapping[str, LoopShare]
    data_tokens_per_s: float | None
    max_load: float
    flops: float
    plain: PlainShare | None = None


def time_steps(case: StepCase, repeats: int, loop_steps: int, corpus: str, is_cpu_time: bool) -> StepTimes:
    """Time steps of both models on this device."""
    if case.device != "cpu":
        return _on_cuda(case, repeats)
    return _on_cpu(case, repeats, loop_steps, corpus, cpu_seconds if is_cpu_time else wall_seconds)


def _on_cpu(case: StepCase, repeats: int, loop_steps: int, corpus: str, stopwatch: Stopwatch) -> StepTimes:
    from adapt.train.engine import Engine  # imports DeepSpeed, which only this process needs
    from adapt.train.loop import Trainer

    settings = PretrainConfig()
    objective = ObjectiveConfig(weights=PartWeights(pseudo_label=settings.span_mask_weight))
    rank = RankInfo(rank=0, world_size=1, local_rank=0)
    with tempfile.TemporaryDirectory() as place:
        source = _packed(case, corpus, Path(place), settings.span_mask_share)
        order, batch = _first_batch(case, source)
        engine_config = EngineConfig(zero_stage=2, precision=case.precision, micro_batch=order.batch)
        engines = {
            name: Engine(materialize(GPT(config), seed=0), engine_config, settings.optimizer, rank)
            for name, config in case.models.items()
        }
        counts = {name: part_counts(cast(CausalBase, engine.module), batch) for name, engine in engines.items()}
        loads: dict[str, float] = {}
        steps: dict[str, Callable[[], object]] = {}
        for name, engine in engines.items():

            def accumulate(name: str = name, engine: Engine = engine) -> None:
                engine.accumulate(lambda: _loss(engine.module, batch, counts[name], objective, loads, name), is_last=True)

            steps[name] = accumulate
            steps[f"{name} optimizer"] = partial(engine.step, 0.0)
        dense, rows = case.models[DENSE], max(round(_n_tokens(batch) / case.model.context_length), 1)
        steps[_PLAIN], how = plain_step(dense, rows, case.precision, settings.optimizer)
        seconds = interleaved_medians(steps, repeats, stopwatch)
        loops = {}
        for name, engine in engines.items():
            timed = _TimedEngine(engine, loop_steps)
            trainer = Trainer(cast(Any, timed), engine_config, objective, seed=0)
            train = TrainConfig(steps=loop_steps + 2, batch_rows=order.batch, optimizer=settings.optimizer)
            with suppress(_Enough):  # before the loop comes to save its state
                trainer.train(source, train, Path(place) / name, NoTracker())
            loops[name] = timed.share(int((batch.targets_BT >= 0).sum()))
        data_tokens_per_s = _data_speed(source, order, loop_steps)
    return StepTimes(
        rows=order.batch,
        tokens=_n_tokens(batch),
        seconds={name: seconds[name] for name in case.models},
        optimizer={name: seconds[f"{name} optimizer"] for name in case.models},
        loops=loops,
        data_tokens_per_s=data_tokens_per_s,
        max_load=loads[SPARSE],
        flops=_flops(case.model, _n_tokens(batch)),
        plain=PlainShare(tokens_per_s=rows * (case.model.context_length - 1) / seconds[_PLAIN], how=how),
    )


def _on_cuda(case: StepCase, repeats: int) -> StepTimes:
    models = {name: _filled(GPT(config), case) for name, config in case.models.items()}
    loads: dict[str, float] = {}
    for rows in _MICRO_BATCHES if case.rows is None else (case.rows,):
        steps = _bare_steps(case, models, rows, loads)
        if _fits(steps):
            break
        for model in models.values():
            model.zero_grad()
        torch.cuda.empty_cache()
    else:
        raise ConfigError(f"bench step: {case.name} does not fit on this device with {rows} rows; take fewer, or a smaller model")
    tokens = rows * case.model.context_length
    return StepTimes(
        rows=rows,
        tokens=tokens,
        seconds=interleaved_medians(steps, repeats, cuda_seconds),
        optimizer={},
        loops={},
        data_tokens_per_s=None,
        max_load=loads[SPARSE],
        flops=_flops(case.model, tokens),
    )


def _bare_steps(case: StepCase, models: Mapping[str, GPT], rows: int, loads: dict[str, float]) -> dict[str, Callable[[], object]]:
    """Return forward and backward of each model on a batch of so many rows; gradients go at the end."""
    objective = ObjectiveConfig()
    batch = collate([[_document(case.model, row)] for row in range(rows)])
    counts = {name: part_counts(model, batch) for name, model in models.items()}
    batch = batch.to(torch.device(case.device))

    def step(name: str) -> None:
        _loss(models[name], batch, counts[name], objective, loads, name).backward()
        models[name].zero_grad()

    return {name: partial(step, name) for name in models}


def _fits(steps: Mapping[str, Callable[[], object]]) -> bool:
    try:
        for step in steps.values():
            step()
    except torch.OutOfMemoryError:
        return False
    return True


@torch.no_grad()
def _filled(model: GPT, case: StepCase) -> GPT:
    """Fill a model on its device, in which the billions of a large one take seconds: what it computes does not matter here."""
    model.to(case.precision.dtype).to_empty(device=case.device)
    for name, parameter in model.named_parameters():
        if name.endswith("bias"):
            parameter.zero_()
        elif "norm" in name:
            parameter.fill_(1.0)
        else:
            parameter.normal_(0.0, model.config.init_std)
    return model


class _Enough(Exception):
    """Ends a training run that has shown what was to be measured."""


class _TimedEngine:
    """An engine that keeps the seconds of its two calls and leaves the loop after some steps; all else is the engine's."""

    def __init__(self, engine: Any, steps: int) -> None:
        self._engine = engine
        self._steps = steps
        self._inside = 0.0
        self._ends: list[float] = []
        self._insides: list[float] = []

    def __getattr__(self, name: str) -> Any:
        return getattr(self._engine, name)

    def accumulate(self, loss: Callable[[], Tensor], is_last: bool) -> None:
        started = time.perf_counter()
        self._engine.accumulate(loss, is_last)
        self._inside += time.perf_counter() - started

    def step(self, lr: float) -> Any:
        started = time.perf_counter()
        outcome = self._engine.step(lr)
        self._ends.append(time.perf_counter())
        self._insides.append(self._inside + self._ends[-1] - started)
        self._inside = 0.0
        if len(self._ends) > self._steps:
            raise _Enough
        return outcome

    def share(self, tokens: int) -> LoopShare:
        """Return medians over the steps after the first, each from the end of the step before it to its own end."""
        wholes = [end - start for start, end in zip(self._ends, self._ends[1:], strict=False)]
        outside = [1 - inside / whole for inside, whole in zip(self._insides[1:], wholes, strict=True)]
        return LoopShare(tokens_per_s=tokens / statistics.median(wholes), outside=statistics.median(outside))


def _loss(
    model: nn.Module, batch: Batch, counts_P: Tensor, objective: ObjectiveConfig, loads: dict[str, float], name: str
) -> Tensor:
    """Return a micro-batch's loss, and keep the largest load of any layer the first time."""
    base = cast(CausalBase, model)
    even = [torch.full((count,), 1.0 / count, dtype=torch.float64) for count in base.expert_counts]
    part = contribution(base, batch, counts_P, even, objective, 1)
    if name not in loads:
        loads[name] = max((float(layer.shares_E.max() * layer.n_experts) for layer in part.layers), default=1.0)
    return part.loss


def _packed(case: StepCase, corpus: str, place: Path, span_mask_share: float) -> RowSource:
    files = find_corpus([corpus])
    words = TokenizerConfig(vocab_size=min(_TOKENIZER_WORDS, case.model.vocab_size), threads=1)
    tokenizer = train_tokenizer((d.text for file in files for d in read_documents(file)), words, "corpus")
    rows, _ = tokenize_corpus(files, tokenizer, place / "corpus", 0.0)
    return PackedCorpus(open_tokenized(rows), case.model.context_length, 0, span_mask_share, tokenizer.mask_id)


def _first_batch(case: StepCase, source: RowSource) -> tuple[StepOrder, Batch]:
    """Return the order of rows and the first step's batch; packed rows are not quite full, so tokens are counted."""
    rows = case.rows or -(-case.tokens // case.model.context_length)
    while True:
        order = StepOrder(n_rows=len(source), batch=rows, seed=0)
        batch = _collated(source, order, 0)
        if case.rows is not None or _n_tokens(batch) >= case.tokens:
            return order, batch
        rows += 1


def _n_tokens(batch: Batch) -> int:
    return int((batch.inputs.documents_BT > 0).sum())


def _collated(source: RowSource, order: StepOrder, step: int) -> Batch:
    return collate([source.row(index, epoch) for index, epoch in order.rows_at(step)], step=step)


def _data_speed(source: RowSource, order: StepOrder, steps: int) -> float:
    """Return the targets a second that rows come in and are collated with nothing else to do."""
    started, tokens = time.perf_counter(), 0
    for step in range(steps):
        tokens += int((_collated(source, order, step).targets_BT >= 0).sum())
    return tokens / (time.perf_counter() - started)


def _document(config: GPTConfig, index: int) -> Reading:
    ids = generator_for("bench step", index).integers(5, config.vocab_size, config.context_length)
    kinds = [int(Span.CONTEXT)] * len(ids)
    return read_with_targets(SpannedText(ids_T=ids, kinds_T=torch.tensor(kinds).numpy()), LabelForm.CLM)


def _flops(config: GPTConfig, tokens: int) -> float:
    """Return 6 x active parameters x tokens: two operations a weight forward, four backward; attention scores are left out."""
    positions = config.context_length * config.hidden_size  # looked up, never multiplied
    return 6.0 * (count_parameters(config).active - positions) * tokens
