"""What pretraining and adapting share: what a training job reads, its frozen form, and what it says of itself at its end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.offload import MomentFormat, OffloadConfig
from adapt.core.json_files import read_lines, read_object
from adapt.core.precision import Precision
from adapt.core.typed import from_plain, to_plain
from adapt.model.config import GPTConfig
from adapt.objective_config import ObjectiveConfig
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.tracking import TrackerConfig
from adapt.train.train_config import TrainConfig
from pipelines.stages.contract import Reads, unkeyed
from pipelines.stages.products import Training
from pipelines.stages.run import Run

HISTORY_FILE = "history.jsonl"


def tracked_name(run: Run, stage: str, task: str | None) -> str:
    """Return a tracked run's name."""
    return f"{run.name}/{stage}" + (f"/{task}" if task else "")


@dataclass(frozen=True, kw_only=True)
class TrainingReads(Reads):
    """How a job trains: the numbers that its result depends on, and the engine and the tracker that it runs with."""

    precision: Precision
    gradient_communication: Any
    loss_scale: Any
    moments: MomentFormat
    seed: int
    offload: OffloadConfig = unkeyed("where state and weights are changes no bit; the moments' format is a field above")
    engine: EngineConfig = unkeyed("the fields above are those of its settings that a result depends on")
    tracker: TrackerConfig = unkeyed("watching changes no result")
    tracked_as: str = unkeyed("the run's name for the tracker")
    group: str = unkeyed("the run's name for the tracker")
    tracking_dir: Path = unkeyed("where the tracker writes")

    @classmethod
    def of(cls, run: Run, stage: str, task: str | None) -> TrainingReads:
        """Return how a run trains; what `engine.precision=auto` came to is said."""
        engine, offload = run.engine, run.config.offload
        numerics = engine.numerics()
        return cls(
            precision=engine.precision,
            gradient_communication=numerics.get("gradient_communication"),
            loss_scale=numerics.get("loss_scale"),
            moments=offload.moments,
            seed=run.config.seed,
            offload=OffloadConfig(
                optimizer=offload.optimizer,
                moments=offload.moments,
                trained_weights=offload.trained_weights,
                frozen_weights=offload.frozen_weights,
            ),
            engine=engine,
            tracker=run.config.tracker,
            tracked_as=tracked_name(run, stage, task),
            group=run.group,
            tracking_dir=run.store.root / run.group,
        )

    def job(self, stage: str, objective: ObjectiveConfig, train: TrainConfig, result: Path, work: Path) -> dict[str, Any]:
        """Build the plain form of `TrainJob` that ranks read.

        Raises:
            ConfigError: engine and optimizer do not go together.
        """
        check_optimizer(self.engine, train.optimizer, self.offload)
        return {
            "engine": to_plain(self.engine),
            "objective": to_plain(objective),
            "train": to_plain(train),
            "offload": to_plain(self.offload),
            "tracker": to_plain(self.tracker),
            "name": self.tracked_as,
            "group": self.group,
            "stage": stage,
            "seed": self.seed,
            "result": str(result.resolve()),
            "work": str(work.resolve()),
            "tracking_dir": str(self.tracking_dir.resolve()),
        }


def train_config(settings: Any, steps: int) -> TrainConfig:
    """Build the loop's settings from a stage's section."""
    return TrainConfig(
        steps=steps,
        batch_rows=settings.batch_rows,
        optimizer=settings.optimizer,
        save_every_steps=settings.save_every_steps,
    )


def finished_training(result: Path, work: Path, model: GPTConfig | Path, job: Mapping[str, Any]) -> Training:
    """Collect what a finished job says of itself, and how much memory it was planned to take.

    `model` is what it started from, `job` the plain form of its `TrainJob`.
    """
    from adapt.train.measured_cost import planned_bytes  # imports torch

    held_out = read_object(result / "held_out.json")
    outcome = read_object(work / "outcome.json")
    last = read_lines(result / HISTORY_FILE)[-1]
    engine: EngineConfig = from_plain(EngineConfig, job["engine"], "job.yaml")
    offload: OffloadConfig = from_plain(OffloadConfig, job["offload"], "job.yaml")
    train: TrainConfig = from_plain(TrainConfig, job["train"], "job.yaml")
    tokens = outcome.get("row_tokens")  # a rank of an older version that was killed at its end did not say
    planned = planned_bytes(model, engine, offload, train, tokens) if tokens else None
    plain = {"held_out": held_out, "steps": int(last["step"]), "loss": last["loss/total"], **outcome, "planned_bytes": planned}
    return from_plain(Training, plain, str(result))
