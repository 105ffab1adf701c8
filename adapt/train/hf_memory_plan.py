"""What training a Hugging Face base takes: parameters by kind, how many are trained, and memory per rank by kind.

Only what is trained has gradients, masters and moments. What forward keeps is traced on the family's own code (`traced_memory`) for
dense families; routed experts take rows by content, which cannot be traced, so the plan of a sparse base is without activations.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from functools import partial
from pathlib import Path

from torch import nn

from adapt.checkpoint.offload import OffloadConfig
from adapt.core.errors import ConfigError
from adapt.model.counting import ParameterCounts, count_hf_parameters
from adapt.model.hf import frame_of
from adapt.model.lora_config import LoraConfig, LoraTarget
from adapt.model.low_rank import said_of_groups, targeted, trained_by_group
from adapt.train.engine_config import EngineConfig
from adapt.train.memory_plan import plan_memory, plan_scratch
from adapt.train.traced_memory import trace_memory
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only

PLANNED_TOKENS = 512  # a task's rows are far shorter than the context of many bases


@dataclass(frozen=True, kw_only=True)
class ForeignPlan:
    """Bytes per rank by kind, for full rows of `tokens`, and in its scratch file; how many parameters are trained, and by group."""

    counts: ParameterCounts
    trained: int
    lora: Mapping[LoraTarget, int]
    tokens: int
    has_activations: bool
    scratch: float
    memory: Mapping[str, float]

    @property
    def total(self) -> float:
        """What is held at the peak: when ranks exchange gradients, the activations are gone."""
        return self.total_with(1.0)

    def total_with(self, share: float) -> float:
        """Return the peak with this share of the micro-batch's rows."""
        passing = (self.memory.get("activations", 0.0) + self.memory.get("backward", 0.0)) * share
        lasting = sum(self.memory[kind] for kind in ("weights", "gradients", "master", "moments"))
        return lasting + max(passing, self.memory["buckets"])

    @property
    def said(self) -> str:
        """What is trained, in words."""
        if self.lora:
            return f"LoRA: {said_of_groups(self.lora, self.counts.total)}"
        return f"{self.trained:,} of {self.counts.total:,} parameters are trained"


def plan_foreign(
    directory: Path,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    trains: Trained = Trained.ALL,
    lora: LoraConfig | None = None,
    tokens: int | None = None,
) -> ForeignPlan:
    """Plan the training of a Hugging Face base.

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
        trained = sum(by_group.values())
    else:
        train_only(frame, trains, lora)
        trained = sum(parameter.numel() for parameter in frame.parameters() if parameter.requires_grad)
    tokens = min(frame.context_length, tokens or PLANNED_TOKENS)
    memory = plan_memory(counts, engine, offload, trained)
    if trains is Trained.LORA:
        memory["weights"] += trained * engine.precision.dtype.itemsize
    has_activations = not frame.expert_counts
    if has_activations:
        prepare = partial(_prepare, trains=trains, lora=lora)
        traced = trace_memory(directory, prepare, engine.micro_batch, tokens, engine.precision.dtype)
        memory |= {"activations": traced.kept, "backward": traced.backward}
    return ForeignPlan(
        counts=counts,
        trained=trained,
        lora=by_group,
        tokens=tokens,
        has_activations=has_activations,
        scratch=sum(plan_scratch(counts, engine, offload or OffloadConfig(), trained).values()),
        memory=memory,
    )


def check_foreign_memory(
    directory: Path,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    trains: Trained = Trained.ALL,
    lora: LoraConfig | None = None,
) -> None:
    """Compare the plan of a Hugging Face base with `engine.memory_gb`, where it is given.

    Raises:
        ConfigError: it does not fit, with the nearest smaller `engine.micro_batch` that does, or another way out.
    """
    if engine.memory_gb is None:
        return
    room, rows = engine.memory_gb * 1e9, engine.micro_batch
    plan = plan_foreign(directory, engine, offload, trains, lora)
    if plan.total <= room:
        return
    fitting = next((n for n in range(rows - 1, 0, -1) if plan.total_with(n / rows) <= room), None)
    remedy = (
        f"engine.micro_batch={fitting} fits"
        if fitting is not None
        else "no engine.micro_batch fits; train less of it (continue_pretrain.trains=lora), or take a smaller model"
    )
    raise ConfigError(
        f"engine.memory_gb: a rank needs {plan.total / 1e9:.1f} GB for rows of {plan.tokens} tokens ({plan.said}), and there are "
        f"{engine.memory_gb:g}; {remedy}"
    )


def _prepare(model: nn.Module, trains: Trained, lora: LoraConfig) -> None:
    train_only(model, trains, lora)
