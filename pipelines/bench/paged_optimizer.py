"""Training steps with optimizer state and gradients in scratch files, with weights there too, and with all of it in memory.

Options: stages= (0,2: ZeRO stages), hidden= (512), layers= (6), experts= (8), vocab= (8000), rows= (8, of 256 tokens), rounds= (5),
threads= (1), clock= (wall; or cpu on one thread: the processor's seconds, those of the threads that read and write included), dir=
(where the scratch files are, else the system's directory for such).

One rank on the CPU, in fp32, a process for each stage. Steps of all ways are timed in turn; pages stay cached where memory has
room for them. `bytes/parameter` is private memory for everything, weights and gradients included, after a step; `at most` is its
peak in a step, activations included. The memory of a small model in the same process is not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo, generator_for
from adapt.core.spans import LabelForm, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import CausalBase
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import Paging, weights_in_place
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.options import is_cpu_time, number, only, some_of
from pipelines.bench.own_memory import private_mib, private_peak_mib
from pipelines.ranks.fresh_processes import as_a_rank, in_child

_NAME = "paged_optimizer"
_KNOWN = ("stages", "hidden", "layers", "experts", "vocab", "rows", "rounds", "threads", "clock", "dir")
_STAGES = ("0", "1", "2")
_MEMORY, _PAGED, _MAPPED = "memory", "paged", "mapped"
_CONTEXT, _MASK = 256, 4
_MOST_TIME, _MOST_BYTES = 1.5, 2


@dataclass(frozen=True, kw_only=True)
class PagedTimes:
    """Medians in seconds by way, and private bytes a parameter, after a step and at the peak of one."""

    parameters: int
    backward: Mapping[str, float]
    update: Mapping[str, float]
    private: Mapping[str, float]
    peak: Mapping[str, float]

    def step(self, way: str) -> float:
        return self.backward[way] + self.update[way]


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    rows, rounds, threads = (number(_NAME, options, key, default) for key, default in (("rows", 8), ("rounds", 5), ("threads", 1)))
    is_cpu = is_cpu_time(_NAME, options, threads, "cpu")
    hidden = number(_NAME, options, "hidden", 512)
    model = GPTConfig(
        n_layers=number(_NAME, options, "layers", 6),
        hidden_size=hidden,
        n_heads=max(hidden // 64, 1),
        context_length=_CONTEXT,
        vocab_size=number(_NAME, options, "vocab", 8000),
        experts=[number(_NAME, options, "experts", 8)],
    )
    model.validate()
    scratch = options.get("dir")
    if scratch is not None and not Path(scratch).is_dir():
        raise ConfigError(f"bench {_NAME}: dir={scratch}: no such directory")
    found = []
    for stage in some_of(_NAME, options, "stages", _STAGES, ("0", "2")):
        times = in_child(as_a_rank(threads), threads, time_updates, model, int(stage), rows, rounds, scratch, is_cpu)
        found.append(_row(times, int(stage), threads))
    return found


def time_updates(model: GPTConfig, stage: int, rows: int, rounds: int, scratch: str | None, is_cpu: bool) -> PagedTimes:
    """Time all ways on this process, as the only rank."""
    from adapt.train.engine import Engine  # imports DeepSpeed, which only this process needs
    from adapt.train.zero0_engine import open_engine

    batch = _batch(model, rows)
    engine_config = EngineConfig(zero_stage=stage, micro_batch=rows, precision=Precision.FP32)
    rank = RankInfo(rank=0, world_size=1, local_rank=0)
    private: dict[str, float] = {}
    peak: dict[str, float] = {}
    ways: dict[str, Callable[[], object]] = {}

    def opened(config: GPTConfig, paging: Paging | None) -> Engine:
        with weights_in_place(paging, only_births=True):
            model = materialize(GPT(config), seed=0)
        return open_engine(model, engine_config, OptimizerConfig(), rank, paging)

    def stepped(engine: Engine) -> None:
        _accumulate(engine, batch)
        engine.step(0.0)

    with tempfile.TemporaryDirectory(prefix="bench_paged_", dir=scratch) as place:
        paged = Paging(place=Path(place) / "scratch")
        pagings = {_MEMORY: None, _PAGED: paged, _MAPPED: replace(paged, has_weights=True)}
        stepped(opened(replace(model, n_layers=2, hidden_size=64, n_heads=1), None))
        engines: list[Engine] = []
        for name, paging in pagings.items():
            before = private_mib()
            engine = opened(model, paging)
            engines.append(engine)
            stepped(engine)
            parameters = sum(parameter.numel() for parameter in engine.module.parameters())
            private[name] = (private_mib() - before) * 2**20 / parameters
            peak[name] = (private_peak_mib(partial(stepped, engine)) - before) * 2**20 / parameters
            ways |= {f"{name} backward": partial(_accumulate, engine, batch), f"{name} update": partial(engine.step, 0.0)}
        medians = interleaved_medians(ways, rounds, cpu_seconds if is_cpu else wall_seconds)
        for engine in engines:
            engine.close()
    return PagedTimes(
        parameters=parameters,
        backward={name: medians[f"{name} backward"] for name in pagings},
        update={name: medians[f"{name} update"] for name in pagings},
        private=private,
        peak=peak,
    )


def _accumulate(engine: Any, batch: Batch) -> None:
    base = cast(CausalBase, engine.module)
    even = [torch.full((count,), 1.0 / count) for count in base.expert_counts]
    counts = part_counts(base, batch)
    engine.accumulate(lambda: contribution(base, batch, counts, even, ObjectiveConfig(), 1).loss, is_last=True)


def _batch(model: GPTConfig, rows: int) -> Batch:
    ids = [generator_for(_NAME, row).integers(_MASK + 1, model.vocab_size, _CONTEXT) for row in range(rows)]
    return collate([[read_with_targets(SpannedText(ids_T=i, kinds_T=i * 0), LabelForm.CLM, _MASK)] for i in ids], step=0)


def _row(times: PagedTimes, stage: int, threads: int) -> dict[str, Any]:
    row: dict[str, Any] = {"ZeRO": stage, "threads": threads, "parameters": times.parameters}
    for way in times.update:
        row |= {f"{way} step ms": 1000 * times.step(way), f"{way} update ms": 1000 * times.update[way]}
    for way in (_PAGED, _MAPPED):
        row[f"{way} step ratio"] = times.step(way) / times.step(_MEMORY)
    row["most"] = _MOST_TIME
    for way in times.private:
        row |= {f"{way} bytes/parameter": times.private[way], f"{way} at most": times.peak[way]}
    return row | {"most bytes": _MOST_BYTES}


register(
    Benchmark(
        name=_NAME,
        title="Training step with state, gradients and weights in scratch files, and the private memory of it all",
        baseline="memory: the same engine with all of it in memory, timed in turn on the same batch",
        run=_run,
    )
)
