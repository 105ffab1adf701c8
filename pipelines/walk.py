"""Walking stages in the order data flows, and where a run's report and exports are."""

from __future__ import annotations

import logging

from adapt.core.artifacts import is_artifact
from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.model.gpt import GPT
from adapt.model.hf import HFConfig
from pipelines import (
    continue_pretrain,
    evaluate,
    export,
    import_checkpoint,
    label_tree,
    predict,
    pretrain,
    prompt_search,
    pseudo_label,
    report,
    rounds,
    tokenizer,
)
from pipelines.schema import PipelineConfig
from pipelines.stage import Stage, Walk

logger = logging.getLogger("pipelines")
STAGES: dict[str, Stage] = {
    stage.NAME: stage
    for stage in (
        tokenizer,
        pretrain,
        import_checkpoint,
        label_tree,
        prompt_search,
        pseudo_label,
        continue_pretrain,
        evaluate,
        export,
        predict,
        report,
    )
}
_BASE_STAGES = (tokenizer.NAME, pretrain.NAME)


def walk(config: PipelineConfig, point: str | None = None) -> Walk:
    """Run the configured stages in order; `point` names one point of a sweep.

    Raises:
        AdaptError: a user error, before or while a stage runs; finished stages keep their artifacts.
    """
    unknown = [name for name in config.stages if name not in STAGES]
    if unknown:
        raise ConfigError(
            f"stages: unknown stage '{unknown[0]}'{suggest(unknown[0], list(STAGES))}; there are: {', '.join(STAGES)}"
        )
    current = Walk(config, point)
    wanted = _without_base_stages(current, [stage for name, stage in STAGES.items() if name in config.stages])
    is_direct_prediction = config.checkpoint is not None and config.stages == [predict.NAME]
    needs_tasks = any(stage.PER_TASK for stage in wanted) and not is_direct_prediction
    tasks = current.tasks() if needs_tasks else []
    current.load_tasks(config.evaluate.other_tasks)  # refuses unknown ones before anything is trained
    if pretrain in wanted:
        GPT(current.own_model())  # refuses impossible sizes and routers' settings before the tokenizer is trained
    for stage in wanted:
        for task in tasks if stage.PER_TASK and tasks else [None]:
            current.run_stage(stage, task)
            if stage is continue_pretrain and pseudo_label in wanted and task is not None:
                rounds.further_rounds(current, task)
    return current


def _without_base_stages(current: Walk, wanted: list[Stage]) -> list[Stage]:
    """Leave out the stages that make a base where `model` is one already; refuse them where nothing else was asked for."""
    if not isinstance(current.config.model, HFConfig):
        return wanted
    rest = [stage for stage in wanted if stage.NAME not in _BASE_STAGES]
    if wanted and not rest:
        current.own_model()
    if len(rest) < len(wanted):
        logger.info("%s: left out, model=hf brings its own", ", ".join(s.NAME for s in wanted if s not in rest))
    return rest


def places(current: Walk) -> str:
    """Return where a run's report and exports are."""
    lines = []
    page = current.directory / report.NAME / report.PAGE_FILE
    if page.is_file():
        lines.append(f"report: {page}")
    for name in current.config.tasks:
        path = current.directory / export.NAME / name
        if is_artifact(path):
            lines.append(f"export: {path}")
    return "\n".join(lines)
