"""The teachers that label a task's rows, side by side: fitted on the unlabeled rows, asked about any others, and summed.

Teachers feed each other for some rounds: the lexical and the embedding one learn again from the sum of all. A round is taken back
when it changes too many labels or lets one label take over: self-training sharpens first and decays then.

Legend: N rows, C labels.
"""

from __future__ import annotations

import logging
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING

import numpy as np

from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError, ConfigError, DataError
from adapt.core.scorer import FloatArray
from pipelines.config.label_settings import PseudoLabelConfig, Teacher, Weighting
from pipelines.stages.contract import Files, Reads, Workshop
from pipelines.stages.models import open_model_artifact, weights_of
from pipelines.stages.rows import UNLABELED, TaskData, adaptation_rows, sample_rows
from pipelines.stages.scores import ScorerReads, content_free_keys, scores_of
from pipelines.stages.teachers import Views, lexical_of
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.decision import LEXICAL_WEIGHT, Decision, Method, fit_decision
from pseudo_label.labelling import ScoringConfig
from pseudo_label.shortlist import with_shortlists, within_shortlists
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.teachers import lexical_files
from pseudo_label.teachers.contract import FittedTeacher, row_centred, spread_of
from pseudo_label.teachers.embedding import fit_embedding
from pseudo_label.teachers.file import LabelFile, read_label_file
from pseudo_label.teachers.label_model import Combination, are_told, fit_combination, labels_of_a_row
from pseudo_label.teachers.rules import fit_rules
from pseudo_label.zero_shot import PassScores, PromptKeys, ScoringPass

if TYPE_CHECKING:
    from adapt.scoring.encoder import MeanEncoder

logger = logging.getLogger("pipelines")
_ROWS_IN_FULL = 500  # that are scored under every label where others have a shortlist
_FLIP_LIMIT = 0.3  # share of labels that a round of teaching may change

Ask = Callable[[str, Sequence[TaskRow]], FloatArray]


@dataclass(frozen=True, kw_only=True)
class TeacherReads(Reads):
    """What teachers read: the task's rows, the settings, the model that labels, and what the teachers named have of their own."""

    data: TaskData
    pseudo_label: PseudoLabelConfig
    scorer: ScorerReads
    labeller: Artifact
    encoder: Artifact | None
    teacher_file: Files


@dataclass(frozen=True, kw_only=True, eq=False)
class ModelTeacher:
    """The model's own labels: its prompts' keys of the unlabeled rows and the decision fitted on them.

    Its scores are divided by `spread`; by itself (None) they stay as they are.
    """

    decision: Decision
    keys: list[PromptKeys]
    spread: float | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Panel:
    """Fitted teachers: what each says of the unlabeled rows, how to ask it about others, and how they are summed.

    A single teacher is not summed: `combination` is None and its scores stand as they are. `flips` are the shares of labels that
    each round of teaching changed, `taught` is the lexical labeller after the last of them.
    """

    task: TaskConfig
    unlabeled: Views
    ask: Mapping[str, Ask]
    combination: Combination | None
    model: ModelTeacher | None
    flips: list[float] = field(default_factory=list)
    taught: lexical_files.Lexical | None = None

    def scores(self) -> FloatArray:
        """Return the unlabeled rows' scores [N, C] that labels are made of."""
        return self.decided(self.unlabeled)

    def views(self, split: str, rows: Sequence[TaskRow]) -> Views:
        """Return what each teacher says of a split's rows."""
        return Views(rows=rows, scores={name: ask(split, rows) for name, ask in self.ask.items()})

    def decided(self, views: Views) -> FloatArray:
        """Return the scores [N, C] of rows by all teachers together."""
        if self.combination is None:
            return next(iter(views.scores.values()))
        return views.combined(self.combination)


