"""Which version of a task something was made for: labels and adapted models are not taken for those of another version.

A task's file may change between two commands. Artifacts hold in their configuration the task that they were made for. Another order
of the labels changes nothing, since labels are found by their names; other labels, words, fields or rules do.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import fields
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.errors import DataError
from adapt.core.typed import to_plain
from pipelines.stages.contract import order_of
from pseudo_label.tasks import TaskConfig

# They say where rows, gold labels and ids are, and what a submission looks like: no pseudo-label depends on them.
_OF_FILES = ("name", "folder", "label_path", "id_paths", "submission_file", "submission_key", "encoding", "quotes")
_LABELLED_BY = tuple(one.name for one in fields(TaskConfig) if one.name not in _OF_FILES)
# Prompts, synonyms and the prior may be tried on a model that is adapted already.
_ADAPTED_TO = ("fields", "label_words", "candidates", "rules", "lexical")


def refuse_labels_of_other_version(labels: Artifact, task: TaskConfig) -> None:
    """Raise DataError where pseudo-labels were made for a task that says otherwise how to label."""
    changed = _changed(labels.config, task, _LABELLED_BY)
    if changed:
        raise DataError(
            f"{labels.path}: its labels were made for another version of task '{task.name}' ({_said(changed)}); run "
            "`python -m pipelines.pseudo_label` again"
        )


def refuse_model_of_other_version(adapted: Artifact, task: TaskConfig) -> None:
    """Raise DataError where a model was adapted to a task with other labels, words, fields or rules."""
    members: Sequence[Mapping[str, Any]] = adapted.config.get("tasks", ())
    own = next((member for member in members if member["task"]["name"] == task.name), {})
    changed = _changed(own, task, _ADAPTED_TO)
    if changed:
        raise DataError(
            f"{adapted.path}: was adapted to another version of task '{task.name}' ({_said(changed)}); run "
            "`python -m pipelines.pseudo_label` and `python -m pipelines.continue_pretrain` again"
        )


def _changed(made_for: Mapping[str, Any], task: TaskConfig, keys: Sequence[str]) -> list[str]:
    """Return the keys of a task's file that differ from what an artifact was made for; the order counts of fields only."""
    there, now = made_for.get("task"), to_plain(task)
    if there is None:
        return ["all of it"]
    is_reordered = made_for.get("task_order", [[]])[0] != order_of(task)[0]
    return [key for key in keys if there.get(key) != now[key] or (key == "fields" and is_reordered)]


def _said(changed: Sequence[str]) -> str:
    return f"{', '.join(changed)} changed"
