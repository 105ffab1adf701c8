"""Zero-shot scoring of a task's rows: the one path behind pseudo-labelling, evaluation and prediction.

Legend: N rows, C candidates, G groups of the label tree.

A pass reads rows under one prompt and keeps sums by kind of token, from which every criterion that reads those kinds makes
its keys: several criteria cost one pass. Passes of prompts that begin alike share the reading of what they begin with.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace

import numpy as np
import numpy.typing as npt

from adapt.core.errors import DataError
from adapt.core.progress import progress
from adapt.core.scorer import FloatArray, Scorer
from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span
from pseudo_label.candidates import Candidates
from pseudo_label.criteria.contract import CandidateScores, Criterion, Null, get_criterion
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow

_WORDS_AT_ONCE = 128


@dataclass(frozen=True, kw_only=True)
class ScoringPass:
    """One reading of rows: under which prompt, in which form of the label, for which kinds of tokens.

    `null` is the null context that is scored too, `with_groups` asks for the words of the label tree's groups.
    """

    prompt: str
    form: LabelForm = LabelForm.CLM
    kinds: tuple[Span, ...] = (Span.LABEL,)
    null: Null = Null.NONE
    with_groups: bool = False

    @property
    def name(self) -> str:
        return f"{self.prompt}-{self.form.value}{'-domain' if self.null is Null.DOMAIN else ''}"


@dataclass(frozen=True, kw_only=True, eq=False)
class PassScores:
    """What a pass gave: each row's scores, and its null context's where that was asked for."""

    what: ScoringPass
    rows: Sequence[CandidateScores]
    nulls: Sequence[CandidateScores | None]


@dataclass(frozen=True, kw_only=True, eq=False)
class PromptKeys:
    """One prompt's ranking keys of many rows: `labels_NC` for the labels, `groups_NG` for the tree's groups (or None).

    Rows with candidates of their own have as many columns as the longest list, missing ones at -inf.
    """

    prompt: str
    criterion: str
    labels_NC: FloatArray
    groups_NG: FloatArray | None = None

    def of_rows(self, kept_N: npt.NDArray[np.bool_]) -> PromptKeys:
        """Return the keys of some of the rows."""
        groups = None if self.groups_NG is None else self.groups_NG[kept_N]
        return replace(self, labels_NC=self.labels_NC[kept_N], groups_NG=groups)


def form_of(criterion: Criterion, form: LabelForm) -> LabelForm:
    """Return the form a criterion is scored in: its own if it has one, else the form asked for."""
    return criterion.form or form


def passes_for(wanted: Iterable[tuple[str, Criterion]], form: LabelForm, *, with_groups: bool) -> list[ScoringPass]:
    """Return the fewest passes that serve all (prompt, criterion) pairs: one for each prompt and form.

    A comparison with the domain's texts has a pass of its own.
    """
    kinds: dict[tuple[str, LabelForm, bool], set[Span]] = {}
    nulls: dict[tuple[str, LabelForm, bool], Null] = {}
    for prompt, criterion in wanted:
        place = (prompt, form_of(criterion, form), criterion.null is Null.DOMAIN)
        kinds.setdefault(place, set()).update(criterion.kinds)
        nulls[place] = criterion.null if criterion.needs_null else nulls.get(place, Null.NONE)
    return [
        ScoringPass(prompt=place[0], form=place[1], kinds=tuple(sorted(found)), null=nulls[place], with_groups=with_groups)
        for place, found in kinds.items()
    ]


def score_pass(
    scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], what: ScoringPass, domain: Sequence[Mapping[str, str]] = ()
) -> PassScores:
    """Read rows once, and their null context; see `score_passes`."""
    return score_passes(scorer, {what.prompt: prompt}, rows, [what], domain)[0]


def score_passes(
    scorer: Scorer,
    prompts: Mapping[str, Prompt],
    rows: Sequence[TaskRow],
    passes: Sequence[ScoringPass],
    domain: Sequence[Mapping[str, str]] = (),
) -> list[PassScores]:
    """Read rows under each pass, and their null contexts: once for all rows that share their candidates, else row by row.

    Passes whose prompts begin alike are read together: a row's text is read once for all of them. `prompts` are the passes' by
    name. `domain` are the texts, by field, that a null context of the domain is the mean over.

    Raises:
        DataError: such a null context is asked for and there are no texts.
    """
    rows_of: dict[ScoringPass, list[CandidateScores]] = {}
    for together in _read_together(prompts, passes):
        scored = list(_score_rows(scorer, [(prompts[what.prompt], what) for what in together], rows))
        rows_of.update({what: [found[place] for found in scored] for place, what in enumerate(together)})
    return [
        PassScores(what=what, rows=rows_of[what], nulls=_nulls(scorer, prompts[what.prompt], rows, what, domain)) for what in passes
    ]


def keys_from(
    passes: Iterable[PassScores], wanted: Iterable[tuple[str, Criterion]], form: LabelForm, task: TaskConfig
) -> list[PromptKeys]:
    """Turn passes into the keys of (prompt, criterion) pairs, without scoring anything."""
    by_name: Mapping[str, PassScores] = {p.what.name: p for p in passes}
    return [
        _keys(by_name[ScoringPass(prompt=prompt, form=form_of(criterion, form), null=criterion.null).name], criterion, task)
        for prompt, criterion in wanted
    ]


def criterion_of(task: TaskConfig, prompt: str, override: str | None) -> Criterion:
    """Return the criterion named, else the prompt's own."""
    return get_criterion(override or task.prompts[prompt].criterion)


