"""How a run scores a task's rows for labelling: prompts, criterion, form, and whether from coarse to fine."""

from __future__ import annotations

import logging

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.spans import LabelForm
from pipelines.config.label_settings import PseudoLabelConfig
from pipelines.config.schema import PipelineConfig
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.labelling import ScoringConfig
from pseudo_label.tasks import TaskConfig

logger = logging.getLogger("pipelines")


def scoring_of(settings: PseudoLabelConfig, form: LabelForm, task: TaskConfig) -> ScoringConfig:
    """Return how rows are scored for labelling, in the form of the label that is given."""
    return ScoringConfig(
        form=form,
        prompts=chosen_prompts(settings.prompts, task),
        criterion=settings.criterion,
        with_groups=settings.coarse_to_fine and task.label_tree is not None,
    )


def label_form(config: PipelineConfig) -> LabelForm:
    """Return the form that unlabeled rows are scored in."""
    return config.pseudo_label.form or config.objective.pseudo_label.form


def chosen_prompts(names: list[str] | None, task: TaskConfig) -> list[str] | None:
    """Return the prompts of `pseudo_label.prompts`, if any. Raises ConfigError for one that the task does not have."""
    for name in names or []:
        if name not in task.prompts:
            there = ", ".join(task.prompts)
            hint = suggest(name, list(task.prompts))
            raise ConfigError(f"pseudo_label.prompts: task '{task.name}' has no prompt '{name}'{hint}; it has: {there}")
    return names


def coarse_of(task: TaskConfig, is_on: bool, settings: CoarseToFine) -> CoarseToFine | None:
    """Return how coarse-to-fine decides, or None where it is off or the task has no tree."""
    return settings if is_on and task.label_tree is not None else None


def say_if_treeless(task: TaskConfig, *, wants_groups: bool) -> None:
    """Say that coarse to fine has no effect on a task without a label tree."""
    if wants_groups and task.label_tree is None:
        logger.info("%s has no label_tree: its labels are ranked all at once", task.name)
