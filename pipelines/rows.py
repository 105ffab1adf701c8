"""Which rows a task is adapted on, measured on and calibrated on: unlabeled ones without evaluation texts, and labelled ones."""

from __future__ import annotations

from collections.abc import Iterable
from dataclasses import dataclass

from pipelines.stage import Walk
from pseudo_label.criteria.contract import Null
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.tasks import TaskConfig, TaskRow, read_split, split_path

LABELLED_SPLITS = ("dev", "few")
_DOMAIN_TEXTS = 64


@dataclass(frozen=True, kw_only=True)
class AdaptationRows:
    """Unlabeled rows that may be adapted on; how many were kept out, and how many of the kept share a passage with evaluation."""

    rows: list[TaskRow]
    n_excluded: int
    n_sharing: int


def adaptation_rows(walk: Walk, task: TaskConfig, limit: int | None) -> AdaptationRows:
    """Read the unlabeled rows that may be adapted on, at most `limit`; rows with an evaluation row's texts are kept out."""
    held = EvaluationTexts(
        (
            row
            for split in existing(walk, task, walk.config.exclude_eval.splits)
            for row in read_split(walk.data_root(), task, split)
        ),
        task,
    )
    rows = read_split(walk.data_root(), task, "unlabeled")
    allowed = [row for row in rows if not held.has_row(row)]
    kept = allowed[:limit]
    return AdaptationRows(rows=kept, n_excluded=len(rows) - len(allowed), n_sharing=sum(held.shares_passage(row) for row in kept))


def domain_texts(walk: Walk, task: TaskConfig, nulls: Iterable[Null]) -> list[dict[str, str]]:
    """Return texts by field, evenly from a task's unlabeled rows, where one of the null contexts is its domain; else none."""
    if Null.DOMAIN not in nulls or not existing(walk, task, ["unlabeled"]):
        return []
    rows = adaptation_rows(walk, task, None).rows
    count = min(len(rows), _DOMAIN_TEXTS)
    return [dict(rows[index * len(rows) // count].texts) for index in range(count)]


def labelled_rows(walk: Walk, task: TaskConfig) -> dict[str, list[TaskRow]]:
    """Return the rows of dev and few, as far as the task has them and they are labelled."""
    found = {split: read_split(walk.data_root(), task, split) for split in existing(walk, task, LABELLED_SPLITS)}
    return {split: rows for split, rows in found.items() if is_labelled(rows)}


def is_labelled(rows: list[TaskRow]) -> bool:
    """Return whether there are rows and all have a label."""
    return bool(rows) and all(row.label is not None for row in rows)


def existing(walk: Walk, task: TaskConfig, splits: list[str] | tuple[str, ...]) -> list[str]:
    """Return those of the splits that the task has."""
    return [split for split in splits if split_path(walk.data_root(), task, split).is_file()]
