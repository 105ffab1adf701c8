"""What training a Hugging Face base takes: parameters by kind, how many are trained, and memory per rank by kind.

Only what is trained has gradients, masters and moments. What forward keeps is traced on the family's own code (`traced_memory`) for
dense families; routed experts take rows by content, which cannot be traced, so the plan of a sparse base is without activations.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from functools import cache, partial
from pathlib import Path

import torch
from torch import nn

from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig, OptimizerIn, Verify
from adapt.checkpoint.store import open_store
from adapt.model.config import Recompute
from adapt.model.counting import ParameterCounts, count_hf_parameters
from adapt.model.hf import HFModel, frame_of
from adapt.model.lora_config import LoraConfig, LoraTarget
from adapt.model.low_rank import said_of_groups, targeted, trained_by_group
from adapt.train.engine_config import EngineConfig
from adapt.train.memory_plan import files_of, plan_memory, plan_scratch
from adapt.train.step_moments import FAMILY_BYTES, PROCESS_BYTES, MemoryPlan, Passing, TrainedTensors, combined
from adapt.train.traced_memory import trace_memory
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only

PLANNED_TOKENS = 512  # a task's rows are far shorter than the context of many bases


@dataclass(frozen=True, kw_only=True)
class ForeignTraining:
    """What is trained of a Hugging Face base, and what a micro-batch of `rows` full rows of `tokens` takes on its way.

    `passing` traces the latter by what is computed again; it is absent where that cannot be traced. `is_mapped`: the weights come
    as views of files in fp32, and what is frozen stays that, so that it takes no private memory. `layer` and `table` are the
    elements of frozen weights that are in use at a time: those of each tensor of the largest layer, and of the matrix that makes
    logits. `stored` are the number formats of the files.
    """

    counts: ParameterCounts
    trains: Trained
    trained: TrainedTensors
    lora: Mapping[LoraTarget, int]
    rows: int
    tokens: int
    passing: Callable[[Recompute], Passing] | None
    is_mapped: bool
    layer: tuple[int, ...]
    table: int
    stored: frozenset[torch.dtype]

    @property
    def said(self) -> str:
        """What is trained, in words."""
        if self.lora:
            return f"LoRA: {said_of_groups(self.lora, self.counts.total)}"
        return f"{self.trained.total:,} of {self.counts.total:,} parameters are trained"


@dataclass(frozen=True, kw_only=True)
class ForeignPlan(MemoryPlan):
    """The plan of a Hugging Face base, with what it is made of."""

    training: ForeignTraining


def plan_foreign(
    directory: Path,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    trains: Trained = Trained.ALL,
    lora: LoraConfig | None = None,
    tokens: int | None = None,
    *,
    on_cpu: bool = False,
    batch_rows: int | None = None,
    is_kept_near: bool = False,
) -> ForeignPlan:
    """Plan the training of a Hugging Face base; `batch_rows` make a step over all ranks (absent: a micro-batch on each).
    `is_kept_near`: the divergence from the base is a part of the loss.

    Raises as `trace_foreign` does.
    """
    found = trace_foreign(directory, engine, trains, lora, tokens)
    plan = plan_traced(found, engine, offload or OffloadConfig(), on_cpu=on_cpu, batch_rows=batch_rows, is_kept_near=is_kept_near)
    return ForeignPlan(memory=plan.memory, moments=plan.moments, scratch=plan.scratch, host=plan.host, training=found)


def trace_foreign(
    directory: Path,
    engine: EngineConfig,
    trains: Trained = Trained.ALL,
    lora: LoraConfig | None = None,
    tokens: int | None = None,
) -> ForeignTraining:
    """Count what is trained of a Hugging Face base, and trace what a micro-batch of it keeps.

    Raises:
        ConfigError: transformers or PEFT is not installed, or the base has nothing of what is to be trained.
        CheckpointError: the family is not served.
    """
    counts, lora = count_hf_parameters(directory), lora or LoraConfig()
    frame = frame_of(directory)
    by_group: Mapping[LoraTarget, int] = {}
    if trains is Trained.LORA:
        shapes = {name: parameter.shape for name, parameter in frame.named_parameters()}
        by_group = trained_by_group(shapes, targeted(shapes, lora, str(directory)), lora.rank)
        total = sum(by_group.values())
        sizes = [total]
        frame.requires_grad_(False)
    else:
        train_only(frame, trains, replace(lora, base_bits=16))
        sizes = [parameter.numel() for parameter in frame.parameters() if parameter.requires_grad]
        total = sum(sizes)
    tokens = min(frame.context_length, tokens or PLANNED_TOKENS)
    passing = None
    if not frame.expert_counts:

        def trace(what: Recompute) -> Passing:
            prepare = partial(_prepare, trains=trains, lora=lora, recompute=what)
            return trace_memory(directory, prepare, engine.micro_batch, tokens, engine.precision.dtype)

        passing = cache(trace)
    stored = frozenset(place.dtype for place in open_store(directory, Verify.NEVER).tensors.values())
    is_mapped, table = stored == {torch.float32}, frame.causal.get_output_embeddings().weight
    return ForeignTraining(
        counts=counts,
        trains=trains,
        trained=TrainedTensors(sizes=sizes, total=total, is_mapped=is_mapped),
        lora=by_group,
        rows=engine.micro_batch,
        tokens=tokens,
        passing=passing,
        is_mapped=is_mapped,
        layer=max((_frozen_sizes(layer) for layer in frame.layers()), key=sum),
        table=0 if table.requires_grad else table.numel(),
        stored=stored,
    )


def plan_traced(
    found: ForeignTraining,
    engine: EngineConfig,
    offload: OffloadConfig,
    *,
    on_cpu: bool,
    batch_rows: int | None = None,
    is_kept_near: bool = False,
) -> MemoryPlan:
    """Plan a traced training under another setting of the engine, micro-batches of fewer rows among them.

    A loss that keeps it near its base keeps the gradient by logits from the forward pass on, and reads another copy of the base
    where the model itself is not that without its factors.
    """
    width, n_trained = engine.precision.dtype.itemsize, found.trained.total
    memory = plan_memory(found.counts, engine, offload, n_trained)
    frozen = found.counts.total - (0 if found.trains is Trained.LORA else n_trained)
    stays_in_files = offload.frozen_weights is FrozenWeightsIn.MAPPED
    if found.trains is Trained.LORA:
        memory["weights"] += n_trained * width
    elif engine.precision.is_rounded and not stays_in_files:
        memory["weights"] += 4 * frozen
    if stays_in_files or (on_cpu and found.is_mapped and not engine.precision.is_rounded):
        memory["weights"] -= width * frozen
    if is_kept_near and found.trains is not Trained.LORA and not (on_cpu and found.is_mapped and not engine.precision.is_rounded):
        memory["weights"] += width * found.counts.total
    passing = None
    if found.passing is not None:
        passing = found.passing(engine.activation_checkpointing).times(engine.micro_batch / found.rows)
        if is_kept_near:
            passing = replace(passing, logits=2 * passing.logits)
        if stays_in_files and found.stored != {engine.precision.dtype}:
            passing = replace(passing, in_use=tuple(n * width for n in found.layer), table_in_use=found.table * width)
    return combined(
        memory,
        found.trained,
        passing,
        engine,
        on_cpu=on_cpu,
        batch_rows=batch_rows,
        in_files=files_of(memory, offload),
        on_host=offload.optimizer is OptimizerIn.CPU,
        process=PROCESS_BYTES + FAMILY_BYTES,
        scratch=sum(plan_scratch(found.counts, engine, offload, n_trained).values()),
    )


def _frozen_sizes(layer: nn.Module) -> tuple[int, ...]:
    return tuple(parameter.numel() for parameter in layer.parameters() if not parameter.requires_grad)


def _prepare(model: HFModel, trains: Trained, lora: LoraConfig, recompute: Recompute) -> None:
    train_only(model, trains, replace(lora, base_bits=16))  # frames have no weights to round: the plan is that of a whole base
    model.set_recompute(recompute)
