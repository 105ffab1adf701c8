"""`python -m pipelines.plan model=...`: parameters of a model by kind, and memory per rank, without allocating anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.checkpoint.foreign_places import mend_of
from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import say_precision
from adapt.model.config import GPTConfig
from adapt.train.engine_config import EngineConfig
from pipelines.config.plan_settings import PlannedDevice
from pipelines.config.schema import PipelineConfig

if TYPE_CHECKING:
    from adapt.model.counting import ParameterCounts
    from adapt.train.step_moments import MemoryPlan


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the counts and the memory of one model under one engine configuration.

    Raises:
        ConfigError: the experts cannot be shared so, there is nothing of what is to be trained, or it does not fit in
            `engine.memory_gb`.
    """
    say_precision(config.engine.auto_precision())
    engine = config.engine.resolved()
    if isinstance(config.model, GPTConfig):
        _show_own(config, config.model, engine)
    else:
        _show_foreign(config, Path(config.model.path), engine)


def _show_own(config: PipelineConfig, sizes: GPTConfig, engine: EngineConfig) -> None:
    from adapt.model.counting import count_parameters  # these import torch
    from adapt.model.expert_parallel import check_share
    from adapt.model.gpt import GPT
    from adapt.train.frozen_weights import refuse_mapped_own
    from adapt.train.memory_checks import check_memory
    from adapt.train.memory_plan import OwnModel, plan_own

    refuse_mapped_own(config.offload)
    check_share(GPT(sizes).expert_counts, engine.expert_parallel)
    on_cpu, settings = _is_on_cpu(config, engine), config.pretrain
    plan = plan_own(
        OwnModel.of(sizes), engine, config.offload, on_cpu=on_cpu, tokens=config.plan.tokens, batch_rows=settings.batch_rows
    )
    length = min(config.plan.tokens or sizes.context_length, sizes.context_length)
    rows = f"{engine.micro_batch} rows of {length} tokens, activation checkpointing {engine.activation_checkpointing.value}"
    _print(count_parameters(sizes), engine, plan, on_cpu, rows)
    check_memory(sizes, engine, config.offload, settings.optimizer, batch_rows=settings.batch_rows, tokens=length, on_cpu=on_cpu)


def _show_foreign(config: PipelineConfig, place: Path, engine: EngineConfig) -> None:
    from adapt.train.frozen_weights import check_frozen_weights  # these import torch
    from adapt.train.hf_memory_plan import plan_foreign
    from adapt.train.memory_checks import check_foreign_memory

    settings = config.continue_pretrain
    if (mend := mend_of(place, "model.path")) is not None:
        raise CheckpointError(f"{place}: {mend}")
    if not is_hf_directory(place):
        raise CheckpointError(f"{place}: is not a Hugging Face directory (no config.json with a model_type)")
    on_cpu, is_kept_near = _is_on_cpu(config, engine), settings.divergence_weight != 0  # null is 1 for such a base
    check_frozen_weights(place, config.offload, settings.trains, settings.lora, on_cpu=on_cpu)
    try:
        plan = plan_foreign(
            place, engine, config.offload, settings.trains, settings.lora, config.plan.tokens,
            on_cpu=on_cpu, batch_rows=settings.batch_rows, is_kept_near=is_kept_near,
        )  # fmt: skip
    except ConfigError as error:
        raise ConfigError(f"continue_pretrain.{error}") from error
    found = plan.training
    rows = f"{engine.micro_batch} rows of {found.tokens} tokens, activation checkpointing {engine.activation_checkpointing.value}"
    rows = rows if found.passing is not None else "without activations"
    _print(found.counts, engine, plan, on_cpu, rows, found.said)
    check_foreign_memory(
        place, engine, config.offload, settings.trains, settings.lora, settings.optimizer, settings.batch_rows,
        tokens=found.tokens, on_cpu=on_cpu, is_kept_near=is_kept_near,
    )  # fmt: skip


def _is_on_cpu(config: PipelineConfig, engine: EngineConfig) -> bool:
    from adapt.train.memory_checks import computes_on_cpus  # imports torch

    device = config.plan.device
    return computes_on_cpus(engine) if device is PlannedDevice.AUTO else device is PlannedDevice.CPU


def _print(
    counts: ParameterCounts, engine: EngineConfig, plan: MemoryPlan, on_cpu: bool, rows: str, trained: str | None = None
) -> None:
    lines = [f"{'parameters':<14} {'count':>16} {'billions':>9}"]
    for name, count in [
        *counts.by_kind.items(),
        ("total", counts.total),
        ("active", counts.active),
        ("dense part", counts.dense),
    ]:
        lines.append(f"{name:<14} {count:>16,} {count / 1e9:>9.3f}")
    lines.append("")
    if trained is not None:
        lines += [trained, ""]
    lines.append(
        f"training memory per rank on {'a CPU' if on_cpu else 'a GPU'}, GB (ZeRO-{engine.zero_stage}, {engine.precision.value}, "
        f"{engine.world_size} ranks, expert parallel {engine.expert_parallel}, {rows}); not all kinds are there at once"
    )
    lines += [f"{name:<14} {size / 1e9:>16.2f}" for name, size in plan.memory.items()]
    lines += ["", "of all kinds together, by the moment of a step, GB"]
    lines += [f"{name:<14} {size / 1e9:>16.2f}" for name, size in plan.moments.items()]
    lines.append(f"{'total':<14} {plan.total / 1e9:>16.2f}")
    if plan.host:
        lines += ["", f"{'on the host':<14} {plan.host / 1e9:>16.2f} GB per rank of the machine's memory"]
    if plan.scratch:
        lines += ["", f"{'scratch file':<14} {plan.scratch / 1e9:>16.2f} GB per rank on the disk of run.dir"]
    sys.stdout.write("\n".join(lines) + "\n")
