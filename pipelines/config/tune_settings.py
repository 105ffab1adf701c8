"""Settings of `pipelines.tune`: what is tried, on which batch, and for how long."""

from __future__ import annotations

from dataclasses import dataclass

from adapt.checkpoint.offload import OptimizerIn
from adapt.core.settings import Settings, setting, setting_of
from adapt.model.config import Recompute


@dataclass(frozen=True, kw_only=True)
class TuneConfig(Settings):
    """Timing training steps under other settings of the engine."""

    batch_rows: int = setting(32, "Rows of one optimizer step over all ranks, the same in all trials.", least=1, unit="rows")
    tokens: int | None = setting(
        None, "Tokens of a row.", least=2, unit="tokens", hint="null fills the model's context, at most 512 of a Hugging Face model"
    )
    steps: int = setting(4, "Steps of a trial that are timed, after one that is not; the shortest counts.", least=1, unit="steps")
    rounds: int = setting(
        3, "How often the fastest setting is timed again, in turn with the one that was given.", least=1, unit="rounds"
    )
    micro_batches: list[int] | None = setting(
        None, "Values of engine.micro_batch to try.", least=1, unit="rows", hint="null tries powers of two up to a rank's rows"
    )
    activation_checkpointing: list[Recompute] = setting_of(
        lambda: list(Recompute), "Values of engine.activation_checkpointing to try."
    )
    zero_stages: list[int] = setting_of(lambda: [0, 1, 2], "Values of engine.zero_stage to try.", least=0, most=2)
    optimizers: list[OptimizerIn] = setting_of(lambda: list(OptimizerIn), "Values of offload.optimizer to try.")
    threads: list[int] | None = setting(
        None, "Values of engine.threads to try.", least=1, hint="null tries 1 and a rank's share of the cores"
    )
