"""`python -m pipelines.plan model=...`: parameters of a model by kind, and memory per rank, without allocating anything."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.errors import CheckpointError
from adapt.core.precision import say_precision
from adapt.model.config import GPTConfig
from pipelines.config.schema import PipelineConfig

if TYPE_CHECKING:
    from adapt.model.counting import ParameterCounts


def show(config: PipelineConfig, point: str | None) -> None:
    """Print the counts and the memory of one model under one engine configuration.

    Raises:
        ConfigError: the experts cannot be shared so, or it does not fit in `engine.memory_gb`.
    """
    from adapt.model.expert_parallel import check_share  # these import torch
    from adapt.model.gpt import GPT
    from adapt.train.memory_plan import check_memory, plan_activations, plan_memory, plan_scratch

    counts = _counts(config)
    lines = [f"{'parameters':<14} {'count':>16} {'billions':>9}"]
    for name, count in [
        *counts.by_kind.items(),
        ("total", counts.total),
        ("active", counts.active),
        ("dense part", counts.dense),
    ]:
        lines.append(f"{name:<14} {count:>16,} {count / 1e9:>9.3f}")
    say_precision(config.engine.auto_precision())
    engine = config.engine.resolved()
    lines.append("")
    memory = plan_memory(counts, engine, config.offload)
    activations = "without activations"
    if isinstance(config.model, GPTConfig):
        model = GPT(config.model)
        check_share(model.expert_counts, engine.expert_parallel)
        memory |= plan_activations(config.model, engine, model.router_traits.experts_per_token)
        activations = f"{engine.micro_batch} rows at a time, activation checkpointing {engine.activation_checkpointing.value}"
    lines.append(
        f"training memory per rank, GB (ZeRO-{engine.zero_stage}, {engine.precision.value}, {engine.world_size} ranks, expert "
        f"parallel {engine.expert_parallel}, {activations})"
    )
    for name, size in memory.items():
        lines.append(f"{name:<14} {size / 1e9:>16.2f}")
    lines.append(f"{'total':<14} {sum(memory.values()) / 1e9:>16.2f}")
    scratch = plan_scratch(counts, engine, config.offload)
    if scratch:
        lines += ["", f"{'scratch file':<14} {scratch / 1e9:>16.2f} GB per rank on the disk of run.dir"]
    sys.stdout.write("\n".join(lines) + "\n")
    if isinstance(config.model, GPTConfig):
        check_memory(config.model, engine, config.offload)


def _counts(config: PipelineConfig) -> ParameterCounts:
    from adapt.model.counting import count_hf_parameters, count_parameters

    if isinstance(config.model, GPTConfig):
        return count_parameters(config.model)
    place = Path(config.model.path)
    if not is_hf_directory(place):
        raise CheckpointError(f"{place}: is not a Hugging Face directory (no config.json with a model_type)")
    return count_hf_parameters(place)