def fit_panel(
    shop: Workshop,
    reads: TeacherReads,
    rows: Sequence[TaskRow],
    scoring: ScoringConfig,
    passes: Sequence[ScoringPass],
    coarse: CoarseToFine | None,
) -> Panel:
    """Fit the teachers of `pseudo_label.teachers` on unlabeled rows, sum them, and let them teach each other.

    `passes` are what a labelled split is read with, so that evaluation finds it scored.

    Raises:
        ConfigError: a teacher cannot serve this task.
        DataError: the file of labels is missing or malformed.
    """
    settings, task, seed = reads.pseudo_label, reads.data.task, reads.data.seed
    check_teachers(settings, task)
    scores: dict[str, FloatArray] = {}
    ask: dict[str, Ask] = {}
    model: ModelTeacher | None = None
    is_alone = len(settings.teachers) == 1
    count = settings.shortlist if task.candidates is None else None
    lexical = Teacher.LEXICAL.value
    for teacher in sorted(settings.teachers, key=lambda teacher: count is not None and teacher is Teacher.MODEL):
        name = teacher.value
        if teacher is not Teacher.MODEL:
            fitted, scores[name] = _fit_other(shop, reads, teacher, rows)
            ask[name] = _ask_file(fitted) if isinstance(fitted, LabelFile) else _ask_fitted(fitted)
            continue
        asked = rows if count is None else _shortlisted(rows, task, scores[lexical], count, seed)
        model = _model_teacher(shop, reads, asked, scoring, coarse, is_alone=is_alone)
        scores[name] = _model_scores(model, model.keys, task)
        ask[name] = _ask_model(shop, reads, scoring, passes, model)
        if count is not None:
            scores[name] = within_shortlists(scores[name], scores[lexical], count)
            ask[name] = _within(ask[name], ask[lexical], count)
    # In the order that they were named, whatever order they were fitted in.
    views = Views(rows=rows, scores={teacher.value: scores[teacher.value] for teacher in settings.teachers})
    combination = None if is_alone else _combination(shop, settings, views, task)
    panel = Panel(task=task, unlabeled=views, ask=ask, combination=combination, model=model)
    return _taught(shop, reads, panel)


def _combination(shop: Workshop, settings: PseudoLabelConfig, views: Views, task: TaskConfig) -> Combination:
    """Weigh the teachers as the settings say; by fixed weights too where estimates are near chance and tell of none."""
    found = fit_combination(views.scores, _weights(settings))
    if settings.weighting is not Weighting.ESTIMATED or not views.rows or are_told(found.estimates, labels_of_a_row(views.scores)):
        return found
    shop.say_once(f"{task.name}: a teacher agrees with the others no more than by chance, so fixed weights count, not estimates")
    return fit_combination(views.scores, {Teacher.LEXICAL.value: LEXICAL_WEIGHT})


def _weights(settings: PseudoLabelConfig) -> dict[str, float] | None:
    """Return the teachers' weights, or None where they follow from estimated accuracies."""
    if settings.weighting is Weighting.ESTIMATED:
        return None
    return {Teacher.LEXICAL.value: LEXICAL_WEIGHT, **(settings.teacher_weights or {})}


def check_teachers(settings: PseudoLabelConfig, task: TaskConfig) -> None:
    """Raise ConfigError where a teacher cannot serve a task."""
    teachers = settings.teachers
    if Teacher.RULES in teachers and not task.rules:
        raise ConfigError(f"pseudo_label.teachers: task '{task.name}' has no rules; add them to its file, or leave 'rules' out")
    if Teacher.EMBEDDING in teachers and task.candidates is not None:
        raise ConfigError(f"pseudo_label.teachers: 'embedding' has no labels to learn in task '{task.name}'; leave it out")


def check_encoder(settings: PseudoLabelConfig) -> None:
    """Raise CheckpointError where the encoder's directory is not there."""
    place = settings.encoder
    if Teacher.EMBEDDING in settings.teachers and place is not None and not Path(place).is_dir():
        raise CheckpointError(f"pseudo_label.encoder: {place}: no such directory; give a checkpoint or a Hugging Face directory")


