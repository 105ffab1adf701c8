"""Settings of sweeps and studies: what a search over settings goes by, and which finished runs are compared."""

from __future__ import annotations

import enum
from dataclasses import dataclass

from adapt.core.settings import setting, setting_of


class Objective(enum.Enum):
    """What a search makes large: nothing, agreement times confidence without any label, or accuracy on labelled rows."""

    NONE = "none"
    LABEL_FREE = "label_free"
    ACCURACY = "accuracy"


@dataclass(frozen=True, kw_only=True)
class SweepConfig:
    """What each point of a sweep is judged by."""

    objective: Objective = setting(
        Objective.NONE,
        "What hydra/sweeper=search makes large: agreement times confidence (label_free), or accuracy on dev (accuracy).",
    )


@dataclass(frozen=True, kw_only=True)
class StudyConfig:
    """Finished runs to compare."""

    runs: list[str] = setting_of(list, "Runs of run.dir to compare, by name or pattern.", form="names")
    baseline: str | None = setting(None, "Variant that the others are compared with.", form="name")
