"""Settings of `pipelines.distil`: how a sparse model's dense student starts, and how it learns from the sparse model."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.checkpoint.merging.settings import MergeConfig
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.settings import Settings, setting, setting_of
from adapt.train.optimizer_config import OptimizerConfig


@dataclass(frozen=True, kw_only=True)
class DistilConfig(Settings):
    """A dense student of a sparse model: merged experts, then trained on the sparse model's next-token distributions."""

    merge: MergeConfig = setting_of(MergeConfig, "How a layer's experts become one feed-forward part.")
    steps: int = setting(1000, "Optimizer steps of distillation.", least=1, unit="steps")
    batch_rows: int = setting(32, "Rows of one optimizer step of distillation, over all ranks.", least=1, unit="rows")
    row_tokens: int | None = setting(
        None,
        "Tokens of a row that student and sparse model read.",
        least=2,
        unit="tokens",
        hint="null fills the model's context, at most 512",
    )
    optimizer: OptimizerConfig = setting_of(lambda: OptimizerConfig(lr=5e-4), "Optimizer of distillation.")
    save_every_steps: int = setting(200, "How often distillation saves a state to resume from.", least=1, unit="steps")
    temperature: float = setting(1.0, "Divides the logits of both models before their distributions are compared.", above=0)
    weight: float = setting(1.0, "Weight of the divergence from the sparse model's distributions.", least=0)
    text_weight: float = setting(
        0.0, "Weight of the text's own next-token loss.", least=0, hint="0 learns from the sparse model only"
    )
    held_out_share: float = setting(
        0.01, "Share of the documents on which student and sparse model are only measured.", least=0, most=1
    )
    held_out_rows: int = setting(64, "Most held-out rows of a domain that both models are measured on.", least=0, unit="rows")
    save_precision: Precision = setting(
        Precision.FP32, "Number format of the finished weights: fp32, bf16 or fp16; a Hugging Face student has its source's."
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.optimizer.lr is None or self.optimizer.warmup_share is None:
            raise ConfigError("optimizer: lr and warmup_share need numbers in distillation; there is no task to choose them by")
        if self.save_precision is Precision.AUTO:
            raise ConfigError("save_precision: auto is for computing; a file is fp32, bf16 or fp16")
        if not self.weight and not self.text_weight:
            raise ConfigError("weight: is 0 like text_weight, so nothing would be learned; raise one of them")
