"""How a run scores a task's rows for labelling: prompts, criterion, form, and whether from coarse to fine."""

from __future__ import annotations

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.spans import LabelForm
from pipelines.config.schema import PipelineConfig
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.labelling import ScoringConfig
from pseudo_label.tasks import TaskConfig


def scoring_of(config: PipelineConfig, task: TaskConfig) -> ScoringConfig:
    """Return how rows are scored for labelling."""
    settings = config.pseudo_label
    return ScoringConfig(
        form=label_form(config),
        prompts=chosen_prompts(config, task),
        criterion=settings.criterion,
        with_groups=settings.coarse_to_fine and task.label_tree is not None,
    )


def label_form(config: PipelineConfig) -> LabelForm:
    """Return the form that unlabeled rows are scored in."""
    return config.pseudo_label.form or config.objective.pseudo_label.form


def chosen_prompts(config: PipelineConfig, task: TaskConfig) -> list[str] | None:
    """Return the prompts that were asked for, if any. Raises ConfigError for one that the task does not have."""
    names = config.pseudo_label.prompts
    for name in names or []:
        if name not in task.prompts:
            there = ", ".join(task.prompts)
            hint = suggest(name, list(task.prompts))
            raise ConfigError(f"pseudo_label.prompts: task '{task.name}' has no prompt '{name}'{hint}; it has: {there}")
    return names


def coarse_of(task: TaskConfig, is_on: bool, settings: CoarseToFine) -> CoarseToFine | None:
    """Return how coarse-to-fine decides, or None where it is off or the task has no tree."""
    return settings if is_on and task.label_tree is not None else None
