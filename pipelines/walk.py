"""Walking stages in the order data flows, and the table that a run ends with."""

from __future__ import annotations

import json

from adapt.core.artifacts import METRICS_FILE, is_artifact
from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from pipelines import continue_pretrain, evaluate, export, predict, pretrain, pseudo_label, report, tokenizer
from pipelines.schema import PipelineConfig
from pipelines.stage import Stage, Walk

STAGES: dict[str, Stage] = {
    stage.NAME: stage for stage in (tokenizer, pretrain, pseudo_label, continue_pretrain, evaluate, export, predict, report)
}


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
    wanted = [stage for name, stage in STAGES.items() if name in config.stages]
    is_direct_prediction = config.checkpoint is not None and config.stages == [predict.NAME]
    needs_tasks = any(stage.PER_TASK for stage in wanted) and not is_direct_prediction
    tasks = current.tasks() if needs_tasks else []
    for stage in wanted:
        for task in tasks if stage.PER_TASK and tasks else [None]:
            current.run_stage(stage, task)
    return current


def accuracy_table(current: Walk) -> str:
    """Return the run's accuracies as text, base beside adapted; empty where nothing labelled was evaluated."""
    rows: dict[tuple[str, str, str], dict[str, str]] = {}
    for name in current.config.tasks:
        path = current.directory / evaluate.NAME / name
        if not is_artifact(path):
            continue
        for row in json.loads((path / METRICS_FILE).read_text(encoding="utf-8")):
            low, high = row["ci95"]
            cell = f"{100 * row['accuracy']:5.1f} [{100 * low:.1f}, {100 * high:.1f}]"
            rows.setdefault((row["task"], f"{row['split']} ({row['n']})", row["method"]), {})[row["model"]] = cell
    if not rows:
        return ""
    lines = [f"{'task':<14} {'split':<12} {'method':<9} {'base, % [95 %]':<20} {'adapted, % [95 %]':<20}"]
    for (task, split, method), cells in rows.items():
        lines.append(f"{task:<14} {split:<12} {method:<9} {cells.get('base', '-'):<20} {cells.get('adapted', '-'):<20}")
    return "\n".join(lines)


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
