"""Stage `pseudo_label`: unlabeled rows and a model to scored, selected pseudo-labels."""

from __future__ import annotations

import logging
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.artifacts import FIGURES_FILE, Artifact
from adapt.core.json_files import write_json
from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm
from adapt.core.typed import to_plain
from adapt.text.corpus import is_held_out
from pipelines.config.label_settings import PseudoLabelConfig, Teacher
from pipelines.stages.contract import Files, Stage, Workshop, unkeyed
from pipelines.stages.copied_rows import copies
from pipelines.stages.criteria_table import criteria_pairs
from pipelines.stages.disagreement import TOGETHER, LabelFigures, NoiseBin, TeacherViews, noise_bins
from pipelines.stages.models import weights_of
from pipelines.stages.products import Labels, TeacherRecord
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, AdaptationRows, TaskData, adaptation_rows, labelled_rows
from pipelines.stages.run import Run
from pipelines.stages.scores import ScorerReads
from pipelines.stages.scoring_choice import coarse_of, label_form, say_if_treeless, scoring_of
from pipelines.stages.teacher_panel import Panel, TeacherReads, encoder_artifact, fit_panel, teacher_file
from pipelines.stages.teachers import Views
from pseudo_label.accuracy import accuracy_of
from pseudo_label.decision import margins, refuse_collapse, softmax
from pseudo_label.labelling import predictions
from pseudo_label.selection import agreement, select
from pseudo_label.store import LABELS_FILE, Provenance, PseudoLabel, reading_digest, write_labels
from pseudo_label.tasks import TaskConfig, TaskRow, row_digest
from pseudo_label.teachers import lexical_files
from pseudo_label.zero_shot import passes_for

NAME = "pseudo_label"
DECISION_FILE = "decision.json"
logger = logging.getLogger("pipelines")


@dataclass(frozen=True, kw_only=True)
class PseudoLabelReads(TeacherReads):
    """What the teachers read; the `labeller` is the base, in later rounds the model adapted in the round before."""

    form: LabelForm
    base: Artifact
    compared: list[str] = unkeyed("evaluation's criteria: with them, labelled splits are scored once for both stages")


