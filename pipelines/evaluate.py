"""Stage `evaluate`: zero-shot accuracy of the base and the adapted model, and predictions for splits without labels.

Evaluation is pseudo-labelling with a gold column: the same scorer, criteria and decisions.
"""

from __future__ import annotations

import json
import time
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.opening import open_checkpoint
from adapt.core.artifacts import METRICS_FILE, Artifact, StageKey, is_artifact, open_artifact
from adapt.core.errors import DataError
from adapt.core.typed import to_plain
from pipelines.pseudo_label import adaptation_rows
from pipelines.stage import Plan, Walk, plain_settings, weights_of
from pseudo_label.accuracy import accuracy_of
from pseudo_label.decision import Decision, Method
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.submission import submission_name, write_submission
from pseudo_label.tasks import TaskConfig, TaskRow, read_split, split_path

NAME = "evaluate"
PER_TASK = True
DECISION_FILE = "decision.json"


@dataclass(frozen=True, kw_only=True)
class Subject:
    """A model under evaluation: `base` or `adapted`."""

    name: str
    weights: Path


def plan(walk: Walk, task: TaskConfig | None) -> Plan:
    """Evaluate the base, and the adapted model where the run has one."""
    assert task is not None
    config, settings = walk.config, walk.config.evaluate
    base = walk.base()
    adapted = adapted_artifact(walk, task, base)
    splits = splits_of(walk, task)
    inputs = {"base": base} if adapted is None else {"base": base, "continue_pretrain": adapted}
    key = StageKey(
        stage=NAME,
        config=plain_settings(
            task=task,
            evaluate=settings,
            prompts=config.pseudo_label.prompts,
            form=config.objective.pseudo_label,
            exclude=config.data.exclude_eval,
            splits=splits,
        ),
        inputs=inputs,
        files=walk.split_digests(task, [*splits, "unlabeled", *config.data.exclude_eval]),
    )

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        subjects = [Subject(name="base", weights=weights_of(base))]
        if adapted is not None and adapted.metrics["is_adapted"]:
            subjects.append(Subject(name="adapted", weights=weights_of(adapted)))
        rows_by_split = {split: read_split(walk.data_root(), task, split) for split in splits}
        table: list[dict[str, Any]] = []
        for subject in subjects:
            table += _evaluate(walk, task, subject, rows_by_split, result, is_last=subject is subjects[-1])
        (result / METRICS_FILE).write_text(json.dumps(table, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")
        return {"table": table}

    return Plan(key=key, build=build, describe=_describe)


def splits_of(walk: Walk, task: TaskConfig) -> list[str]:
    """Return the splits to evaluate: `split` if given, else those of `evaluate.splits` that the task has.

    Raises:
        DataError: none of them exists.
    """
    if walk.config.split is not None:
        return [walk.config.split]
    wanted = walk.config.evaluate.splits
    found = [split for split in wanted if split_path(walk.data_root(), task, split).is_file()]
    if not found:
        place = split_path(walk.data_root(), task, "dev").parent
        raise DataError(f"{place}: has none of the splits {', '.join(wanted)} (evaluate.splits); check data.root")
    return found


def adapted_artifact(walk: Walk, task: TaskConfig, base: Artifact) -> Artifact | None:
    """Return the run's adapted model, if it has one that was adapted from this base."""
    path = walk.store.root / walk.place("continue_pretrain", task)
    if not is_artifact(path):
        return None
    artifact = open_artifact(path.resolve())
    return artifact if artifact.inputs["base"].digest == base.digest else None


def _evaluate(
    walk: Walk, task: TaskConfig, subject: Subject, splits: Mapping[str, list[TaskRow]], result: Path, *, is_last: bool
) -> list[dict[str, Any]]:
    config, settings = walk.config, walk.config.evaluate
    form = settings.form or config.objective.pseudo_label
    scoring = ScoringConfig(
        form=form,
        prompts=config.pseudo_label.prompts,
        criterion=settings.criterion,
        with_groups=settings.coarse_to_fine and task.label_tree is not None,
    )
    walk.say_if_treeless(task, wants_groups=settings.coarse_to_fine)
    opened = open_checkpoint(subject.weights, config.scorer)
    scorer = TaskScorer(task, scoring, opened.scorer, opened.tokenizer)
    methods = list(dict.fromkeys([*settings.methods, settings.method]))
    fit_keys = scorer.keys(_fit_rows(walk, task)) if {Method.PRIOR, Method.ENSEMBLE} & set(methods) else []
    decisions = {m: scorer.fit(m, fit_keys, coarse_to_fine=settings.coarse_to_fine) for m in methods}
    table: list[dict[str, Any]] = []
    for split, rows in splits.items():
        is_labelled = bool(rows) and all(row.label is not None for row in rows)
        wanted = methods if is_labelled else [settings.method]
        started = time.monotonic()
        names = list(dict.fromkeys(name for method in wanted for name in decisions[method].prompts))
        keys = scorer.keys(rows, names) if rows else []
        seconds = time.monotonic() - started
        for method in wanted:
            guesses = predictions(decisions[method].scores(keys, task), rows, task) if rows else []
            if is_labelled:
                criteria = {k.prompt: k.criterion for k in keys}
                table.append(
                    {
                        "task": task.name,
                        "split": split,
                        "model": subject.name,
                        "method": method.value,
                        "prompts": "+".join(decisions[method].prompts),
                        "criterion": "+".join(dict.fromkeys(criteria[p] for p in decisions[method].prompts)),
                        "form": form.value,
                        **to_plain(accuracy_of(guesses, [row.label or "" for row in rows])),
                        "seconds": round(seconds, 2),
                    }
                )
            if is_last and method is settings.method:
                _write_predictions(result, task, split, rows, guesses, is_labelled=is_labelled)
    if is_last:
        _write_decision(result, scoring, decisions[settings.method])
    return table


def _fit_rows(walk: Walk, task: TaskConfig) -> list[TaskRow]:
    """Return the unlabeled rows that calibration is fitted on; none where the task has no such file."""
    if not split_path(walk.data_root(), task, "unlabeled").is_file():
        return []
    return adaptation_rows(walk, task, walk.config.evaluate.fit_rows)[0]


def _write_predictions(
    result: Path, task: TaskConfig, split: str, rows: list[TaskRow], guesses: list[str], *, is_labelled: bool
) -> None:
    name = submission_name(task)
    if is_labelled or (split != "test" and (result / name).exists()):
        name = f"{split}_{name}"
    write_submission(result / name, task, rows, guesses, has_unique_ids=not is_labelled)


def _write_decision(result: Path, scoring: ScoringConfig, decision: Decision) -> None:
    content = {"scoring": to_plain(scoring), "decision": to_plain(decision)}
    (result / DECISION_FILE).write_text(json.dumps(content, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _describe(artifact: Artifact) -> str:
    lines = []
    for row in artifact.metrics["table"]:
        if row["method"] != "raw":
            lines.append(f"{row['split']} {row['model']} {row['method']} {100 * row['accuracy']:.1f} %")
    return ", ".join(lines) or "predictions only (no labelled split)"


if __name__ == "__main__":
    from pipelines.compose import main

    main(NAME)
