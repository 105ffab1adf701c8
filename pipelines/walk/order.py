"""Walking stages in the order data flows, and where a run's report and exports are."""

from __future__ import annotations

import importlib
import logging
from typing import Any

from adapt.core.artifacts import is_artifact
from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.model.config import HFConfig
from pipelines.config.schema import PipelineConfig
from pipelines.stages.contract import Stage
from pipelines.stages.run import Run
from pipelines.walk.preflight import check_ahead

logger = logging.getLogger("pipelines")
# In the order data flows; each is the module of its name, imported once a run wants it.
STAGES = (
    "tokenizer",
    "pretrain",
    "import_checkpoint",
    "label_tree",
    "prompt_search",
    "pseudo_label",
    "continue_pretrain",
    "evaluate",
    "export",
    "predict",
    "report",
)
_BASE_STAGES = ("tokenizer", "pretrain")


def walk(config: PipelineConfig, point: str | None = None) -> Run:
    """Run the configured stages in order; `point` names one point of a sweep.

    Raises:
        AdaptError: a user error, before or while a stage runs; finished stages keep their artifacts.
    """
    unknown = [name for name in config.stages if name not in STAGES]
    if unknown:
        raise ConfigError(
            f"stages: unknown stage '{unknown[0]}'{suggest(unknown[0], list(STAGES))}; there are: {', '.join(STAGES)}"
        )
    current = Run(config, point)
    names = _without_base_stages(current, [name for name in STAGES if name in config.stages])
    wanted = [stage_named(name) for name in names]
    is_direct_prediction = config.checkpoint is not None and config.stages == ["predict"]
    needs_tasks = any(stage.is_per_task for stage in wanted) and not is_direct_prediction
    tasks = current.tasks() if needs_tasks else []
    check_ahead(current, names, tasks)
    for stage in wanted:
        for task in tasks if stage.is_per_task and tasks else [None]:
            current.run_stage(stage, task)
            if stage.name == "continue_pretrain" and "pseudo_label" in names and task is not None:
                from pipelines.walk.rounds import further_rounds

                further_rounds(current, task)
    return current


def stage_named(name: str) -> Stage[Any]:
    """Import a stage of `STAGES`."""
    found: Stage[Any] = importlib.import_module(f"pipelines.stages.{name}").STAGE
    return found


def _without_base_stages(current: Run, wanted: list[str]) -> list[str]:
    """Leave out the stages that make a base where `model` is one already; refuse them where nothing else was asked for."""
    if not isinstance(current.config.model, HFConfig):
        return wanted
    rest = [name for name in wanted if name not in _BASE_STAGES]
    if wanted and not rest:
        current.own_model()
    if len(rest) < len(wanted):
        logger.info("%s: left out, model=hf brings its own", ", ".join(name for name in wanted if name not in rest))
    return rest


def places(current: Run) -> str:
    """Return where a run's report and exports are."""
    from pipelines.stages import export, report

    lines = []
    page = current.directory / report.NAME / report.PAGE_FILE
    if page.is_file():
        lines.append(f"report: {page}")
    for name in current.config.tasks:
        path = current.directory / export.NAME / name
        if is_artifact(path):
            lines.append(f"export: {path}")
    return "\n".join(lines)
