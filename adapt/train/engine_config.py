"""Engine settings and the DeepSpeed configuration derived from them; importable without DeepSpeed."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Any

from adapt.checkpoint.offload import OffloadConfig, OptimizerIn
from adapt.core.errors import ConfigError
from adapt.core.precision import AutoPrecision, Precision, auto_precision
from adapt.core.settings import Settings, setting, setting_of
from adapt.model.config import Recompute
from adapt.train.loss_scale import LossScaleConfig
from adapt.train.optimizer_config import Algorithm, OptimizerConfig

if TYPE_CHECKING:
    from adapt.model.exchange import ExpertShare


class GradientCommunication(enum.Enum):
    """The format in which ranks sum their gradients: fp32, or that of the model's weights, which halves the traffic in bf16."""

    FP32 = "fp32"
    MODEL = "model"


@dataclass(frozen=True, kw_only=True)
class EngineConfig(Settings):
    """How a step is computed: none of these changes what it computes (precision aside).

    Gradients are added up over micro-batches in fp32 at any precision, and over ranks as `gradient_communication` says. `resolved`
    replaces the precision `auto`.
    """

    world_size: int = setting(1, "Processes that train together.", least=1, unit="ranks")
    expert_parallel: int = setting(
        1, "Neighbouring ranks that share the experts of every layer; divides `world_size`.", least=1, unit="ranks"
    )
    activation_checkpointing: Recompute = setting(
        Recompute.NONE, "What the backward pass computes again to save memory: nothing, feed-forward parts, or whole blocks."
    )
    zero_stage: int = setting(
        2, "ZeRO: at 0 every rank keeps the whole optimizer, at 1 a part of it, at 2 a part of the gradients too.", least=0, most=2
    )
    precision: Precision = setting(
        Precision.AUTO, "Number format of training; auto is bf16 where the device multiplies in it and ZeRO allows, else fp32."
    )
    gradient_communication: GradientCommunication = setting(
        GradientCommunication.FP32, "Format in which ranks sum gradients; that of the model halves the traffic in bf16."
    )
    micro_batch: int = setting(8, "Rows that a rank computes at once; changes speed and memory.", least=1, unit="rows")
    pad_multiple: int = setting(1, "Batches are padded to a multiple of this width.", least=1, unit="tokens")
    threads: int | None = setting(None, "CPU threads of a rank.", least=1, hint="null gives each rank an even share of the cores")
    bucket_elements: int = setting(50_000_000, "Gradient elements that ranks exchange at once.", least=1, unit="elements")
    memory_gb: float | None = setting(
        None,
        "Memory that a rank has; training that needs more is refused before it starts.",
        above=0,
        unit="GB",
        hint="null checks nothing",
    )
    loss_scale: LossScaleConfig = setting_of(LossScaleConfig, "Loss scaling, read with engine.precision=fp16 only.")
    hostfile: str | None = setting(
        None,
        "File of the hosts to train on together, lines `host slots=n`, as many slots as `world_size`.",
        hint="null keeps all ranks on this machine",
        form="file",
    )
    remote_shell: str = setting(
        "ssh -o BatchMode=yes -o ConnectTimeout=10 -o ServerAliveInterval=5 -o ServerAliveCountMax=3",
        "Command that reaches the hosts of `hostfile`.",
        form="command",
    )
    master_address: str | None = setting(
        None, "Address at which the ranks of several hosts meet.", hint="null takes the first host", form="host"
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.zero_stage == 0 and self.precision not in (Precision.AUTO, Precision.FP32):
            raise ConfigError(f"zero_stage: 0 keeps no fp32 masters beside {self.precision.value} weights; use 1 or 2, or fp32")
        if self.zero_stage == 1 and self.precision is Precision.BF16:
            raise ConfigError("zero_stage: 1 in bf16 is another optimizer of DeepSpeed's, which is not served; use 2, or fp32")
        if self.zero_stage == 0 and self.expert_parallel > 1:
            raise ConfigError("zero_stage: 0 shares nothing, experts neither; use 1 or 2, or engine.expert_parallel=1")
        if not self.remote_shell.strip():
            raise ConfigError("remote_shell: is empty; ssh is one")
        if self.world_size % self.expert_parallel:
            divisors = [n for n in range(1, self.world_size + 1) if self.world_size % n == 0]
            nearest = min(divisors, key=lambda n: (abs(n - self.expert_parallel), -n))
            raise ConfigError(
                f"expert_parallel: {self.expert_parallel} does not divide the {self.world_size} ranks of engine.world_size; "
                f"the nearest setting is {nearest}"
            )

    def auto_precision(self) -> AutoPrecision | None:
        """Return what `precision=auto` comes to here; None where another one is asked for."""
        if self.precision is not Precision.AUTO:
            return None
        if self.zero_stage == 0:
            return AutoPrecision(precision=Precision.FP32, reason="for training: engine.zero_stage=0 keeps no fp32 masters")
        if self.zero_stage == 1:
            return AutoPrecision(precision=Precision.FP32, reason="for training: engine.zero_stage=1 does not train in bf16")
        return auto_precision()

    def resolved(self) -> EngineConfig:
        """Return these settings with what `precision=auto` comes to here. A command does so once; ranks and files get no `auto`."""
        chosen = self.auto_precision()
        return self if chosen is None else replace(self, precision=chosen.precision)

    def numerics(self) -> dict[str, Any]:
        """Return the settings that results depend on, for a stage's key."""
        assert self.precision is not Precision.AUTO, "auto must be resolved first"
        rounded = {"gradient_communication": self.gradient_communication} if self.precision.is_rounded else {}
        scaled = {"loss_scale": self.loss_scale} if self.precision is Precision.FP16 else {}
        return {"precision": self.precision} | rounded | scaled

    def expert_share(self, rank: int) -> ExpertShare:
        """Return which experts of every layer a rank owns."""
        from adapt.model.exchange import ExpertShare  # imports torch

        return ExpertShare(index=rank % self.expert_parallel, of=self.expert_parallel)


def check_optimizer(config: EngineConfig, optimizer: OptimizerConfig, offload: OffloadConfig | None = None) -> None:
    """Raise ConfigError for an optimizer that this engine would falsify, or whose state cannot be where it is wanted."""
    if optimizer.algorithm is Algorithm.LAMB and offload is not None and offload.optimizer is OptimizerIn.PAGED:
        raise ConfigError(
            "offload.optimizer=paged: updates block by block, and optimizer.algorithm=lamb scales each update by whole tensors' "
            "norms; use adamw, or offload.optimizer=none"
        )
    if config.zero_stage == 0 and offload is not None and offload.optimizer is OptimizerIn.CPU:
        raise ConfigError(
            "offload.optimizer=cpu: moves the partitions of ZeRO to the host, and ZeRO-0 has none; use engine.zero_stage=1 or 2, "
            "or offload.optimizer=none"
        )
    if optimizer.skip_idle_experts and offload is not None and offload.optimizer is not OptimizerIn.PAGED:
        raise ConfigError("optimizer.skip_idle_experts: is for an optimizer in files; set offload.optimizer=paged, or false")
    if optimizer.algorithm is Algorithm.LAMB and config.zero_stage:
        raise ConfigError(
            f"optimizer.algorithm=lamb: scales each tensor's update by whole tensors' norms, and ZeRO-{config.zero_stage} cuts "
            "tensors into flat partitions; use engine.zero_stage=0, or adamw"
        )


def deepspeed_config(config: EngineConfig, optimizer: OptimizerConfig) -> dict[str, Any]:
    """Derive DeepSpeed's own configuration; nothing of it is set anywhere else.

    Raises:
        ConfigError: the two do not go together.
    """
    check_optimizer(config, optimizer)
    is_scaled = config.precision is Precision.FP16
    return {
        "train_micro_batch_size_per_gpu": config.micro_batch,
        "gradient_accumulation_steps": 1,
        "gradient_clipping": optimizer.clip,
        "bf16": {"enabled": config.precision is Precision.BF16},
        "fp16": {"enabled": is_scaled, **(config.loss_scale.for_deepspeed() if is_scaled else {})},
        "data_types": {"grad_accum_dtype": "fp32"},
        "communication_data_type": "fp32"
        if config.gradient_communication is GradientCommunication.FP32
        else config.precision.value,
        "zero_optimization": {
            "stage": config.zero_stage,
            "contiguous_gradients": True,
            "overlap_comm": False,
            "reduce_bucket_size": config.bucket_elements,
            "allgather_bucket_size": config.bucket_elements,
        },
        "zero_allow_untested_optimizer": True,
        "steps_per_print": None,
    }
