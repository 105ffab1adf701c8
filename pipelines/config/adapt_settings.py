"""Settings of adaptation: continued pretraining on a task's rows."""

from __future__ import annotations

import enum
from dataclasses import dataclass, replace

from adapt.core.errors import ConfigError
from adapt.core.settings import setting, setting_of
from adapt.model.lora_config import LoraConfig
from adapt.text.near_documents import CurriculumConfig
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.train_config import Trained
from pseudo_label.adaptation_data import ReadingConfig


class MomentsStart(enum.Enum):
    """Where the optimizer's moments of an adaptation come from."""

    FRESH = "fresh"
    KEEP = "keep"


@dataclass(frozen=True, kw_only=True)
class AdaptConfig(ReadingConfig):
    """Continued pretraining on the selected rows, read as `ReadingConfig` says."""

    epochs: float | None = setting(
        None,
        "How often the selected rows are read; null is 2, and 1 for a base of more than 3 billion weights.",
        above=0,
        unit="epochs",
        hint="to train nothing leave the stage out",
    )
    batch_rows: int = setting(32, "Rows of one optimizer step of adaptation, over all ranks.", least=1, unit="rows")
    optimizer: OptimizerConfig = setting_of(
        lambda: OptimizerConfig(lr=None, warmup_share=None),
        "Optimizer of adaptation: an open lr is 3e-4 for a base of this project of up to 100 million weights, and 3e-5 to 1e-5 by "
        "size for a larger or a Hugging Face one; an open warmup_share is 0.1 and 0.2.",
    )
    save_every_steps: int = setting(100, "How often adaptation saves a state to resume from.", least=1, unit="steps")
    trains: Trained = setting(
        Trained.ALL,
        "Which parameters an adaptation changes; lora trains a low-rank update beside a frozen Hugging Face base.",
    )
    expert_coverage: float | None = setting(
        None,
        "Share of the task's routed pairs that the trained experts of each layer take, the largest first; read with "
        "continue_pretrain.trains=experts only.",
        above=0,
        most=1,
        hint="null trains all experts",
    )
    lora: LoraConfig = setting_of(LoraConfig, "The low-rank update, read with continue_pretrain.trains=lora only.")
    moments: MomentsStart = setting(
        MomentsStart.FRESH, "Where the optimizer's moments start: at 0, or as the base was trained with them."
    )
    replay_share: float | None = setting(
        None,
        "Share of an epoch's rows that is general text: of data.corpus, or what a Hugging Face base without a corpus says itself.",
        least=0,
        below=1,
        hint="null is 0.25 for a Hugging Face base without a corpus, and 0 elsewhere",
    )
    divergence_weight: float | None = setting(
        None,
        "Weight of the loss that keeps an adaptation near its base: KL(base || model) of the next token, a mean over the tokens of "
        "texts, replayed ones included.",
        least=0,
        hint="null is 1 for a Hugging Face base, and 0 for one of this project; 0 leaves it out",
    )
    curriculum: CurriculumConfig = setting_of(
        CurriculumConfig, "General text near to the task, read before its rows or beside them."
    )
    joint: dict[str, float] | None = setting(
        None,
        "Tasks that are adapted together to one model, and how often an epoch has each selected row of them.",
        above=0,
        hint="leave a task out instead of giving it 0; null adapts each by itself",
    )

    def __post_init__(self) -> None:
        super().__post_init__()
        if self.expert_coverage is not None and self.trains is not Trained.EXPERTS:
            raise ConfigError(
                f"expert_coverage: chooses among experts, and trains={self.trains.value}; set trains=experts, or null"
            )

    def settled(
        self, *, lr: float, warmup_share: float, epochs: float, replay_share: float, divergence_weight: float
    ) -> AdaptConfig:
        """Return these settings with what was left open."""
        optimizer = replace(
            self.optimizer,
            lr=lr if self.optimizer.lr is None else self.optimizer.lr,
            warmup_share=warmup_share if self.optimizer.warmup_share is None else self.optimizer.warmup_share,
        )
        return replace(
            self,
            epochs=epochs if self.epochs is None else self.epochs,
            optimizer=optimizer,
            replay_share=replay_share if self.replay_share is None else self.replay_share,
            divergence_weight=divergence_weight if self.divergence_weight is None else self.divergence_weight,
        )

    def reading(self) -> ReadingConfig:
        """Return how rows are read."""
        return ReadingConfig(prompt=self.prompt, soft_labels=self.soft_labels, reads_unselected=self.reads_unselected)