class PseudoLabelStage(Stage[PseudoLabelReads]):
    """Label a task's unlabeled rows with the base model, in later rounds with the one adapted before."""

    name = NAME
    # labels name the order that they follow; a file of labels is measured on rows that it names by their texts; an empty id is none
    # a file's labels are those of `gold.py`, its texts name rows where its ids name none; copies of labelled rows count once
    version = 12  # fixed weights where estimates are near chance

    def reads(self, run: Run, task: TaskConfig | None) -> PseudoLabelReads:
        assert task is not None
        config, base = run.config, run.base()
        settings = config.pseudo_label.settled(is_foreign=is_hf_directory(weights_of(base)))
        measured_on = LABELLED_SPLITS if settings.estimates_noise else ()
        file = teacher_file(settings)
        return PseudoLabelReads(
            data=TaskData.of(run, task, [UNLABELED, *measured_on]),
            pseudo_label=settings,
            form=label_form(config),
            scorer=ScorerReads.of(run),
            base=base,
            labeller=run.labeller(task),
            encoder=encoder_artifact(settings),
            teacher_file=Files() if file is None else Files({"teacher_file": file}),
            compared=config.evaluate.criteria,
        )

    def build(self, reads: PseudoLabelReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        task, settings = reads.data.task, reads.pseudo_label
        given = adaptation_rows(shop, reads.data, settings.max_rows)
        say_if_treeless(task, wants_groups=settings.coarse_to_fine)
        if not given.rows:
            write_labels(result / LABELS_FILE, task, [], [], Provenance(prompt="", criterion="", method="", checkpoint=""))
            return _counted(task, given, []).metrics()
        scoring = scoring_of(settings, reads.form, task)
        coarse = coarse_of(task, settings.coarse_to_fine, settings.coarse)
        # Labelled splits are read with the passes that evaluation needs, so that it finds these rows scored.
        pairs = [*scoring.pairs(task), *criteria_pairs(task, reads.compared)]
        passes = passes_for(pairs, scoring.form, with_groups=scoring.with_groups)
        panel = fit_panel(shop, reads, given.rows, scoring, passes, coarse)
        labels = _labels(task, settings, panel, is_first_round=reads.labeller.digest == reads.base.digest)
        write_labels(result / LABELS_FILE, task, given.rows, labels, _provenance(panel, reads.labeller))
        decided = {
            "decision": None if panel.model is None else to_plain(panel.model.decision),
            "combination": None if panel.combination is None else to_plain(panel.combination),
        }
        write_json(result / DECISION_FILE, decided)
        if panel.taught is not None:
            lexical_files.save(result, panel.taught)
        views = None
        if len(panel.ask) > 1:
            views = TeacherViews.of(given.rows, task, panel.unlabeled.scores, panel.scores())
        made = replace(_counted(task, given, labels), teachers=_teachers(panel), taught=panel.flips)
        noise: list[NoiseBin] = []
        if settings.estimates_noise:
            made, noise = _measured(made, labelled_rows(shop, reads.data), task, panel, labels)
        LabelFigures(views=views, noise=noise).write(result / FIGURES_FILE)
        return made.metrics()

    def describe(self, artifact: Artifact) -> str:
        found = Labels.of(artifact)
        if not found.rows:
            return "no unlabeled rows: nothing to label, the base model will be evaluated as it is"
        text = f"{found.selected} of {found.rows} rows selected, {found.held_out} held out, "
        text += f"{found.excluded} left out as evaluation texts"
        if found.sharing_a_passage:
            text += f", {found.sharing_a_passage} share a passage with evaluation texts"
        if len(found.teachers) > 1:
            text += f"; {found.said_of_teachers}"
        if found.disagreement is not None:
            voters = "prompts and other teachers" if len(found.teachers) > 1 else "prompts"
            text += f"; {voters} disagree on {100 * found.disagreement:.0f} % of the selected"
        if found.labelled is not None:
            labelled = found.labelled
            text += f", {100 * labelled.accuracy:.0f} % of {labelled.n} labelled rows as sure as these are right"
        if found.empty_classes:
            text += f"; no example of {', '.join(found.empty_classes)}"
        return text


STAGE = PseudoLabelStage()


def _provenance(panel: Panel, labeller: Artifact) -> Provenance:
    """Return where labels come from: prompts and criteria of the model, where it teaches, and the teachers' names."""
    prompts = [] if panel.model is None else panel.model.decision.prompts
    keys = [] if panel.model is None else panel.model.keys
    method = "" if panel.model is None else panel.model.decision.method.value
    teachers = "+".join(panel.ask)
    return Provenance(
        prompt="+".join(prompts),
        criterion="+".join(dict.fromkeys(k.criterion for k in keys if k.prompt in prompts)),
        method=method if panel.combination is None and panel.model is not None else f"{teachers} {method}".strip(),
        checkpoint=labeller.digest,
    )


def _labels(task: TaskConfig, settings: PseudoLabelConfig, panel: Panel, *, is_first_round: bool) -> list[PseudoLabel]:
    """Decide, refuse a collapse of the first round (that of a later one only ends the rounds), and select.

    Raises:
        DataError: one class took nearly all raw predictions of the only teacher and nothing corrects it.
    """
    rows = panel.unlabeled.rows
    scores = panel.scores()
    if is_first_round and panel.combination is None and panel.model is not None:
        refuse_collapse(scores, panel.model.decision, task, settings.collapse_limit)
    held_out = np.asarray([is_held_out(row_digest(row, task), settings.held_out_share) for row in rows], dtype=bool)
    keys = [] if panel.model is None else panel.model.keys
    others = [view for name, view in panel.unlabeled.scores.items() if name != Teacher.MODEL.value]
    agreed = agreement(scores, keys, task, others)
    shares = task.shares() if task.candidates is None else None
    columns = {
        "label": predictions(scores, rows, task),
        "margin": margins(scores).tolist(),
        "confidence": softmax(scores).max(axis=1).tolist(),
        "agreement": agreed.tolist(),
        "labels": [task.labels] * len(rows),
        "scores": scores.tolist(),
        "probabilities": softmax(scores).tolist(),
        "is_selected": select(scores, ~held_out, settings.selection, agreed, shares).tolist(),
        "is_held_out": held_out.tolist(),
        "line": [row.line for row in rows],
        "text_digest": [reading_digest(row) for row in rows],
    }
    return [PseudoLabel(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _teachers(panel: Panel) -> dict[str, TeacherRecord]:
    """Return each teacher's weight and estimated accuracy."""
    if panel.combination is None:
        return {name: TeacherRecord() for name in panel.ask}
    estimates, weights = panel.combination.estimates, panel.combination.weights
    return {name: TeacherRecord(weight=weights[name], estimated=estimates.get(name)) for name in panel.ask}


def _measured(
    made: Labels, labelled: Mapping[str, list[TaskRow]], task: TaskConfig, panel: Panel, labels: list[PseudoLabel]
) -> tuple[Labels, list[NoiseBin]]:
    """Add how many selected labels are wrong: by agreement, and on labelled rows that would be selected too.

    The accuracy of each teacher is measured on all labelled rows, and so is how right labels of a confidence are. A file of labels
    is measured on the rows that it names; rows of which no teacher says anything, and copies of others, are left out.
    """
    selected = [label for label in labels if label.is_selected]
    n_voters = len(panel.ask) if panel.model is None else len(panel.ask) - 1 + len(panel.model.keys)
    if selected and n_voters > 1:
        made = replace(made, disagreement=1 - float(np.mean([label.agreement for label in selected])))
    least = {name: min(label.margin for label in selected if label.label == name) for name in {x.label for x in selected}}
    guesses: list[str] = []
    gold: list[str] = []
    right: dict[str, list[float]] = {}
    confidences: list[float] = []
    copied = copies(labelled)
    for split, rows in labelled.items():
        views = panel.views(split, rows)
        said = {name: _says_N(name, view) for name, view in views.scores.items()}
        known_N = np.any(list(said.values()), axis=0) & ~np.isin(np.arange(len(rows)), copied[split])
        if not known_N.any():
            continue
        rows = [row for row, is_known in zip(rows, known_N, strict=True) if is_known]
        views = Views(rows=rows, scores={name: view[known_N] for name, view in views.scores.items()})
        said = {name: says_N[known_N] for name, says_N in said.items()} | {TOGETHER: np.ones(len(rows), dtype=bool)}
        scores: FloatArray = panel.decided(views)
        answers, sure = predictions(scores, rows, task), margins(scores)
        confidences += softmax(scores).max(axis=1).tolist()
        would: npt.NDArray[np.bool_] = np.asarray([m >= least.get(a, np.inf) for a, m in zip(answers, sure, strict=True)])
        guesses += [answers[i] for i in np.flatnonzero(would)]
        gold += [rows[i].label or "" for i in np.flatnonzero(would)]
        for name, view in {**views.scores, TOGETHER: scores}.items():
            given = predictions(view, rows, task)
            right.setdefault(name, []).extend(
                float(a == row.label) for a, row, says in zip(given, rows, said[name], strict=True) if says
            )
    if gold and selected:
        made = replace(made, labelled=accuracy_of(guesses, gold))
    noise = noise_bins(confidences, [value == 1.0 for value in right.get(TOGETHER, [])])
    if labelled and Teacher.FILE.value in panel.ask and not right.get(Teacher.FILE.value):
        logger.info("pseudo_label %s: the file of labels is not measured; it has no text of %s", task.name, ", ".join(labelled))
    return replace(made, measured={name: float(np.mean(values)) for name, values in right.items() if values}), noise


def _says_N(name: str, view_NC: FloatArray) -> npt.NDArray[np.bool_]:
    """Return of which rows a teacher says anything: a file of labels of those that it names, any other teacher of all."""
    if name != Teacher.FILE.value:
        return np.ones(len(view_NC), dtype=bool)
    return np.asarray(np.where(np.isfinite(view_NC), view_NC, 0.0).any(axis=1))


def _counted(task: TaskConfig, given: AdaptationRows, labels: list[PseudoLabel]) -> Labels:
    """Count the rows by what became of them."""
    by_class = dict.fromkeys(task.labels, 0)
    for label in labels:
        if label.is_selected:
            by_class[label.label] = by_class.get(label.label, 0) + 1
    predicted = [label.label for label in labels]
    return Labels(
        rows=len(labels),
        excluded=given.n_excluded,
        sharing_a_passage=given.n_sharing,
        selected=sum(label.is_selected for label in labels),
        held_out=sum(label.is_held_out for label in labels),
        selected_by_class=by_class,
        empty_classes=[label for label, count in by_class.items() if count == 0 and task.candidates is None],
        largest_class_share=max((predicted.count(x) for x in set(predicted)), default=0) / max(len(labels), 1),
    )