def _keys(scores: PassScores, criterion: Criterion, task: TaskConfig) -> PromptKeys:
    keys = [criterion.key(row, null) for row, null in zip(scores.rows, scores.nulls, strict=True)]
    candidates = Candidates.of(task, scores.what.prompt, with_groups=scores.what.with_groups)
    width = max((len(candidates.labels_of(key)) for key in keys), default=len(task.labels))
    labels = np.full((len(keys), width), -np.inf)
    groups = np.empty((len(keys), len(candidates.groups))) if candidates.groups else None
    for index, key in enumerate(keys):
        own = candidates.mean_over_words(key)
        labels[index, : len(own)] = own
        if groups is not None:
            groups[index] = candidates.groups_of(key)
    return PromptKeys(prompt=scores.what.prompt, criterion=criterion.name, labels_NC=labels, groups_NG=groups)


def _read_together(prompts: Mapping[str, Prompt], passes: Sequence[ScoringPass]) -> list[list[ScoringPass]]:
    """Put passes together that ask for the same kinds of tokens and begin alike; a label that comes first begins its own."""
    groups: dict[object, list[ScoringPass]] = {}
    for what in passes:
        opening = prompts[what.prompt].opening
        groups.setdefault(what if opening is None else (opening, frozenset(what.kinds)), []).append(what)
    return list(groups.values())


def _nulls(
    scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], what: ScoringPass, domain: Sequence[Mapping[str, str]]
) -> Sequence[CandidateScores | None]:
    """Return the scores of each row's null context."""
    if what.null is Null.NONE or not rows:
        return [None] * len(rows)
    if what.null is Null.DOMAIN:
        return _domain_nulls(scorer, prompt, rows, what, domain)
    empty = [prompt.null_row(row) for row in rows]
    if rows[0].candidates is None:
        return [*_score_one(scorer, prompt, empty[:1], what)] * len(rows)
    return [*_score_one(scorer, prompt, empty, what)]


