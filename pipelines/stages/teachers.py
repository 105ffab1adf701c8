"""What labelling and evaluation share of a task's teachers: their scores of rows, and the lexical labeller as an artifact.

Legend: N rows, C labels.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact, StageKey
from adapt.core.scorer import FloatArray
from adapt.core.typed import digest_of, to_plain
from pipelines.stages.contract import Workshop, order_of
from pipelines.stages.rows import UNLABELED, TaskData, adaptation_rows
from pseudo_label.tasks import TaskRow
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.label_model import Combination

NAME = "lexical"
VERSION = 3  # its files name the labels and fields that they were made for
_TASK_KEYS = ("fields", "label_words", "candidates", "rules", "lexical")


@dataclass(frozen=True, kw_only=True, eq=False)
class Views:
    """What each teacher says of some rows, by its name: standardised scores [N, C]."""

    rows: Sequence[TaskRow]
    scores: Mapping[str, FloatArray]

    def combined(self, combination: Combination) -> FloatArray:
        """Return the weighted sum of the teachers."""
        return combination.apply(self.scores)


def lexical_artifact(shop: Workshop, data: TaskData) -> Artifact | None:
    """Fit the lexical labeller on all unlabeled rows that may be adapted on; None where there are none.

    Linked under the run as `lexical/<task>`.
    """
    task = data.task
    if not data.existing([UNLABELED]):
        return None
    rows = adaptation_rows(shop, data, None).rows
    if not rows:
        return None
    plain = to_plain(task)
    key = StageKey(
        stage=NAME,
        version=VERSION,
        config={
            **{name: plain[name] for name in _TASK_KEYS},
            **({} if task.prior is None else {"prior": task.prior}),
            "words": {label: task.words_of(label) for label in task.labels},
            "order": order_of(task),
            "rows": digest_of([(row.line, dict(row.texts), row.candidates) for row in rows]),
            "seed": data.seed,
        },
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        lexical_files.save(result, lexical_files.fit(task, rows, data.seed))
        return {"rows": len(rows)}

    return shop.produce(key, build, f"{NAME}/{task.name}")


def taught_place(adapted: Path, task: str) -> Path:
    """Return where an adaptation keeps the lexical labeller of a task that other teachers taught."""
    return adapted / NAME / task


def lexical_of(shop: Workshop, data: TaskData) -> lexical_files.Lexical | None:
    """Return the task's lexical labeller, or None where there are no unlabeled rows to fit it on."""
    artifact = lexical_artifact(shop, data)
    return None if artifact is None else lexical_files.load(artifact.path, data.task)
