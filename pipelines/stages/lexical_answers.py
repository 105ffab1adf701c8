"""The lexical labeller under evaluation: the row that stands in every table beside the models.

Legend: N rows, C labels.
"""

from __future__ import annotations

import time
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from adapt.core.artifacts import Artifact
from adapt.core.typed import to_plain
from pipelines.stages.contract import Workshop
from pipelines.stages.evaluated_model import ADAPTED
from pipelines.stages.rows import TaskData
from pipelines.stages.teachers import lexical_artifact, taught_place
from pseudo_label.accuracy import accuracy_of, balance_of
from pseudo_label.decision import Method, confidences
from pseudo_label.labelling import predictions
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers import lexical_files

MODEL = "lexical"  # what stands in a table's column of models; a labeller that was taught stands there as `adapted`


@dataclass(frozen=True, kw_only=True, eq=False)
class LexicalAnswers:
    """The labeller, the directory with its files, how many rows it was fitted on, and as which model it stands in tables."""

    labeller: lexical_files.Lexical
    place: Path
    n_fitted: int
    model: str = MODEL

    @classmethod
    def of(cls, shop: Workshop, data: TaskData) -> LexicalAnswers | None:
        """Fit the labeller, or take the one that is there; None where there are no unlabeled rows."""
        artifact = lexical_artifact(shop, data)
        if artifact is None:
            return None
        labeller = lexical_files.load(artifact.path, data.task)
        return cls(labeller=labeller, place=artifact.path, n_fitted=int(artifact.metrics["rows"]))

    def as_taught(self, adapted: Artifact, task: TaskConfig) -> LexicalAnswers:
        """Return the labeller that learnt from the other teachers when this adaptation's rows were labelled.

        It is this one where none did.
        """
        place = taught_place(adapted.path, task.name)
        if not place.is_dir():
            return self
        return replace(self, labeller=lexical_files.load(place, task), place=place, model=ADAPTED)

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
            who = {"task": task.name, "split": split, "model": self.model, "method": Method.LEXICAL.value}
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
