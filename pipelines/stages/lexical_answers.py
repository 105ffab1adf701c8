"""The lexical labeller under evaluation: the row that stands in every table beside the models.

Legend: N rows, C labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.typed import to_plain
from pipelines.stages.contract import Workshop
from pipelines.stages.rows import TaskData
from pipelines.stages.teachers import lexical_artifact
from pseudo_label.accuracy import accuracy_of, balance_of
from pseudo_label.decision import Method, confidences
from pseudo_label.labelling import predictions
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers import lexical_files

MODEL = "lexical"  # what stands in a table's column of models


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalAnswers:
    """The labeller, and the artifact with its files."""

    artifact: Artifact
    labeller: lexical_files.Lexical

    @classmethod
    def of(cls, shop: Workshop, data: TaskData) -> LexicalAnswers | None:
        """Fit the labeller, or take the one that is there; None where there are no unlabeled rows."""
        artifact = lexical_artifact(shop, data)
        return None if artifact is None else cls(artifact=artifact, labeller=lexical_files.load(artifact.path, data.task))

    def measure(self, task: TaskConfig, rows_by_split: Mapping[str, list[TaskRow]]) -> dict[str, list[dict[str, Any]]]:
        """Return accuracies and answers on labelled rows, as lines like those of the models; splits without any are left out."""
        table, answers = [], []
        for split, rows in rows_by_split.items():
            if not rows:
                continue
            started = time.monotonic()
            scores_NC = self.labeller.scores(rows)
            seconds = time.monotonic() - started
            guesses, gold = predictions(scores_NC, rows, task), [row.label or "" for row in rows]
            who = {"task": task.name, "split": split, "model": MODEL, "method": Method.LEXICAL.value}
            table.append(
                {
                    **who,
                    "prompts": "",
                    "criterion": "",
                    "form": "",
                    **to_plain(accuracy_of(guesses, gold)),
                    **to_plain(balance_of(scores_NC, guesses, gold)),
                    "seconds": round(seconds, 2),
                }
            )
            answers.append({**who, "answers": guesses, "gold": gold, "confidences": confidences(scores_NC)})
        return {"table": table, "answers": answers}
