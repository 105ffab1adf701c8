"""Stage `pseudo_label`: unlabeled rows and a model to scored, selected pseudo-labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np
import numpy.typing as npt

from adapt.core.artifacts import Artifact, StageKey
from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm
from adapt.core.typed import to_plain
from adapt.text.corpus import is_held_out
from pipelines.criteria_table import criteria_pairs
from pipelines.rows import LABELLED_SPLITS, AdaptationRows, adaptation_rows, labelled_rows
from pipelines.schema import PipelineConfig
from pipelines.scores import content_free_keys, scores_of
from pipelines.stage import Plan, Walk, plain_settings
from pseudo_label.accuracy import accuracy_of
from pseudo_label.coarse_to_fine import CoarseToFine
from pseudo_label.decision import Decision, Method, fit_decision, margins, refuse_collapse, softmax
from pseudo_label.labelling import ScoringConfig, predictions
from pseudo_label.selection import agreement, select
from pseudo_label.store import LABELS_FILE, Provenance, PseudoLabel, write_labels
from pseudo_label.tasks import TaskConfig, TaskRow, row_digest
from pseudo_label.zero_shot import PromptKeys, passes_for

NAME = "pseudo_label"
PER_TASK = True
DECISION_FILE = "decision.json"


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Label a task's unlabeled rows with the base model, in later rounds with the one adapted before."""
    assert task is not None
    config, settings = walk.config, walk.config.pseudo_label
    base, labeller = walk.base(), walk.labeller(task)
    measured_on = LABELLED_SPLITS if settings.estimates_noise else ()
    key = StageKey(
        stage=NAME,
        config=plain_settings(
            task=task,
            pseudo_label=settings,
            form=label_form(config),
            exclude=config.exclude_eval.splits,
            precision=config.scorer.precision,
            seed=config.seed,
        ),
        inputs={"base": base, "labeller": labeller},
        files=walk.split_digests(task, list(dict.fromkeys(["unlabeled", *config.exclude_eval.splits, *measured_on]))),
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        given = adaptation_rows(walk, task, settings.max_rows)
        walk.say_if_treeless(task, wants_groups=settings.coarse_to_fine)
        scoring = scoring_of(config, task)
        coarse = coarse_of(task, settings.coarse_to_fine, settings.coarse)
        scored = scores_of(walk, task, labeller, "unlabeled", given.rows, scoring.passes(task))
        keys = scoring.keys(scored.passes, task)
        is_free = settings.method is Method.CONTENT_FREE
        fit_keys = content_free_keys(walk, task, labeller, scoring) if is_free else keys
        decision = fit_decision(settings.method, fit_keys, task, coarse_to_fine=coarse)
        labels = _labels(task, config, given.rows, keys, decision, is_first_round=labeller.digest == base.digest)
        provenance = Provenance(
            prompt="+".join(decision.prompts),
            criterion="+".join(dict.fromkeys(k.criterion for k in keys if k.prompt in decision.prompts)),
            method=decision.method.value,
            checkpoint=labeller.digest,
        )
        write_labels(result / LABELS_FILE, task, given.rows, labels, provenance)
        text = json.dumps(to_plain(decision), ensure_ascii=False, indent=1) + "\n"
        (result / DECISION_FILE).write_text(text, encoding="utf-8")
        noise = _noise(walk, task, labeller, scoring, decision, labels) if settings.estimates_noise else {}
        return {**_summary(task, given, labels), **noise}

    return Plan(key=key, build=build, describe=_describe)


def scoring_of(config: PipelineConfig, task: TaskConfig) -> ScoringConfig:
    """Return how rows are scored for labelling."""
    settings = config.pseudo_label
    return ScoringConfig(
        form=label_form(config),
        prompts=chosen_prompts(config, task),
        criterion=settings.criterion,
        with_groups=settings.coarse_to_fine and task.label_tree is not None,
    )


def label_form(config: PipelineConfig) -> LabelForm:
    """Return the form that unlabeled rows are scored in."""
    return config.pseudo_label.form or config.objective.pseudo_label.form


def chosen_prompts(config: PipelineConfig, task: TaskConfig) -> list[str] | None:
    """Return the prompts that were asked for, if any. Raises ConfigError for one that the task does not have."""
    names = config.pseudo_label.prompts
    for name in names or []:
        if name not in task.prompts:
            there = ", ".join(task.prompts)
            hint = suggest(name, list(task.prompts))
            raise ConfigError(f"pseudo_label.prompts: task '{task.name}' has no prompt '{name}'{hint}; it has: {there}")
    return names


def coarse_of(task: TaskConfig, is_on: bool, settings: CoarseToFine) -> CoarseToFine | None:
    """Return how coarse-to-fine decides, or None where it is off or the task has no tree."""
    return settings if is_on and task.label_tree is not None else None


def _labels(
    task: TaskConfig,
    config: PipelineConfig,
    rows: list[TaskRow],
    keys: list[PromptKeys],
    decision: Decision,
    *,
    is_first_round: bool,
) -> list[PseudoLabel]:
    """Decide, refuse a collapse of the first round (that of a later one only ends the rounds), and select.

    Raises:
        DataError: one class took nearly all raw predictions and nothing corrects it.
    """
    if not rows:
        return []
    settings = config.pseudo_label
    scores = decision.scores(keys, task)
    if is_first_round:
        refuse_collapse(scores, decision, task, settings.collapse_limit)
    held_out = np.asarray([is_held_out(row_digest(row, task), settings.held_out_share) for row in rows], dtype=bool)
    agreed = agreement(scores, keys, task)
    columns = {
        "label": predictions(scores, rows, task),
        "margin": margins(scores).tolist(),
        "confidence": softmax(scores).max(axis=1).tolist(),
        "agreement": agreed.tolist(),
        "scores": scores.tolist(),
        "probabilities": softmax(scores).tolist(),
        "is_selected": select(scores, ~held_out, settings.selection, agreed).tolist(),
        "is_held_out": held_out.tolist(),
        "line": [row.line for row in rows],
    }
    return [PseudoLabel(**dict(zip(columns, values, strict=True))) for values in zip(*columns.values(), strict=True)]


def _noise(
    walk: Walk, task: TaskConfig, labeller: Artifact, scoring: ScoringConfig, decision: Decision, labels: list[PseudoLabel]
) -> dict[str, Any]:
    """Estimate how many selected labels are wrong: by the prompts' agreement, and on labelled rows that would be selected too."""
    selected = [label for label in labels if label.is_selected]
    if not selected:
        return {}
    found: dict[str, Any] = {"noise/disagreement": 1 - float(np.mean([label.agreement for label in selected]))}
    least = {name: min(label.margin for label in selected if label.label == name) for name in {x.label for x in selected}}
    guesses: list[str] = []
    gold: list[str] = []
    # With the passes that evaluation needs, so that it finds these rows scored.
    pairs = [*scoring.pairs(task), *criteria_pairs(task, walk.config.evaluate.criteria)]
    passes = passes_for(pairs, scoring.form, with_groups=scoring.with_groups)
    for split, rows in labelled_rows(walk, task).items():
        scored = scores_of(walk, task, labeller, split, rows, passes)
        scores: FloatArray = decision.scores(scoring.keys(scored.passes, task), task)
        answers, sure = predictions(scores, rows, task), margins(scores)
        would: npt.NDArray[np.bool_] = np.asarray([m >= least.get(a, np.inf) for a, m in zip(answers, sure, strict=True)])
        guesses += [answers[i] for i in np.flatnonzero(would)]
        gold += [rows[i].label or "" for i in np.flatnonzero(would)]
    if gold:
        found["noise/labelled"] = to_plain(accuracy_of(guesses, gold))
    return found


def _summary(task: TaskConfig, given: AdaptationRows, labels: list[PseudoLabel]) -> dict[str, Any]:
    by_class = dict.fromkeys(task.labels, 0)
    for label in labels:
        if label.is_selected:
            by_class[label.label] = by_class.get(label.label, 0) + 1
    predicted = [label.label for label in labels]
    return {
        "rows": len(labels),
        "excluded": given.n_excluded,
        "sharing_a_passage": given.n_sharing,
        "selected": sum(label.is_selected for label in labels),
        "held_out": sum(label.is_held_out for label in labels),
        "selected_by_class": by_class,
        "empty_classes": [label for label, count in by_class.items() if count == 0 and task.candidates is None],
        "largest_class_share": max((predicted.count(x) for x in set(predicted)), default=0) / max(len(labels), 1),
    }


def _describe(artifact: Artifact) -> str:
    m = artifact.metrics
    if not m["rows"]:
        return "no unlabeled rows: nothing to label, the base model will be evaluated as it is"
    text = f"{m['selected']} of {m['rows']} rows selected, {m['held_out']} held out, {m['excluded']} left out as evaluation texts"
    if m["sharing_a_passage"]:
        text += f", {m['sharing_a_passage']} share a passage with evaluation texts"
    if "noise/disagreement" in m:
        text += f"; prompts disagree on {100 * m['noise/disagreement']:.0f} % of the selected"
    if "noise/labelled" in m:
        labelled = m["noise/labelled"]
        text += f", {100 * labelled['accuracy']:.0f} % of {labelled['n']} labelled rows as sure as these are right"
    if m["empty_classes"]:
        text += f"; no example of {', '.join(m['empty_classes'])}"
    return text


if __name__ == "__main__":
    from pipelines.compose import main

    main(NAME)
