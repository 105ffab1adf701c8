"""What benchmarks on a real checkpoint and real rows share: rows, a scorer, and rows to fit calibration on."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from adapt.checkpoint.open_checkpoint import OpenCheckpoint, open_checkpoint
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.scoring.scorer_config import ScorerConfig
from adapt.text.rows.directories import is_rows
from pipelines.bench.options import number
from pipelines.config.locations import conf_dir
from pseudo_label.leakage import EvaluationTexts
from pseudo_label.tasks import TaskConfig, TaskRow, load_task, read_split, split_path

_SPLITS = ("dev", "few")


@dataclass(frozen=True, kw_only=True)
class RealRows:
    """A task's labelled rows (dev and few), and unlabeled rows without their texts."""

    task: TaskConfig
    labelled: list[TaskRow]
    unlabeled: list[TaskRow]


def real_rows(root: Path, name: str, n_labelled: int, n_unlabeled: int, own_tasks: Path | None = None) -> RealRows:
    """Read at most so many rows of a task, shipped or in a directory of one's own, below a directory in the CLUE layout."""
    task = load_task(name, [*([own_tasks] if own_tasks else []), conf_dir() / "task"])
    splits = [split for split in _SPLITS if is_rows(split_path(root, task, split))]
    labelled = [row for split in splits for row in read_split(root, task, split) if row.label is not None]
    held = EvaluationTexts(labelled, task)
    unlabeled = [row for row in read_split(root, task, "unlabeled") if not held.has_row(row)]
    return RealRows(task=task, labelled=labelled[:n_labelled], unlabeled=unlabeled[:n_unlabeled])


def rows_asked_for(benchmark: str, options: Mapping[str, str], task: str) -> RealRows:
    """Read the rows that a benchmark's options root=, task=, rows= and fit_rows= name; `task` is its own choice."""
    n_labelled, n_unlabeled = (number(benchmark, options, name, usual) for name, usual in (("rows", 400), ("fit_rows", 300)))
    return real_rows(Path(options["root"]), options.get("task", task), n_labelled, n_unlabeled)


def opened(checkpoint: Path, precision: Precision = Precision.FP32) -> OpenCheckpoint:
    """Open a checkpoint for scoring."""
    if not checkpoint.is_dir():
        raise ConfigError(f"{checkpoint}: no such directory; checkpoint= takes an artifact or export that holds a model")
    return open_checkpoint(checkpoint, ScorerConfig(precision=precision))
