"""The memory plan of trainings against the peak that real ones reach, setting by setting.

Options: cases= (names from the table, separated by commas; absent: all), base= (a directory of a Hugging Face model that is trained
too, such as SmolLM2-135M's; absent: random ones only), steps= (2), threads= (1 of each rank), dir= (where trainings write, else the
system's directory for such).

Each setting is a training in processes of its own, as many as it has ranks: the model is read or made, general text is measured,
two steps are done, their state is saved, general text is measured again, and the checkpoint is written. `measured` is the largest
private (anonymous) memory of a rank on the way, `planned` what `python -m pipelines.plan` says. Models have 20 to 155 million
parameters, so that they and not the process are most of it. Parts of the plan and of the measurement are shown too:
`process` before there is a model, `opened` once the engine is made, `in` the part in which the peak was.
"""

from __future__ import annotations

import sys
import tempfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import torch

from adapt.checkpoint.offload import OffloadConfig, OptimizerIn
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.model.config import GPTConfig, Recompute
from adapt.train.engine_config import EngineConfig
from adapt.train.hf_memory_plan import plan_foreign
from adapt.train.memory_plan import OwnModel, plan_own
from adapt.train.step_moments import MemoryPlan
from adapt.train.train_config import Trained
from pipelines.bench.contract import Benchmark, register
from pipelines.bench.options import number, only
from pipelines.bench.plan_measure import Case, RankMemory, measure_rank
from pipelines.bench.random_llama import llama_settings, write_random_llama
from pipelines.ranks.fresh_processes import on_ranks

_NAME = "plan"
_KNOWN = ("cases", "base", "steps", "threads", "dir")
_FP32, _BF16 = Precision.FP32, Precision.BF16
_PAGED = OffloadConfig(optimizer=OptimizerIn.PAGED)
_LLAMA = {"hidden": 512, "layers": 6, "intermediate": 1376, "vocab": 16000, "tokens": 512}


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    base, scratch = (None if options.get(key) is None else Path(options[key]) for key in ("base", "dir"))
    for key, place in (("base", base), ("dir", scratch)):
        if place is not None and not place.is_dir():
            raise ConfigError(f"bench {_NAME}: {key}={place}: no such directory")
    steps, threads = number(_NAME, options, "steps", 2), number(_NAME, options, "threads", 1)
    with tempfile.TemporaryDirectory(prefix="bench_plan_", dir=scratch) as work:
        cases = {case.name: case for case in [*own_cases(), *_foreign_cases(base, Path(work))]}
        names = options["cases"].split(",") if "cases" in options else list(cases)
        if strange := [name for name in names if name not in cases]:
            raise ConfigError(f"bench {_NAME}: cases: no '{strange[0]}'; there are: {', '.join(cases)}")
        return [compare(cases[name], steps, threads, Path(work)) for name in names]


def compare(case: Case, steps: int, threads: int, place: Path) -> dict[str, Any]:
    """Plan a setting, run it, and return its row."""
    plan = plan_of(case)
    with tempfile.TemporaryDirectory(dir=place) as scratch:
        for name in ("result", "work"):
            (Path(scratch) / name).mkdir()
        ranks = on_ranks(case.engine.world_size, threads, measure_rank, case, steps, scratch)
    row = _row(case, plan, max(ranks, key=lambda rank: rank.peak))
    sys.stderr.write(f"{case.name}: planned {plan.total / 1e9:.2f} GB, measured {row['measured GB']:.2f}: {row['ratio']:.3f}\n")
    return row


def plan_of(case: Case) -> MemoryPlan:
    """Return what is planned for a setting."""
    model = case.model
    if isinstance(model, Path):
        return plan_foreign(
            model, case.engine, case.offload, case.trains, case.lora, case.tokens, on_cpu=True, batch_rows=case.batch_rows
        )
    own = OwnModel.of(model, case.trains)
    return plan_own(own, case.engine, case.offload, on_cpu=True, tokens=case.tokens, batch_rows=case.batch_rows)


def _gpt(experts: int = 0, context: int = 256) -> GPTConfig:
    hidden = 384 if experts else 512
    return GPTConfig(
        n_layers=8, hidden_size=hidden, n_heads=hidden // 64, context_length=context, vocab_size=8000, experts=[experts]
    )


