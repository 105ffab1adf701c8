"""Stage `pseudo_label`: unlabeled rows and a base model to scored, selected pseudo-labels."""

from __future__ import annotations

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import numpy as np

from adapt.checkpoint.opening import open_checkpoint
from adapt.core.artifacts import Artifact, StageKey
from adapt.core.typed import to_plain
from adapt.text.corpus import is_held_out
from pipelines.stage import Plan, Walk, plain_settings, weights_of
from pseudo_label.decision import margins, refuse_collapse, softmax
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.selection import select
from pseudo_label.store import LABELS_FILE, SCORES_FILE, Provenance, PseudoLabel, write_labels, write_scores
from pseudo_label.tasks import TaskConfig, TaskRow, read_split, row_digest, split_path

NAME = "pseudo_label"
PER_TASK = True
DECISION_FILE = "decision.json"


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Label a task's unlabeled rows with the base model."""
    assert task is not None
    config = walk.config
    settings = config.pseudo_label
    base = walk.base()
    read_files = ["unlabeled", *config.data.exclude_eval]
    key = StageKey(
        stage=NAME,
        config=plain_settings(
            task=task, pseudo_label=settings, form=config.objective.pseudo_label, exclude=config.data.exclude_eval
        ),
        inputs={"base": base},
        files=walk.split_digests(task, read_files),
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        rows, n_excluded = adaptation_rows(walk, task, settings.max_rows)
        scoring = ScoringConfig(
            form=config.objective.pseudo_label,
            prompts=settings.prompts,
            criterion=settings.criterion,
            with_groups=settings.coarse_to_fine and task.label_tree is not None,
        )
        walk.say_if_treeless(task, wants_groups=settings.coarse_to_fine)
        opened = open_checkpoint(weights_of(base), config.scorer)
        scorer = TaskScorer(task, scoring, opened.scorer, opened.tokenizer)
        keys = scorer.keys(rows)
        decision = scorer.fit(settings.method, keys, coarse_to_fine=settings.coarse_to_fine)
        scores = decision.scores(keys, task) if rows else np.empty((0, max(len(task.labels), 1)))
        refuse_collapse(scores, decision, task, settings.collapse_limit)
        held_out = np.asarray([is_held_out(row_digest(row, task), settings.held_out_share) for row in rows], dtype=bool)
        selected = select(scores, ~held_out, settings.selection)
        confidence = softmax(scores).max(axis=1) if rows else np.empty(0)
        labels = [
            PseudoLabel(
                line=row.line,
                label=label,
                margin=float(margin),
                confidence=float(sure),
                scores=score.tolist(),
                is_selected=bool(is_chosen),
                is_held_out=bool(is_out),
            )
            for row, label, margin, sure, score, is_chosen, is_out in zip(
                rows,
                predictions(scores, rows, task),
                margins(scores),
                confidence,
                scores,
                selected,
                held_out,
                strict=True,
            )
        ]
        provenance = Provenance(
            prompt="+".join(decision.prompts),
            criterion="+".join(dict.fromkeys(k.criterion for k in keys if k.prompt in decision.prompts)),
            method=decision.method.value,
            checkpoint=base.digest,
        )
        write_scores(result / SCORES_FILE, task, rows, keys, base.digest)
        write_labels(result / LABELS_FILE, task, rows, labels, provenance)
        text = json.dumps(to_plain(decision), ensure_ascii=False, indent=1) + "\n"
        (result / DECISION_FILE).write_text(text, encoding="utf-8")
        return {"excluded": n_excluded, **_summary(task, labels)}

    return Plan(key=key, build=build, describe=_describe)


def adaptation_rows(walk: Walk, task: TaskConfig, limit: int | None) -> tuple[list[TaskRow], int]:
    """Read the unlabeled rows that may be adapted on, and count those kept out because an evaluation split has their text."""
    excluded = {
        row_digest(row, task)
        for split in walk.config.data.exclude_eval
        if split_path(walk.data_root(), task, split).is_file()
        for row in read_split(walk.data_root(), task, split)
    }
    rows = read_split(walk.data_root(), task, "unlabeled")
    allowed = [row for row in rows if row_digest(row, task) not in excluded]
    return allowed[:limit], len(rows) - len(allowed)


def _summary(task: TaskConfig, labels: list[PseudoLabel]) -> dict[str, Any]:
    by_class = dict.fromkeys(task.labels, 0)
    for label in labels:
        if label.is_selected:
            by_class[label.label] = by_class.get(label.label, 0) + 1
    return {
        "rows": len(labels),
        "selected": sum(label.is_selected for label in labels),
        "held_out": sum(label.is_held_out for label in labels),
        "selected_by_class": by_class,
        "empty_classes": [label for label, count in by_class.items() if count == 0 and task.candidates is None],
    }


def _describe(artifact: Artifact) -> str:
    m = artifact.metrics
    if not m["rows"]:
        return "no unlabeled rows: nothing to label, the base model will be evaluated as it is"
    text = f"{m['selected']} of {m['rows']} rows selected, {m['held_out']} held out, {m['excluded']} left out as evaluation texts"
    if m["empty_classes"]:
        text += f"; no example of {', '.join(m['empty_classes'])}"
    return text


if __name__ == "__main__":
    from pipelines.compose import main

    main(NAME)
