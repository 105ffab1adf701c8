"""What adapting to one task does to others: their accuracy by base and adapted model, and the difference resampled in pairs.

Other tasks are asked for by name (`evaluate.other_tasks`), measured on their labelled rows of dev and few together and decided by
`evaluate.method`, as a task of its own is (by `prior` where that method asks the lexical labeller too).

Legend: N rows.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from adapt.core.artifacts import Artifact
from adapt.core.scorer import FloatArray
from adapt.core.typed import to_plain
from pipelines.config.label_settings import EvaluateConfig
from pipelines.stages.contract import Workshop
from pipelines.stages.copied_rows import copies
from pipelines.stages.evaluated_model import Measuring, evaluated_model_of
from pipelines.stages.rows import TaskData, labelled_rows_of_other
from pipelines.stages.scores import scores_of
from pseudo_label.comparison import paired_difference
from pseudo_label.decision import Method
from pseudo_label.labelling import predictions
from pseudo_label.tasks import TaskRow
from pseudo_label.zero_shot import passes_for

OTHER_TASKS_FILE = "other_tasks.json"
_BASE, _ADAPTED = "base", "adapted"


def other_tasks(shop: Workshop, how: Measuring, others: Sequence[TaskData], models: Mapping[str, Artifact]) -> list[dict[str, Any]]:
    """Return a plain line for each other task: accuracy before and after adaptation, and their difference.

    There are none without an adapted model.

    Raises:
        DataError: a task has no labelled rows.
    """
    if _ADAPTED not in models:
        return []
    found = []
    for data in others:
        rows_by_split = labelled_rows_of_other(shop, data)
        right = {name: _right(shop, how, data, name, models[name], rows_by_split) for name in (_BASE, _ADAPTED)}
        difference = paired_difference(right[_ADAPTED], right[_BASE])
        found.append(
            {
                "task": data.task.name,
                "n": len(right[_BASE]),
                "method": model_method(how.evaluate).value,
                "before": float(right[_BASE].mean()),
                "after": float(right[_ADAPTED].mean()),
                "difference": to_plain(difference),
            }
        )
    return found


def model_method(settings: EvaluateConfig) -> Method:
    """Return the method that the model is asked by: what it unlearnt shows without the lexical labeller's help."""
    method = settings.method
    return Method.PRIOR if method.needs_lexical else method


def say_other_task(line: Mapping[str, Any]) -> str:
    """Say a line in words."""
    low, high = (100 * end for end in line["difference"]["ci95"])
    before, after = 100 * line["before"], 100 * line["after"]
    return f"{line['task']} {before:.1f} -> {after:.1f} % ({after - before:+.1f} points [{low:+.1f}, {high:+.1f}])"


def _right(
    shop: Workshop,
    how: Measuring,
    data: TaskData,
    name: str,
    model: Artifact,
    rows_by_split: Mapping[str, list[TaskRow]],
) -> FloatArray:
    """Return which rows a model answers rightly [N], 1 or 0; of copies the first counts."""
    method, task = model_method(how.evaluate), data.task
    evaluated = evaluated_model_of(shop, how, data, name, model, [method])
    decision = evaluated.decisions[method]
    passes = passes_for(
        evaluated.scoring.pairs(task, decision.prompts), evaluated.scoring.form, with_groups=evaluated.scoring.with_groups
    )
    right: list[bool] = []
    copied = {split: set(places) for split, places in copies(rows_by_split).items()}
    for split, rows in rows_by_split.items():
        scored = scores_of(shop, how.scorer, data, model, split, rows, passes)
        scores = decision.scores(evaluated.scoring.keys(scored.passes, task, decision.prompts), task)
        given = zip(predictions(scores, rows, task), rows, strict=True)
        right += [guess == row.label for place, (guess, row) in enumerate(given) if place not in copied[split]]
    return np.asarray(right, dtype=np.float64)
