"""Zero-shot scoring of a task's rows: the one path behind pseudo-labelling, evaluation and prediction.

Legend: N rows, C candidates, G groups of the label tree.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from adapt.core.progress import progress
from adapt.core.scorer import FloatArray, Scorer
from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span
from pseudo_label.criteria.contract import CandidateScores, Criterion, get_criterion
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskRow


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptKeys:
    """One prompt's ranking keys of many rows: `labels_NC` for the labels, `groups_NG` for the tree's groups (or None).

    Rows with candidates of their own have as many columns as the longest list, missing ones at -inf.
    """

    prompt: str
    criterion: str
    labels_NC: FloatArray
    groups_NG: FloatArray | None = None


def score_rows(
    scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], form: LabelForm, criterion: Criterion, *, with_groups: bool
) -> Iterator[CandidateScores]:
    """Yield the candidates' scores of each row, in order; the text is read once per row."""

    in_flight: deque[list[Reading]] = deque()
    form = LabelForm.CLM if criterion.reads_label else form

    def examples() -> Iterator[list[Reading]]:
        for row in rows:
            in_flight.append(prompt.readings(row, form, with_groups=with_groups))
            yield in_flight[-1]

    what = f"scoring {prompt.task.name} ({prompt.name})"
    sums = progress(scorer.score(examples(), criterion.kinds), what, total=len(rows), unit="row")
    for row, sums_C3 in zip(rows, sums, strict=True):
        readings = in_flight.popleft()
        words = prompt.words(row, with_groups=with_groups)
        yield CandidateScores(
            sums_C3=sums_C3,
            tokens_C3=np.stack([_target_counts(reading) for reading in readings]),
            characters_C=np.asarray([len(word) for word in words], np.int64),
        )


def rank_rows(
    scorer: Scorer,
    prompt: Prompt,
    rows: Sequence[TaskRow],
    form: LabelForm,
    criterion_name: str | None,
    *,
    with_groups: bool,
) -> PromptKeys:
    """Score rows under one prompt and turn the scores into keys, by the prompt's own criterion unless one is named."""
    criterion = get_criterion(criterion_name or prompt.criterion)
    scores = score_rows(scorer, prompt, rows, form, criterion, with_groups=with_groups)
    nulls: list[CandidateScores | None] = [None] * len(rows)
    if criterion.needs_null:
        nulls = list(_null_scores(scorer, prompt, rows, form, criterion, with_groups=with_groups))
    keys = [criterion.key(score, null) for score, null in zip(scores, nulls, strict=True)]
    n_labels = max((len(row.candidates or prompt.task.labels) for row in rows), default=len(prompt.task.labels))
    labels = np.full((len(rows), n_labels), -np.inf)
    has_groups = with_groups and prompt.task.label_tree is not None
    groups = np.empty((len(rows), len(prompt.task.label_tree or {}))) if has_groups else None
    for index, (row, key) in enumerate(zip(rows, keys, strict=True)):
        n = len(row.candidates or prompt.task.labels)
        labels[index, :n] = key[:n]
        if groups is not None:
            groups[index] = key[n:]
    return PromptKeys(prompt=prompt.name, criterion=criterion.name, labels_NC=labels, groups_NG=groups)


def _null_scores(
    scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], form: LabelForm, criterion: Criterion, *, with_groups: bool
) -> Iterator[CandidateScores]:
    """Score the null context: once for all rows that share their candidates, else row by row."""
    nulls = [prompt.null_row(row) for row in rows]
    if not nulls or nulls[0].candidates is not None:
        yield from score_rows(scorer, prompt, nulls, form, criterion, with_groups=with_groups)
        return
    shared = next(score_rows(scorer, prompt, nulls[:1], form, criterion, with_groups=with_groups))
    for _ in rows:
        yield shared


def _target_counts(reading: Reading) -> np.ndarray:
    return np.bincount(reading.kinds_T[reading.targets_T != NO_TARGET], minlength=len(Span))
