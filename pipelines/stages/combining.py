"""How `combined` joins each model with the lexical labeller: what of the model counts, and how often the lexical scores do.

A small base of this project answers together with a lexical labeller that mostly knows more; a fixed weight, found on such bases,
serves them. A pretrained base may know more than the labeller. So its weight follows from the accuracies of both, estimated without
labels by how often they agree on unlabeled rows: each counts as its vote is worth (`pseudo_label.teachers.label_model`). Labelling
has estimated them on all its rows; where nothing was labelled, the rows that calibration is fitted on have to do.

A student of a small base is trained long enough that its reference prompt is calibrated. One of a pretrained base took small steps,
and its change may have been shrunk to keep its language, so that it still leans to some answers, and its other prompts know
what this one does not: its ensemble counts, half of it the prompt that it was trained with.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.artifacts import Artifact
from pipelines.config.label_settings import Teacher
from pipelines.stages.contract import Workshop
from pipelines.stages.evaluated_model import BASE, Measuring, evaluated_model_of, fit_rows_of
from pipelines.stages.lexical_answers import LexicalAnswers
from pipelines.stages.models import weights_of
from pipelines.stages.products import Adaptation, Labels
from pipelines.stages.rows import TaskData
from pseudo_label.decision import LEXICAL_WEIGHT, STUDENT_LEXICAL_WEIGHT, Combining, Method
from pseudo_label.tasks import TaskConfig
from pseudo_label.teachers.contract import row_centred, spread_of
from pseudo_label.teachers.label_model import are_told, estimated_accuracies, labels_of_a_row, vote_weight


def combining_of(
    shop: Workshop,
    how: Measuring,
    data: TaskData,
    models: Mapping[str, Artifact],
    labels: Artifact | None,
    lexical: LexicalAnswers | None,
) -> dict[str, Combining]:
    """Return how each model goes into `combined`; the lexical scores' weight is as set, by the base's kind, or estimated.

    A student that several teachers taught has the lexical labeller's view in its own: for it an estimated or fixed weight is half.
    """
    is_foreign = is_hf_directory(weights_of(models[BASE]))
    weight = how.evaluate.lexical_weight
    ratio = 1.0 if weight is not None else STUDENT_LEXICAL_WEIGHT / LEXICAL_WEIGHT
    if weight is None and is_foreign:
        weight = _told(labels, data.task) or _estimated(shop, how, data, models[BASE], lexical)
    if weight is None:
        weight = LEXICAL_WEIGHT
    of_student = Combining(reference_leads=True) if is_foreign else Combining(model=Method.RAW)
    found = {}
    for name, model in models.items():
        halved = name != BASE and len(Adaptation.of(model).teachers) > 1
        found[name] = replace(Combining() if name == BASE else of_student, lexical_weight=weight * (ratio if halved else 1.0))
    return found


def _told(labels: Artifact | None, task: TaskConfig) -> float | None:
    """Return the worth of the labeller's vote by the estimates that labelling made; None where it did not ask both.

    Estimates near chance tell of neither: then the weight is the fixed one.
    """
    teachers = {} if labels is None else Labels.of(labels).teachers
    names = (Teacher.LEXICAL.value, Teacher.MODEL.value)
    estimates = {name: told for name in names if name in teachers and (told := teachers[name].estimated) is not None}
    if len(estimates) < len(names) or task.candidates is not None:
        return None
    return _ratio(estimates, len(task.labels))


def _ratio(estimates: Mapping[str, float], n_labels: float) -> float:
    lexical, model = (vote_weight(estimates[name], n_labels) for name in (Teacher.LEXICAL.value, Teacher.MODEL.value))
    return lexical / model if are_told(estimates, n_labels) else LEXICAL_WEIGHT


def _estimated(shop: Workshop, how: Measuring, data: TaskData, base: Artifact, lexical: LexicalAnswers | None) -> float | None:
    """Return the worth of the labeller's vote in votes of the base's ensemble; None without unlabeled rows."""
    rows = fit_rows_of(shop, data, how.evaluate.fit_rows)
    if lexical is None or not rows:
        return None
    asked = evaluated_model_of(shop, how, data, BASE, base, [Method.ENSEMBLE])
    decision = asked.decisions[Method.ENSEMBLE]
    keys = asked.scoring.keys(asked.fitted_on.passes, data.task, decision.prompts)
    scores_NC = decision.scores(keys, data.task)
    model_NC = row_centred(scores_NC) / spread_of(scores_NC)
    views = {Teacher.MODEL.value: model_NC, Teacher.LEXICAL.value: lexical.labeller.scores(rows)}
    return _ratio(estimated_accuracies(views), labels_of_a_row(views))
