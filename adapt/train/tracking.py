"""Experiment tracking: the identity of a tracked run, and the interface of trackers.

A tracked run is one training: its id follows from its name and from the key of the artifact it makes, so that the same command
goes on with the same run after a kill. A tracker is told the history so far first (`follow`): it then has every step once.
"""

from __future__ import annotations

import enum
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

from adapt.core.settings import Settings, setting
from adapt.core.typed import digest_of

_ID_LENGTH = 16


class TrackerKind(enum.Enum):
    """Where metrics go beside the artifacts."""

    NONE = "none"
    WANDB = "wandb"
    TENSORBOARD = "tensorboard"


@dataclass(frozen=True, kw_only=True)
class TrackerConfig(Settings):
    """Tracking settings."""

    kind: TrackerKind = setting(TrackerKind.NONE, "Where metrics go in addition to the artifacts; set by tracker=NAME.")
    project: str = setting("moe-adapt", "Project of Weights & Biases that runs are listed under.", form="name")
    mode: str = setting("offline", "Mode of Weights & Biases.", one_of=("offline", "online", "disabled"))


@dataclass(frozen=True, kw_only=True)
class RunIdentity:
    """A tracked run's name, its group (the sweep's name), and the key of the artifact that it makes.

    `directory` is where trackers write, `stage` the kind of work, `config` the settings that are listed with the run.
    """

    name: str
    group: str
    stage: str
    key: str
    directory: Path
    config: Any = field(default_factory=dict)

    @property
    def id(self) -> str:
        return digest_of([self.name, self.key])[:_ID_LENGTH]


@dataclass(frozen=True, kw_only=True)
class TrackedTable:
    """A table with named columns."""

    columns: Sequence[str]
    rows: Sequence[Sequence[Any]]


class Tracker(Protocol):
    """Takes metrics by step; used as a context so that it is finished whatever happens.

    `hint` says how to look at what was tracked, empty where there is nothing to be done.
    """

    @property
    def hint(self) -> str: ...

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        """Take the lines of history before the next step, each with its `step`; called once, before `log`."""

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        """Take the metrics of a step."""

    def conclude(self, summary: Mapping[str, Any], tables: Mapping[str, TrackedTable]) -> None:
        """Take results: single values (numbers and words) by name, and tables."""

    def __enter__(self) -> Tracker: ...

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None: ...


class NoTracker:
    """Tracks nothing."""

    hint = ""

    def follow(self, history: Sequence[Mapping[str, float]]) -> None:
        return None

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        return None

    def conclude(self, summary: Mapping[str, Any], tables: Mapping[str, TrackedTable]) -> None:
        return None

    def __enter__(self) -> NoTracker:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        return None
