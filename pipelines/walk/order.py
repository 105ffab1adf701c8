"""Walking stages in the order data flows."""

from __future__ import annotations

import importlib
import logging
from pathlib import Path
from typing import Any

from adapt.checkpoint.foreign_places import mend_of
from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.model.config import HFConfig
from adapt.train.trackers import check_tracker
from pipelines.config.commands import STAGES
from pipelines.config.schema import PipelineConfig
from pipelines.stages.changed_settings import changed_settings
from pipelines.stages.contract import Stage
from pipelines.stages.run import DATA_ROOT_ADVICE, Run
from pipelines.walk.preflight import check_ahead
from pipelines.walk.tokenizer_warnings import warn_of_tokenizer
from pseudo_label.tasks import TaskConfig

logger = logging.getLogger("pipelines")
_BASE_STAGES = ("tokenizer", "pretrain")


def walk(config: PipelineConfig, point: str | None = None, given: frozenset[str] = frozenset()) -> Run:
    """Run the configured stages in order; `point` names one point of a sweep, `given` are the keys on the command line.

    Raises:
        AdaptError: a user error, before or while a stage runs; finished stages keep their artifacts.
    """
    unknown = [name for name in config.stages if name not in STAGES]
    if unknown:
        raise ConfigError(
            f"stages: unknown stage '{unknown[0]}'{suggest(unknown[0], list(STAGES))}; there are: {', '.join(STAGES)}"
        )
    _check_directories(config)
    check_tracker(config.tracker)
    current = Run(config, point)
    names = _without_base_stages(current, [name for name in STAGES if name in config.stages])
    wanted = [stage_named(name) for name in names]
    is_direct_prediction = config.checkpoint is not None and config.stages == ["predict"]
    needs_tasks = any(stage.is_per_task for stage in wanted) and not is_direct_prediction
    tasks = current.tasks() if needs_tasks else []
    check_ahead(current, names, tasks, given)
    with current.progress.going_on(names, changed_settings(config)):
        for stage in wanted:
            for task in tasks if stage.is_per_task and tasks else [None]:
                _do(current, stage, task, names)
    return current


def _do(current: Run, stage: Stage[Any], task: TaskConfig | None, names: list[str]) -> None:
    """Do a stage of a walk, for one task where it is done for each."""
    if stage.name == "pseudo_label" and task is not None:
        warn_of_tokenizer(current, task)
    current.run_stage(stage, task)
    if stage.name == "continue_pretrain" and "pseudo_label" in names and task is not None:
        from pipelines.walk.rounds import further_rounds

        further_rounds(current, task)


def stage_named(name: str) -> Stage[Any]:
    """Import a stage of `STAGES`."""
    found: Stage[Any] = importlib.import_module(f"pipelines.stages.{name}").STAGE
    return found


def _check_directories(config: PipelineConfig) -> None:
    """Raise ConfigError for a directory that is given and is none, whichever stage would read it."""
    given = {
        "task_dir": (config.task_dir, "give a directory of task files, NAME.yaml"),
        "data.root": (config.data.root, DATA_ROOT_ADVICE),
        "checkpoint": (config.checkpoint, "give an artifact or export that holds a model, or a Hugging Face directory"),
    }
    wrong = []
    for key, (place, advice) in given.items():
        if place is None or Path(place).is_dir():
            continue
        mend = mend_of(Path(place), key) if key == "checkpoint" else None
        wrong.append(f"{key}: {place} {mend or f'is no directory{_or_a_file(Path(place))}; {advice}'}")
    if wrong:
        raise ConfigError("; ".join(wrong))


def _or_a_file(place: Path) -> str:
    return " but a file" if place.is_file() else ""


def _without_base_stages(current: Run, wanted: list[str]) -> list[str]:
    """Leave out the stages that make a base where one is given; model=hf refuses them where nothing else was asked for."""
    is_foreign = isinstance(current.config.model, HFConfig)
    if not is_foreign and current.config.checkpoint is None:
        return wanted
    rest = [name for name in wanted if name not in _BASE_STAGES]
    if is_foreign and wanted and not rest:
        current.own_model()
    if not rest:  # a command of its own: it was asked for by name
        return wanted
    if len(rest) < len(wanted):
        given = "model=hf brings its own" if is_foreign else "checkpoint= is the base"
        logger.info("%s: left out, %s", ", ".join(name for name in wanted if name not in rest), given)
    return rest
