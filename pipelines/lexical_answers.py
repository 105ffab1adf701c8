"""The lexical labeller under evaluation: its scores of every split, and the row that stands in every table beside the models.

Legend: N rows, C labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.scorer import FloatArray
from adapt.core.typed import to_plain
from pipelines.rows import is_labelled
from pipelines.stage import Walk
from pipelines.teachers import lexical_artifact
from pseudo_label.accuracy import accuracy_of, balance_of
from pseudo_label.decision import Method
from pseudo_label.labelling import predictions
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers import lexical_files

MODEL = "lexical"  # what stands in a table's column of models


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalAnswers:
    """The labeller's artifact, and its standardised scores [N, C] of each split's rows with the seconds they took."""

    artifact: Artifact
    rows: Mapping[str, list[TaskRow]]
    scores: Mapping[str, FloatArray]
    seconds: Mapping[str, float]

    @classmethod
    def of(cls, walk: Walk, task: TaskConfig, rows_by_split: Mapping[str, list[TaskRow]]) -> LexicalAnswers | None:
        """Fit the labeller, or take the one that is there, and ask it; None where there are no unlabeled rows."""
        artifact = lexical_artifact(walk, task)
        if artifact is None:
            return None
        labeller = lexical_files.load(artifact.path, task)
        scores, seconds = {}, {}
        for split, rows in rows_by_split.items():
            started = time.monotonic()
            scores[split] = labeller.scores(rows)
            seconds[split] = time.monotonic() - started
        return cls(artifact=artifact, rows=rows_by_split, scores=scores, seconds=seconds)

    def measure(self, task: TaskConfig) -> dict[str, list[dict[str, Any]]]:
        """Return accuracies and answers of the labelled splits, as lines like those of the models."""
        table, answers = [], []
        for split, rows in self.rows.items():
            if not is_labelled(rows):
                continue
            guesses, gold = predictions(self.scores[split], rows, task), [row.label or "" for row in rows]
            who = {"task": task.name, "split": split, "model": MODEL, "method": Method.LEXICAL.value}
            table.append(
                {
                    **who,
                    "prompts": "",
                    "criterion": "",
                    "form": "",
                    **to_plain(accuracy_of(guesses, gold)),
                    **to_plain(balance_of(self.scores[split], guesses, gold)),
                    "seconds": round(self.seconds[split], 2),
                }
            )
            answers.append({**who, "answers": guesses, "gold": gold})
        return {"table": table, "answers": answers}
