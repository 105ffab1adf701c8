"""Scoring and deciding for one task with one model: what labelling, evaluation and prediction share."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass, field

import numpy as np

from adapt.core.progress import progress
from adapt.core.scorer import FloatArray, Scorer
from adapt.core.spans import LabelForm, Reading
from adapt.text.contract import TextTokenizer
from pseudo_label.candidates import Candidates
from pseudo_label.coarse_to_fine import CoarseToFine, followed_groups, groups_of_labels
from pseudo_label.criteria.contract import CandidateScores, Criterion
from pseudo_label.cut_rows import CutRows, cut_rows
from pseudo_label.decision import Decision, Method, fit_decision
from pseudo_label.prompts import Prompt
from pseudo_label.shortlist import with_shortlists
from pseudo_label.tasks import TaskConfig, TaskRow, labels_of
from pseudo_label.zero_shot import (
    PassScores,
    PromptKeys,
    ScoringPass,
    candidate_scores,
    criterion_of,
    form_of,
    keys_from,
    passes_for,
    score_pass,
    score_passes,
)

CONTENT_FREE_TEXTS = ("", "无", "……")


@dataclass(frozen=True, kw_only=True)
class ScoringConfig:
    """How a task's rows are scored: by which prompts (none: the task's own choice), under which criterion (none: each prompt's).

    `form` is how label tokens are predicted; `with_groups` scores the words of the label tree's groups too. `domain` are
    unlabeled texts by field, for criteria that compare candidates with those.
    """

    form: LabelForm = LabelForm.CLM
    prompts: list[str] | None = None
    criterion: str | None = None
    with_groups: bool = False
    domain: list[dict[str, str]] = field(default_factory=list)

    def names(self, task: TaskConfig) -> list[str]:
        """Return the prompts' names, the reference among them."""
        names = task.ensemble_names() if self.prompts is None else list(self.prompts)
        return names if task.reference in names else [task.reference, *names]

    def pairs(self, task: TaskConfig, prompts: Iterable[str] | None = None) -> list[tuple[str, Criterion]]:
        """Return (prompt, criterion) for all prompts, or those named."""
        return [(name, criterion_of(task, name, self.criterion)) for name in (prompts or self.names(task))]

    def passes(self, task: TaskConfig, prompts: Iterable[str] | None = None) -> list[ScoringPass]:
        """Return the passes over rows that this needs."""
        return passes_for(self.pairs(task, prompts), self.form, with_groups=self.with_groups)

    def keys(self, passes: Iterable[PassScores], task: TaskConfig, prompts: Iterable[str] | None = None) -> list[PromptKeys]:
        """Make keys from passes that were scored before."""
        return keys_from(passes, self.pairs(task, prompts), self.form, task)


class TaskScorer:
    """A task's prompts bound to a scorer and a tokenizer."""

    def __init__(self, task: TaskConfig, config: ScoringConfig, scorer: Scorer, tokenizer: TextTokenizer) -> None:
        self.task = task
        self.config = config
        self._scorer = scorer
        self.tokenizer = tokenizer
        self._prompts: dict[str, Prompt] = {}
        for name in config.names(task):
            self._prompt(name)

    def _prompt(self, name: str) -> Prompt:
        if name not in self._prompts:
            self._prompts[name] = Prompt(self.task, name, self.tokenizer, self._scorer.context_length)
        return self._prompts[name]

    def cut_rows(self, rows: Sequence[TaskRow], prompt: str) -> CutRows:
        """Return which rows a prompt cuts to the model's context."""
        return cut_rows(rows, self._prompt(prompt))

    def score(self, rows: Sequence[TaskRow], passes: Iterable[ScoringPass]) -> list[PassScores]:
        """Read rows under each pass; passes whose prompts begin alike read a text once."""
        wanted = list(passes)
        prompts = {what.prompt: self._prompt(what.prompt) for what in wanted}
        return score_passes(self._scorer, prompts, rows, wanted, self.config.domain)

    def keys(self, rows: Sequence[TaskRow], prompts: Sequence[str] | None = None) -> list[PromptKeys]:
        """Return the ranking keys of rows, under every prompt or those named."""
        passes = self.score(rows, self.config.passes(self.task, prompts))
        return self.config.keys(passes, self.task, prompts)

    def fit(self, method: Method, unlabeled: Sequence[PromptKeys], *, coarse_to_fine: CoarseToFine | None = None) -> Decision:
        """Fit a decision on the keys of unlabeled rows, or of content-free ones where the method asks for those."""
        keys = unlabeled
        if method is Method.CONTENT_FREE and self.task.candidates is None:
            keys = self.keys(content_free_rows(self.task), [self.task.reference])
        return fit_decision(method, keys, self.task, coarse_to_fine=coarse_to_fine)

    def scores(self, rows: Sequence[TaskRow], decision: Decision, lexical_NC: FloatArray | None = None) -> FloatArray:
        """Return a decision's scores [rows, labels]; `lexical_NC` are the lexical labeller's, for a decision that adds them.

        Coarse to fine under one prompt, only the groups and the labels inside the followed ones are scored (the text is read
        once); labels that were not scored are at -inf. An ensemble's standards need every label of every row, and a prompt
        with synonyms every word. Where the decision has a shortlist, its labels only are scored.
        """
        if decision.shortlist is not None and decision.needs_lexical:
            assert lexical_NC is not None, "shortlists follow from the lexical labeller's scores"
            rows = with_shortlists(rows, lexical_NC, decision.shortlist)
        is_whole = decision.method in (Method.ENSEMBLE, Method.COMBINED) or bool(self.task.synonyms_of(decision.prompts[0]))
        if decision.groups is None or self.task.label_tree is None or is_whole:
            return decision.scores(self.keys(rows, decision.prompts), self.task, lexical_NC)
        return decision.scores([self._keys_in_two_steps(rows, decision)], self.task)

    def _keys_in_two_steps(self, rows: Sequence[TaskRow], decision: Decision) -> PromptKeys:
        task, name = self.task, decision.prompts[0]
        prompt, criterion = self._prompt(name), criterion_of(task, name, self.config.criterion)
        form = form_of(criterion, self.config.form)
        candidates, group_of_label = Candidates.of(task, name, with_groups=True), groups_of_labels(task)
        null = self._null(prompt, rows[0], form, criterion) if criterion.needs_null and rows else None
        words = prompt.words(rows[0], with_groups=True) if rows else []
        labels_NC = np.full((len(rows), len(candidates.labels)), -np.inf)
        groups_NG = np.empty((len(rows), len(candidates.groups)))
        in_flight: dict[int, list[Reading]] = {}

        def examples() -> Iterator[tuple[list[Reading], list[Reading]]]:
            for index, row in enumerate(rows):
                in_flight[index] = prompt.readings(row, form, with_groups=True)
                yield candidates.groups_of(in_flight[index]), candidates.labels_of(in_flight[index])

        def keys(index: int, places: Sequence[int], sums_C3: FloatArray) -> FloatArray:
            readings = [in_flight[index][place] for place in places]
            scores = candidate_scores(sums_C3, readings, [words[place] for place in places])
            return criterion.key(scores, None if null is None else null.only(places))

        def choose(index: int, sums_G3: FloatArray) -> list[int]:
            assert decision.groups is not None
            groups_NG[index] = keys(index, candidates.group_places(), sums_G3)
            scores_1G = decision.groups.apply({name: groups_NG[index : index + 1]})
            return np.flatnonzero(followed_groups(scores_1G, decision.coarse.beam)[0, group_of_label]).tolist()

        results = self._scorer.score_in_two_steps(examples(), criterion.kinds, choose)
        for index, result in enumerate(progress(results, f"scoring {task.name} ({name})", total=len(rows), unit="row")):
            labels_NC[index, result.chosen] = keys(index, result.chosen, result.fine_F3)
            del in_flight[index]
        return PromptKeys(prompt=name, criterion=criterion.name, labels_NC=labels_NC, groups_NG=groups_NG)

    def _null(self, prompt: Prompt, row: TaskRow, form: LabelForm, criterion: Criterion) -> CandidateScores | None:
        kinds = tuple(sorted(criterion.kinds))
        what = ScoringPass(prompt=prompt.name, form=form, kinds=kinds, null=criterion.null, with_groups=True)
        return score_pass(self._scorer, prompt, [row], what, self.config.domain).nulls[0]


def content_free_rows(task: TaskConfig) -> list[TaskRow]:
    """Return rows that say nothing: every field the same empty text (a blank stays)."""
    fields = task.fields.items()
    return [
        TaskRow(id=None, texts={name: text + (spec.blank or "") for name, spec in fields}, label=None, candidates=None, line=0)
        for text in CONTENT_FREE_TEXTS
    ]


def predictions(scores_NC: FloatArray, rows: Sequence[TaskRow], task: TaskConfig) -> list[str]:
    """Return the best label of each row."""
    return [labels_of(row, task)[int(scores_C.argmax())] for row, scores_C in zip(rows, scores_NC, strict=True)]
