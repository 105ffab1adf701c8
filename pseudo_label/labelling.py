"""Scoring and deciding for one task with one model: what labelling, evaluation and prediction share."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

from adapt.core.scorer import FloatArray, Scorer
from adapt.core.spans import LabelForm
from adapt.text.tokenizer import Tokenizer
from pseudo_label.decision import Decision, Method, fit_decision
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of
from pseudo_label.zero_shot import PromptKeys, rank_rows

CONTENT_FREE_TEXTS = ("", "无", "……")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How a task's rows are scored: by which prompts (none: all of the task's), under which criterion (none: each prompt's own).

    `form` is how label tokens are predicted; `with_groups` scores the words of the label tree's groups too.
    """

    form: LabelForm = LabelForm.CLM
    prompts: list[str] | None = None
    criterion: str | None = None
    with_groups: bool = False


class TaskScorer:
    """A task's prompts bound to a scorer and a tokenizer."""

    def __init__(self, task: TaskConfig, config: ScoringConfig, scorer: Scorer, tokenizer: Tokenizer) -> None:
        names = list(task.prompts) if config.prompts is None else list(config.prompts)
        if task.reference not in names:
            names = [task.reference, *names]
        self.task = task
        self._config = config
        self._scorer = scorer
        self._prompts = {name: Prompt(task, name, tokenizer, scorer.context_length) for name in names}

    def keys(self, rows: Sequence[TaskRow], prompts: Sequence[str] | None = None) -> list[PromptKeys]:
        """Return the ranking keys of rows, under every prompt or those named; one pass over the rows per prompt."""
        config = self._config
        return [
            rank_rows(self._scorer, self._prompts[name], rows, config.form, config.criterion, with_groups=config.with_groups)
            for name in (prompts or self._prompts)
        ]

    def fit(self, method: Method, unlabeled: Sequence[PromptKeys], *, coarse_to_fine: bool) -> Decision:
        """Fit a decision on the keys of unlabeled rows, or of content-free ones where the method asks for those."""
        keys = unlabeled
        if method is Method.CONTENT_FREE and self.task.candidates is None:
            keys = self.keys([self._content_free(text) for text in CONTENT_FREE_TEXTS], [self.task.reference])
        return fit_decision(method, keys, self.task, coarse_to_fine=coarse_to_fine)

    def _content_free(self, text: str) -> TaskRow:
        return TaskRow(id=None, texts=dict.fromkeys(self.task.fields, text), label=None, candidates=None, line=0)

    def scores(self, rows: Sequence[TaskRow], decision: Decision) -> FloatArray:
        """Return a decision's scores [rows, labels]."""
        return decision.scores(self.keys(rows, decision.prompts), self.task)


def predictions(scores_NC: FloatArray, rows: Sequence[TaskRow], task: TaskConfig) -> list[str]:
    """Return the best label of each row."""
    return [labels_of(row, task)[int(best)] for row, best in zip(rows, scores_NC.argmax(axis=1), strict=True)]
