"""`python -m pipelines.plan model=...`: parameters of a model by kind, and memory per rank, without allocating anything."""

from __future__ import annotations

import sys
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.checkpoint.foreign_places import mend_of
from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import say_precision
from adapt.model.config import GPTConfig
from adapt.train.engine_config import EngineConfig
from pipelines.config.schema import PipelineConfig

if TYPE_CHECKING:
    from adapt.model.counting import ParameterCounts


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the counts and the memory of one model under one engine configuration.

    Raises:
        ConfigError: the experts cannot be shared so, there is nothing of what is to be trained, or it does not fit in
            `engine.memory_gb`.
    """
    from adapt.train.hf_memory_plan import check_foreign_memory, plan_foreign  # these import torch
    from adapt.train.memory_plan import check_memory

    say_precision(config.engine.auto_precision())
    engine = config.engine.resolved()
    if isinstance(config.model, GPTConfig):
        _show_own(config, config.model, engine)
        check_memory(config.model, engine, config.offload)
        return
    place, settings = Path(config.model.path), config.continue_pretrain
    if (mend := mend_of(place, "model.path")) is not None:
        raise CheckpointError(f"{place}: {mend}")
    if not is_hf_directory(place):
        raise CheckpointError(f"{place}: is not a Hugging Face directory (no config.json with a model_type)")
    try:
        plan = plan_foreign(place, engine, config.offload, settings.trains, settings.lora)
    except ConfigError as error:
        raise ConfigError(f"continue_pretrain.{error}") from error
    activations = f"{engine.micro_batch} rows of {plan.tokens} tokens at a time" if plan.has_activations else "without activations"
    note = f"{activations}; the total has the larger of activations with backward, and buckets"
    _print(plan.counts, engine, plan.memory, plan.total, note, plan.scratch, plan.said)
    check_foreign_memory(place, engine, config.offload, settings.trains, settings.lora)


def _show_own(config: PipelineConfig, sizes: GPTConfig, engine: EngineConfig) -> None:
    from adapt.model.counting import count_parameters  # these import torch
    from adapt.model.expert_parallel import check_share
    from adapt.model.gpt import GPT
    from adapt.train.memory_plan import plan_activations, plan_memory, plan_scratch

    counts, model = count_parameters(sizes), GPT(sizes)
    check_share(model.expert_counts, engine.expert_parallel)
    memory = plan_memory(counts, engine, config.offload)
    memory |= plan_activations(sizes, engine, model.router_traits.experts_per_token)
    activations = f"{engine.micro_batch} rows at a time, activation checkpointing {engine.activation_checkpointing.value}"
    scratch = sum(plan_scratch(counts, engine, config.offload).values())
    _print(counts, engine, memory, sum(memory.values()), activations, scratch)


def _print(
    counts: ParameterCounts,
    engine: EngineConfig,
    memory: Mapping[str, float],
    total: float,
    activations: str,
    scratch: float,
    trained: str | None = None,
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
        f"training memory per rank, GB (ZeRO-{engine.zero_stage}, {engine.precision.value}, {engine.world_size} ranks, expert "
        f"parallel {engine.expert_parallel}, {activations})"
    )
    for name, size in memory.items():
        lines.append(f"{name:<14} {size / 1e9:>16.2f}")
    lines.append(f"{'total':<14} {total / 1e9:>16.2f}")
    if scratch:
        lines += ["", f"{'scratch files':<14} {scratch / 1e9:>16.2f} GB per rank on the disk of run.dir"]
    sys.stdout.write("\n".join(lines) + "\n")