def _engine(precision: Precision = _FP32, rows: int = 4, ranks: int = 1, **settings: Any) -> EngineConfig:
    return EngineConfig(precision=precision, micro_batch=rows, world_size=ranks, **settings)


def own_cases() -> list[Case]:
    """Return the settings of this project's models."""
    dense, long, sparse = _gpt(), _gpt(context=1024), _gpt(experts=12)
    full, selective = Recompute.FULL, Recompute.SELECTIVE
    return [
        Case(name="dense", model=dense, engine=_engine(), tokens=256),
        Case(name="dense-accumulated", model=dense, engine=_engine(), tokens=256, rows=8),
        Case(name="dense-zero0", model=dense, engine=_engine(zero_stage=0), tokens=256),
        Case(name="dense-zero1-2ranks", model=dense, engine=_engine(ranks=2, zero_stage=1), tokens=256),
        Case(name="dense-bf16", model=dense, engine=_engine(_BF16, rows=6), tokens=256),
        Case(name="dense-long", model=long, engine=_engine(rows=2), tokens=1024),
        Case(name="dense-long-recomputed", model=long, engine=_engine(rows=2, activation_checkpointing=full), tokens=1024),
        Case(name="dense-long-bf16", model=long, engine=_engine(_BF16, rows=2), tokens=1024),
        Case(name="sparse", model=sparse, engine=_engine(), tokens=256),
        Case(name="sparse-2ranks", model=sparse, engine=_engine(rows=2, ranks=2), tokens=128),
        Case(name="sparse-shared", model=sparse, engine=_engine(rows=2, ranks=2, expert_parallel=2), tokens=128),
        Case(name="sparse-paged", model=sparse, engine=_engine(), tokens=128, offload=_PAGED),
        Case(name="sparse-zero0-paged", model=sparse, engine=_engine(zero_stage=0), tokens=128, offload=_PAGED),
        Case(name="sparse-bf16-selective", model=sparse, engine=_engine(_BF16, activation_checkpointing=selective), tokens=256),
    ]


def _foreign_cases(base: Path | None, place: Path) -> Iterator[Case]:
    """Yield the settings of Hugging Face models; random ones are written below `place`, in fp32 and in bf16."""
    exact, rounded = place / "exact", place / "rounded"
    write_random_llama(exact, llama_settings(**_LLAMA))
    write_random_llama(rounded, llama_settings(**_LLAMA), torch.bfloat16)
    lora = Trained.LORA
    yield Case(name="llama-2ranks", model=exact, engine=_engine(ranks=2), tokens=128)
    yield Case(name="llama-bf16", model=rounded, engine=_engine(_BF16), tokens=256)
    yield Case(name="llama-lora", model=rounded, engine=_engine(rows=6), tokens=256, trains=lora)
    yield Case(name="llama-head-paged", model=exact, engine=_engine(), tokens=256, trains=Trained.HEAD, offload=_PAGED)
    if base is not None:
        yield Case(name="base", model=base, engine=_engine(rows=1), tokens=128)
        yield Case(name="base-zero0", model=base, engine=_engine(zero_stage=0, rows=2), tokens=128)
        yield Case(name="base-lora", model=base, engine=_engine(rows=2), tokens=192, trains=lora)
        yield Case(name="base-lora-bf16", model=base, engine=_engine(_BF16, rows=2), tokens=256, trains=lora)


def _row(case: Case, plan: MemoryPlan, found: RankMemory) -> dict[str, Any]:
    engine, memory = case.engine, plan.memory
    return {
        "setting": case.name,
        "precision": engine.precision.value,
        "ranks": engine.world_size,
        "ZeRO": engine.zero_stage,
        "rows": engine.micro_batch,
        "tokens": case.tokens,
        "measured GB": found.peak / 1e9,
        "planned GB": plan.total / 1e9,
        "ratio": plan.total / found.peak,
        "in": max(found.peaks, key=lambda part: found.peaks[part]),
        "planned in": plan.fullest,
        "process": found.base / 1e9,
        "opened": found.stood["measuring"] / 1e9,
        **{f"planned {kind}": size / 1e9 for kind, size in memory.items()},
    }


register(
    Benchmark(
        name=_NAME,
        title="Planned against measured peak of a rank's private memory, over whole trainings",
        baseline="measured: the anonymous memory that the kernel counts, every 3 ms, of the same training in processes of its own",
        run=_run,
    )
)
