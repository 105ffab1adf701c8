"""Experiment tracking: nothing, or Weights & Biases (offline unless asked otherwise), by rank 0 only."""

from __future__ import annotations

import enum
import os
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from adapt.core.settings import Settings, setting
from adapt.core.typed import digest_of


class TrackerKind(enum.Enum):
    """Where metrics go beside the artifacts."""

    NONE = "none"
    WANDB = "wandb"


@dataclass(frozen=True, kw_only=True)
class TrackerConfig(Settings):
    """Tracking settings."""

    kind: TrackerKind = setting(TrackerKind.NONE, "Where metrics go in addition to the artifacts; set by tracker=NAME.")
    project: str = setting("moe-adapt", "Project of Weights & Biases that runs are listed under.", form="name")
    mode: str = setting("offline", "Mode of Weights & Biases.", one_of=("offline", "online", "disabled"))


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """What a tracked run is called: its id follows from configuration, stage and attempt, its group is the sweep's name."""

    name: str
    group: str
    stage: str
    attempt: int
    config: Any
    directory: Path

    @property
    def id(self) -> str:
        return digest_of([self.config, self.name, self.stage, self.attempt])[:16]


class Tracker(Protocol):
    """Takes metrics by step; used as a context so that it is finished whatever happens."""

    def log(self, metrics: Mapping[str, float], step: int) -> None: ...

    def __enter__(self) -> Tracker: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class NoTracker:
    """Tracks nothing."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        return None

    def __enter__(self) -> NoTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None


class WandbTracker:
    """One wandb run."""

    def __init__(self, config: TrackerConfig, identity: RunIdentity) -> None:
        os.environ.setdefault("WANDB_SILENT", "true")
        import wandb  # here, since importing it starts threads that an untracked run does not want

        identity.directory.mkdir(parents=True, exist_ok=True)
        self._run = wandb.init(
            project=config.project,
            mode=config.mode,  # type: ignore[arg-type]
            id=identity.id,
            name=identity.name,
            group=identity.group,
            job_type=identity.stage,
            config=identity.config,
            dir=str(identity.directory),
        )

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        self._run.log(dict(metrics), step=step)

    def __enter__(self) -> WandbTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        self._run.finish(exit_code=0 if kind is None else 1)


def open_tracker(config: TrackerConfig, identity: RunIdentity, is_main: bool) -> Tracker:
    """Open the tracker that the settings ask for; ranks other than 0 get one that tracks nothing."""
    if config.kind is TrackerKind.WANDB and is_main:
        return WandbTracker(config, identity)
    return NoTracker()