def _model_teacher(
    shop: Workshop,
    reads: TeacherReads,
    rows: Sequence[TaskRow],
    scoring: ScoringConfig,
    coarse: CoarseToFine | None,
    *,
    is_alone: bool,
) -> ModelTeacher:
    """Score the rows and fit the model's decision, on those of them that were scored in full."""
    method, task, labeller = reads.pseudo_label.method, reads.data.task, reads.labeller
    scored = scores_of(shop, reads.scorer, reads.data, labeller, UNLABELED, rows, scoring.passes(task))
    keys = scoring.keys(scored.passes, task)
    whole = np.asarray([row.shortlist is None for row in rows], dtype=bool)
    whole_keys = keys if whole.all() else [k.of_rows(whole) for k in keys]
    is_content_free = method is Method.CONTENT_FREE
    fit_keys = content_free_keys(shop, reads.scorer, reads.data, labeller, scoring) if is_content_free else whole_keys
    decision = fit_decision(method, fit_keys, task, coarse_to_fine=coarse)
    return ModelTeacher(decision=decision, keys=keys, spread=None if is_alone else spread_of(decision.scores(whole_keys, task)))


def _shortlisted(rows: Sequence[TaskRow], task: TaskConfig, lexical_NC: FloatArray, count: int, seed: int) -> list[TaskRow]:
    """Return the rows with their shortlists, and a sample of them without, on which the model's decision is fitted."""
    in_full = {row.line for row in sample_rows(rows, task, _ROWS_IN_FULL, seed)[0]}
    listed = with_shortlists(rows, lexical_NC, count)
    return [row if row.line in in_full else short for row, short in zip(rows, listed, strict=True)]


def _within(ask_model: Ask, ask_lexical: Ask, count: int) -> Ask:
    return lambda split, rows: within_shortlists(ask_model(split, rows), ask_lexical(split, rows), count)


def _model_scores(model: ModelTeacher, keys: list[PromptKeys], task: TaskConfig) -> FloatArray:
    scores_NC = model.decision.scores(keys, task)
    return scores_NC if model.spread is None else row_centred(scores_NC) / model.spread


def _ask_model(
    shop: Workshop, reads: TeacherReads, scoring: ScoringConfig, passes: Sequence[ScoringPass], model: ModelTeacher
) -> Ask:
    def ask(split: str, rows: Sequence[TaskRow]) -> FloatArray:
        found: list[PassScores] = scores_of(shop, reads.scorer, reads.data, reads.labeller, split, rows, passes).passes
        return _model_scores(model, scoring.keys(found, reads.data.task), reads.data.task)

    return ask


def _ask_fitted(fitted: FittedTeacher) -> Ask:
    return lambda split, rows: fitted.scores(rows)


def _ask_file(file: LabelFile) -> Ask:
    elsewhere = file.of_other_splits()
    return lambda split, rows: (file if split == UNLABELED else elsewhere).scores(rows)


def _fit_other(shop: Workshop, reads: TeacherReads, teacher: Teacher, rows: Sequence[TaskRow]) -> tuple[FittedTeacher, FloatArray]:
    """Fit a teacher that is not the model's prompts; return it and the unlabeled rows' scores."""
    task = reads.data.task
    if teacher is Teacher.LEXICAL:
        lexical = lexical_of(shop, reads.data)
        assert lexical is not None, "there are unlabeled rows"
        return lexical, lexical.scores(rows)
    if teacher is Teacher.RULES:
        rules = fit_rules(task, rows)
        return rules, rules.scores(rows)
    if teacher is Teacher.FILE:
        every = reads.data.iterate(UNLABELED)
        file = read_label_file(reads.teacher_file.paths["teacher_file"], task).fitted(rows, every)
        for finding in file.findings:
            logger.info("pseudo_label %s: the file of labels: %s", task.name, finding)
        logger.info("pseudo_label %s: the file of labels names %.0f %% of the rows", task.name, 100 * file.coverage(rows))
        return file, file.scores(rows)
    return fit_embedding(task, rows, _encoder(reads).encode, reads.data.seed)


def _encoder(reads: TeacherReads) -> MeanEncoder:
    from adapt.checkpoint.open_checkpoint import open_checkpoint  # these import torch
    from adapt.scoring.encoder import MeanEncoder

    opened = open_checkpoint(weights_of(reads.encoder or reads.labeller), reads.scorer.scorer, reads.scorer.offload)
    return MeanEncoder(opened.model, opened.tokenizer, opened.device)


