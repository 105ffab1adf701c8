"""Settings for keeping weights and optimizer state outside memory, and for checking a checkpoint on opening."""

from __future__ import annotations

import enum
from dataclasses import dataclass
from typing import TYPE_CHECKING

from adapt.core.errors import ConfigError
from adapt.core.settings import Settings, setting

if TYPE_CHECKING:
    import torch


class Verify(enum.Enum):
    """How much of a checkpoint is hashed when it is opened."""

    ALWAYS = "always"
    SAMPLE = "sample"
    NEVER = "never"


class WeightsIn(enum.Enum):
    """Where weights are while a model is scored.

    `memory`: all of them. `mmap`: views of the mapped files, pages asked for ahead and let go behind; ranks share one copy. `ring`:
    a few buffers, filled past the page cache and used again.
    """

    MEMORY = "memory"
    MMAP = "mmap"
    RING = "ring"


class OptimizerIn(enum.Enum):
    """Where the optimizer's moments, fp32 masters and gradients are while a model is trained.

    `none`: with the weights. `cpu`: masters and moments in the host's memory, where a CPU updates them; gradients with the weights.
    `paged`: in scratch files of each rank, of which memory holds a few blocks.
    """

    NONE = "none"
    CPU = "cpu"
    PAGED = "paged"


class TrainedWeightsIn(enum.Enum):
    """Where weights are while a model is trained: all of them in memory, or `mapped`, views of files that the update writes."""

    MEMORY = "memory"
    MAPPED = "mapped"


class FrozenWeightsIn(enum.Enum):
    """Where the frozen weights of a Hugging Face base are during training on CPUs.

    `memory`: as they are loaded. `mapped`: read-only views of its files, converted layer by layer where a step computes in another
    number format.
    """

    MEMORY = "memory"
    MAPPED = "mapped"


class MomentFormat(enum.Enum):
    """The number format of moments that are paged; bf16 is rounded stochastically."""

    FP32 = "fp32"
    BF16 = "bf16"

    @property
    def dtype(self) -> torch.dtype:
        import torch  # settings are read without it

        return {MomentFormat.FP32: torch.float32, MomentFormat.BF16: torch.bfloat16}[self]


@dataclass(frozen=True, kw_only=True)
class OffloadConfig(Settings):
    """Settings for keeping weights and optimizer state outside memory, and for hashing on opening.

    Only `moments` changes a result.
    """

    weights: WeightsIn = setting(
        WeightsIn.MEMORY, "Where weights are while scoring: all in memory, in mapped files (mmap), or in a few buffers (ring)."
    )
    verify: Verify = setting(Verify.SAMPLE, "How much of a checkpoint is hashed when it is opened.")
    ahead_mb: int = setting(1024, "Most that is read from disk ahead of its use, where weights are paged.", least=1, unit="MB")
    pass_tokens: int = setting(
        16384,
        "Padded tokens that go through the layers together where weights are paged; each such pass reads the model once.",
        least=1,
        unit="tokens",
    )
    optimizer: OptimizerIn = setting(
        OptimizerIn.NONE,
        "Where AdamW's moments and fp32 masters are while training: with the weights (none), in the host's memory (cpu, for GPUs), "
        "or in scratch files in the run's work directory, with gradients (paged, on CPUs).",
    )
    trained_weights: TrainedWeightsIn = setting(
        TrainedWeightsIn.MEMORY, "Where weights are while training: in memory, or in mapped scratch files (mapped; with paged)."
    )
    frozen_weights: FrozenWeightsIn = setting(
        FrozenWeightsIn.MEMORY,
        "Where a Hugging Face base's frozen weights are while training on CPUs: in memory, or in its own files (mapped; with "
        "continue_pretrain.trains=lora, say).",
    )
    moments: MomentFormat = setting(
        MomentFormat.FP32, "Number format of paged moments; bf16 halves the file, rounds stochastically and changes results."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.moments is not MomentFormat.FP32 and self.optimizer is not OptimizerIn.PAGED:
            raise ConfigError(f"moments: {self.moments.value} is for paged moments; set offload.optimizer=paged, or fp32")
        if self.trained_weights is TrainedWeightsIn.MAPPED and self.optimizer is not OptimizerIn.PAGED:
            raise ConfigError("trained_weights: mapped is for a paged optimizer; set offload.optimizer=paged, or memory")
