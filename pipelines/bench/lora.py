"""A LoRA training step of a Hugging Face model against a step that trains all of it, and the memory plan of both.

Options: hidden= (512), layers= (8), intermediate= (1376), vocab= (8000), rows= (8), tokens= (256), rank= (8), stages= (2: ZeRO
stages, of 0,2), rounds= (5), threads= (1).

A step has two micro-batches of `rows`. A random Llama-like model, 33 million parameters by default, is read from files as a base
is and trained by one rank on the CPU in fp32. `peak` is how far resident memory rises, from before the model is read until two
steps are done, in a process of its own for each way that has opened a tiny model before. Its allocator gives freed memory back at
once, so that it is what a step holds. `as a rank` is the same where the allocator keeps freed memory, as ranks of a training run
have it for speed. `plan` is what `python -m pipelines.plan` says of that, without the process itself; `bench plan` compares plans
with whole trainings. Seconds are of forward, backward and update, both ways in turn in one process that keeps freed memory.
"""

from __future__ import annotations

import ctypes
import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

from adapt.checkpoint.weights import load_model
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo, generator_for
from adapt.core.spans import LabelForm, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.inputs import CausalBase
from adapt.model.lora_config import LoraConfig
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.hf_memory_plan import plan_foreign
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.options import number, only, some_of
from pipelines.bench.own_memory import forget_peak, memory_mib
from pipelines.bench.random_llama import llama_settings, write_random_llama
from pipelines.ranks.fresh_processes import GIVE_BACK, as_a_rank, in_child

_NAME = "lora"
_KNOWN = ("hidden", "layers", "intermediate", "vocab", "rows", "tokens", "rank", "stages", "rounds", "threads")
_WAYS = {"full": Trained.ALL, "lora": Trained.LORA}
_MASK = 4


@dataclass(frozen=True, kw_only=True)
class LoraCase:
    """A base's directory, a batch of full rows, and the engine."""

    base: str
    rows: int
    tokens: int
    vocab: int
    rank: int
    stage: int

    @property
    def engine(self) -> EngineConfig:
        return EngineConfig(zero_stage=self.stage, micro_batch=self.rows, precision=Precision.FP32)


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    defaults = {"hidden": 512, "layers": 8, "intermediate": 1376, "vocab": 8000, "rows": 8, "tokens": 256, "rank": 8}
    size = {key: number(_NAME, options, key, default) for key, default in defaults.items()}
    rounds, threads = number(_NAME, options, "rounds", 5), number(_NAME, options, "threads", 1)
    found = []
    with tempfile.TemporaryDirectory(prefix="bench_lora_") as place:
        base, small = Path(place) / "base", Path(place) / "small"
        write_random_llama(base, _settings(size))
        write_random_llama(small, _settings({**size, "hidden": 64, "layers": 1, "intermediate": 64}))
        for stage in some_of(_NAME, options, "stages", ("0", "2"), ("2",)):
            case = LoraCase(
                base=str(base), rows=size["rows"], tokens=size["tokens"], vocab=size["vocab"], rank=size["rank"], stage=int(stage)
            )
            rank = as_a_rank(threads)
            peaks = {way: in_child({**rank, **GIVE_BACK}, threads, measure_peak, case, str(small), way) for way in _WAYS}
            kept = {way: in_child(rank, threads, measure_peak, case, str(small), way) for way in _WAYS}
            seconds = in_child(rank, threads, time_steps, case, rounds)
            found += [_row(case, way, peaks, kept, seconds, threads) for way in _WAYS]
    return found


def _settings(size: Mapping[str, int]) -> dict[str, Any]:
    return llama_settings(size["hidden"], size["layers"], size["intermediate"], size["vocab"], size["tokens"])


def measure_peak(case: LoraCase, small: str, way: str) -> float:
    """Return in MiB how far this process's resident memory rises while a base is read and trained for two steps."""
    warm = replace(case, base=small)
    for work in _ways(warm, way):
        work()
    ctypes.CDLL(None).malloc_trim(0)
    before = memory_mib("VmRSS")
    forget_peak()
    (step,) = _ways(case, way)
    step()
    step()
    return memory_mib("VmHWM") - before


def time_steps(case: LoraCase, rounds: int) -> dict[str, float]:
    """Return the median seconds of a step by way."""
    return interleaved_medians({way: _ways(case, way)[0] for way in _WAYS}, rounds)


def _ways(case: LoraCase, way: str) -> list[Callable[[], object]]:
    """Open a base under an engine and return its step."""
    from adapt.train.zero0_engine import open_engine  # imports DeepSpeed, which only this process needs

    model = load_model(Path(case.base))
    train_only(model, _WAYS[way], LoraConfig(rank=case.rank))
    model.train()
    engine = open_engine(model, case.engine, OptimizerConfig(), RankInfo(rank=0, world_size=1, local_rank=0))
    return [partial(_step, engine, _batch(case))]


def _step(engine: Any, batch: Batch) -> None:
    base = cast(CausalBase, engine.module)
    counts = part_counts(base, batch)
    for is_last in (False, True):
        engine.accumulate(lambda: contribution(base, batch, 2 * counts, [], ObjectiveConfig(), 1).loss, is_last=is_last)
    engine.step(1e-4)


def _batch(case: LoraCase) -> Batch:
    ids = [generator_for(_NAME, row).integers(_MASK + 1, case.vocab, case.tokens) for row in range(case.rows)]
    return collate([[read_with_targets(SpannedText(ids_T=i, kinds_T=i * 0), LabelForm.CLM, _MASK)] for i in ids], step=0)


def _row(
    case: LoraCase,
    way: str,
    peaks: Mapping[str, float],
    kept: Mapping[str, float],
    seconds: Mapping[str, float],
    threads: int,
) -> dict[str, Any]:
    plan = plan_foreign(
        Path(case.base), case.engine, trains=_WAYS[way], lora=LoraConfig(rank=case.rank), tokens=case.tokens,
        on_cpu=True, batch_rows=2 * case.rows,
    )  # fmt: skip
    planned = (plan.total - plan.memory["process"]) / 2**20
    return {
        "trains": way,
        "ZeRO": case.stage,
        "threads": threads,
        "tokens": 2 * case.rows * case.tokens,
        "parameters": plan.training.counts.total,
        "trained": plan.training.trained.total,
        "peak MiB": peaks[way],
        "plan MiB": planned,
        "plan/rank": planned / kept[way],
        "peak/full": peaks[way] / peaks["full"],
        "as a rank MiB": kept[way],
        "step s": seconds[way],
        "step/full": seconds[way] / seconds["full"],
    }


register(
    Benchmark(
        name=_NAME,
        title="Training step with LoRA of a Llama-like model: peak memory, plan and seconds",
        baseline="full: the same engine training all parameters of the same model, steps timed in turn on the same batch",
        run=_run,
    )
)