def encoder_artifact(settings: PseudoLabelConfig) -> Artifact | None:
    """Return the model that the teacher `embedding` reads with, where it is another one than the labelling model."""
    if Teacher.EMBEDDING not in settings.teachers or settings.encoder is None:
        return None
    return open_model_artifact(Path(settings.encoder), "pseudo_label.encoder")


def teacher_file(settings: PseudoLabelConfig) -> Path | None:
    """Return the file of the teacher `file`; None where it does not teach.

    Raises:
        ConfigError: it has none.
        DataError: it does not exist.
    """
    if Teacher.FILE not in settings.teachers:
        return None
    if settings.teacher_file is None:
        raise ConfigError("pseudo_label.teacher_file: not set; the teacher 'file' needs a file of labels")
    place = Path(settings.teacher_file)
    if not place.is_file():
        raise DataError(f"{place}: no such file; pseudo_label.teacher_file takes rows with id and label")
    return place


def _taught(shop: Workshop, reads: TeacherReads, panel: Panel) -> Panel:
    """Let the lexical teacher learn from the sum of all, round by round, as long as that changes little.

    Where the task has it learn nothing by itself (`lexical.rounds: 0`), it learns nothing here either.
    """
    settings = reads.pseudo_label
    name = Teacher.LEXICAL.value
    if panel.combination is None or name not in panel.ask or panel.task.lexical.rounds == 0:
        return panel
    for number in range(1, settings.teaching_rounds + 1):
        before_NC = panel.scores()
        lexical = _lexical_taught(shop, reads.data, panel, before_NC, keeps=settings.teaching_keeps)
        scores = {**panel.unlabeled.scores, name: lexical.scores(panel.unlabeled.rows)}
        assert panel.combination is not None
        combination = fit_combination(scores, panel.combination.weights, panel.combination.estimates)
        next_panel = Panel(
            task=panel.task,
            unlabeled=Views(rows=panel.unlabeled.rows, scores=scores),
            ask={**panel.ask, name: _ask_fitted(lexical)},
            combination=combination,
            model=panel.model,
            flips=panel.flips,
        )
        after_NC = next_panel.scores()
        flips = float(np.mean(before_NC.argmax(axis=1) != after_NC.argmax(axis=1)))
        reason = _decay(flips, after_NC, settings.collapse_limit, has_classes=panel.task.candidates is None)
        if reason is not None:
            logger.info("pseudo_label %s: round %d of teaching taken back, %s", panel.task.name, number, reason)
            return panel
        panel = replace(next_panel, flips=[*panel.flips, flips], taught=lexical)
    return panel


def _lexical_taught(shop: Workshop, data: TaskData, panel: Panel, summed_NC: FloatArray, *, keeps: bool) -> lexical_files.Lexical:
    """Fit the lexical labeller to the sum of all where rows were labelled, and to its own scores on all other unlabeled rows.

    A sample of the rows would teach it less than it knows of them all. What it `keeps` is what it knew before any round.
    """
    rows = adaptation_rows(shop, data, None).rows
    guide_NC = panel.ask[Teacher.LEXICAL.value](UNLABELED, rows)
    guide_NC = guide_NC / spread_of(guide_NC)
    place = {row.line: index for index, row in enumerate(rows)}
    spread = spread_of(summed_NC)
    for row, scores_C in zip(panel.unlabeled.rows, summed_NC, strict=True):
        guide_NC[place[row.line], : len(scores_C)] = scores_C / spread
    known = lexical_of(shop, data)
    assert known is not None, "there are unlabeled rows"
    return lexical_files.teach(known, rows, data.seed, guide_NC, keeps=keeps)


def _decay(flips: float, scores_NC: FloatArray, limit: float, *, has_classes: bool) -> str | None:
    """Return why a round of teaching made things worse, or None."""
    if flips > _FLIP_LIMIT:
        return f"it changed {100 * flips:.0f} % of the labels"
    largest = np.bincount(scores_NC.argmax(axis=1)).max() / len(scores_NC)
    if has_classes and largest > limit:
        return f"one label took {100 * largest:.0f} % of the rows"
    return None