def _domain_nulls(
    scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], what: ScoringPass, domain: Sequence[Mapping[str, str]]
) -> list[CandidateScores]:
    """Return each row's candidates' mean scores over the domain's texts.

    Rows' own candidates are read together, a text with many of them at once: most rows share some, and all of them the texts.
    """
    if not domain:
        raise DataError(
            f"task '{prompt.task.name}', prompt '{prompt.name}': its criterion compares candidates with unlabeled texts of the "
            "task, and there are none; give it an unlabeled split, or take a criterion without them (pmi, total_pmi)"
        )

    def mean_of(row: TaskRow) -> CandidateScores:
        return CandidateScores.mean_of([*_score_one(scorer, prompt, [prompt.domain_row(row, texts) for texts in domain], what)])

    if rows[0].candidates is None:
        return [mean_of(rows[0])] * len(rows)
    words = list(dict.fromkeys(word for row in rows for word in row.candidates or ()))
    place = {word: divmod(index, _WORDS_AT_ONCE) for index, word in enumerate(words)}
    starts = range(0, len(words), _WORDS_AT_ONCE)
    means = [mean_of(replace(rows[0], candidates=tuple(words[start : start + _WORDS_AT_ONCE]))) for start in starts]
    return [CandidateScores.joined([means[at].only([i]) for at, i in map(place.__getitem__, row.candidates or ())]) for row in rows]


def _score_one(scorer: Scorer, prompt: Prompt, rows: Sequence[TaskRow], what: ScoringPass) -> Iterator[CandidateScores]:
    return (scores for (scores,) in _score_rows(scorer, [(prompt, what)], rows))


def _score_rows(
    scorer: Scorer, asked: Sequence[tuple[Prompt, ScoringPass]], rows: Sequence[TaskRow]
) -> Iterator[list[CandidateScores]]:
    """Yield a row's scores under each pass; all of its readings are one example of the scorer."""
    in_flight: deque[list[list[Reading]]] = deque()

    def examples() -> Iterator[list[Reading]]:
        for row in rows:
            in_flight.append([prompt.readings(row, what.form, with_groups=what.with_groups) for prompt, what in asked])
            yield [reading for readings in in_flight[-1] for reading in readings]

    title = f"scoring {asked[0][0].task.name} ({', '.join(dict.fromkeys(what.prompt for _, what in asked))})"
    sums = progress(scorer.score(examples(), frozenset(asked[0][1].kinds)), title, total=len(rows), unit="row")
    for row, sums_C3 in zip(rows, sums, strict=True):
        read = in_flight.popleft()
        parts = np.split(sums_C3, np.cumsum([len(readings) for readings in read])[:-1])
        found = []
        for (prompt, what), readings, part_C3 in zip(asked, read, parts, strict=True):
            scores = candidate_scores(part_C3, readings, prompt.words(row, with_groups=what.with_groups))
            found.append(scores if row.shortlist is None else _spread_out(scores, row, prompt))
        yield found


def _spread_out(scores: CandidateScores, row: TaskRow, prompt: Prompt) -> CandidateScores:
    """Return the scores of a row's shortlist among all labels and synonyms; those that were not asked about stand at -inf."""
    words = prompt.words(replace(row, shortlist=None))
    asked = Candidates.of(prompt.task, prompt.name).places_asked(row)
    sums_C3 = np.full((len(words), len(Span)), -np.inf)
    sums_C3[asked] = scores.sums_C3
    tokens_C3 = np.ones((len(words), len(Span)), np.int64)
    tokens_C3[asked] = scores.tokens_C3
    return CandidateScores(sums_C3=sums_C3, tokens_C3=tokens_C3, characters_C=np.asarray([len(word) for word in words], np.int64))


def candidate_scores(sums_C3: FloatArray, readings: Sequence[Reading], words: Sequence[str]) -> CandidateScores:
    """Join a scorer's sums with what is known of the candidates: targets by kind, and the words' characters."""
    return CandidateScores(
        sums_C3=sums_C3,
        tokens_C3=np.stack([_target_counts(reading) for reading in readings]),
        characters_C=np.asarray([len(word) for word in words], np.int64),
    )


def _target_counts(reading: Reading) -> np.ndarray:
    return np.bincount(reading.kinds_T[reading.targets_T != NO_TARGET], minlength=len(Span))
