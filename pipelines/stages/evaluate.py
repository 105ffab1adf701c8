"""Stage `evaluate`: zero-shot accuracy of the base and the adapted model, and predictions for splits without labels.

Evaluation is pseudo-labelling with a gold column: the same scores, criteria and decisions.
"""

from __future__ import annotations

import json
import logging
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.core.artifacts import METRICS_FILE, Artifact
from adapt.core.errors import DataError
from adapt.core.json_files import write_json
from adapt.core.scorer import FloatArray
from adapt.core.typed import to_plain
from pipelines.stages.combining import combining_of
from pipelines.stages.contract import Stage, Workshop
from pipelines.stages.copied_rows import copies, findings
from pipelines.stages.criteria_table import CRITERIA_FILE, compare_criteria, criteria_pairs, pooled
from pipelines.stages.evaluated_model import ADAPTED, BASE, EvaluatedModel, Measuring, evaluated_model_of
from pipelines.stages.lexical_answers import LexicalAnswers
from pipelines.stages.models import weights_of
from pipelines.stages.other_tasks import OTHER_TASKS_FILE, other_tasks, say_other_task
from pipelines.stages.products import Adaptation, Evaluation
from pipelines.stages.rows import LABELLED_SPLITS, UNLABELED, TaskData, is_labelled, labelled_part
from pipelines.stages.run import Run
from pipelines.stages.scores import Scored, ScorerReads, scores_of
from pipelines.stages.scoring_choice import say_if_treeless
from pipelines.stages.task_versions import refuse_model_of_other_version
from pseudo_label.accuracy import accuracy_of, balance_of
from pseudo_label.coarse_to_fine import step_losses
from pseudo_label.decision import Decision, Method, confidences, lexical_decision
from pseudo_label.labelling import predictions
from pseudo_label.submission import submission_name, write_submission
from pseudo_label.tasks import TaskConfig, TaskRow, split_path
from pseudo_label.teachers import lexical_files
from pseudo_label.zero_shot import PromptKeys, passes_for

NAME = "evaluate"
DECISION_FILE = "decision.json"
COARSE_FILE = "coarse_to_fine.json"
ANSWERS_FILE = "answers.json"
logger = logging.getLogger("pipelines")


@dataclass(frozen=True, kw_only=True)
class EvaluateReads(Measuring):
    """The task with the splits to measure on, the models, and other tasks that an adaptation may unlearn."""

    data: TaskData
    splits: list[str]
    other_tasks: tuple[TaskData, ...]
    base: Artifact
    continue_pretrain: Artifact | None
    labels: Artifact | None

    @property
    def models(self) -> dict[str, Artifact]:
        """The models to measure: the base, and the adapted one where there is one."""
        adapted = self.continue_pretrain
        is_adapted = adapted is not None and Adaptation.of(adapted).is_adapted
        return {BASE: self.base, ADAPTED: adapted} if adapted is not None and is_adapted else {BASE: self.base}


class Evaluate(Stage[EvaluateReads]):
    """Evaluate the base, and the adapted model where the run has one."""

    name = NAME
    version = 10  # a student of a Hugging Face base brings its ensemble to `combined`

    def reads(self, run: Run, task: TaskConfig | None) -> EvaluateReads:
        assert task is not None
        config = run.config
        base = run.base()
        splits = splits_of(run, task)
        others = [other for other in run.load_tasks(config.evaluate.other_tasks) if other.name != task.name]
        return EvaluateReads(
            evaluate=config.evaluate,
            prompts=config.pseudo_label.prompts,
            form=config.objective.pseudo_label.form,
            scorer=ScorerReads.of(run),
            data=TaskData.of(run, task, [*splits, UNLABELED]),
            splits=splits,
            other_tasks=tuple(TaskData.of(run, other, [*LABELLED_SPLITS, UNLABELED]) for other in others),
            base=base,
            continue_pretrain=adapted_artifact(run, task, base),
            labels=_estimating_labels(run, task, base),
        )

    def build(self, reads: EvaluateReads, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        task, settings = reads.data.task, reads.evaluate
        say_if_treeless(task, wants_groups=settings.coarse_to_fine)
        rows_by_split = {split: reads.data.read(split) for split in reads.splits}
        for split, rows in rows_by_split.items():
            refuse_repeated_ids(reads.data.path(split), rows)
        measured = {split: labelled_part(shop, task, split, rows) for split, rows in rows_by_split.items()}
        pooled_rows = {split: measured[split] for split in LABELLED_SPLITS if split in measured}
        copied = copies(pooled_rows)
        found: dict[str, list[dict[str, Any]]] = {"table": [], "criteria": [], "coarse_to_fine": [], "answers": []}
        methods = list(dict.fromkeys([*settings.methods, settings.method]))
        lexical = LexicalAnswers.of(shop, reads.data) if any(method.needs_lexical for method in methods) else None
        combining = combining_of(shop, reads, reads.data, reads.models, reads.labels, lexical) if Method.COMBINED in methods else {}
        for name, model in reads.models.items():
            asked = lexical if lexical is None or name == BASE else lexical.as_taught(model, task)
            if asked is not None and Method.LEXICAL in methods and (name == BASE or asked is not lexical):
                for part, lines in asked.measure(task, measured).items():
                    found[part] += lines
            evaluated = evaluated_model_of(shop, reads, reads.data, name, model, methods, settings.criteria, combining.get(name))
            for part, lines in _measure(shop, reads, evaluated, measured, copied, asked).items():
                found[part] += lines
        # The last model is the one that counts: it predicts, and its decision is exported with the labeller that it asks.
        decision = _decision(settings.method, task, evaluated, asked)
        _write_predictions(shop, reads, result, evaluated, decision, rows_by_split, asked)
        kept_decision = {"scoring": to_plain(evaluated.scoring), "decision": to_plain(decision)}
        write_json(result / DECISION_FILE, kept_decision)
        write_json(result / METRICS_FILE, found["table"])
        if decision.needs_lexical and asked is not None:
            lexical_files.copy(asked.place, result)
        for line in found["answers"]:
            if copied.get(line["split"]):
                line["copies"] = copied[line["split"]]
        found["other_tasks"] = other_tasks(shop, reads, reads.other_tasks, reads.models)
        kept = {CRITERIA_FILE: "criteria", COARSE_FILE: "coarse_to_fine", ANSWERS_FILE: "answers", OTHER_TASKS_FILE: "other_tasks"}
        for file, part in kept.items():
            if found[part]:
                write_json(result / file, found[part])
        del found["answers"]  # a file of their own
        return Evaluation(**found, findings=findings(pooled_rows)).metrics()

    def describe(self, artifact: Artifact) -> str:
        lines, found = [], Evaluation.of(artifact)
        for row in found.table:
            if row["method"] != "raw":
                lines.append(f"{row['split']} {row['model']} {row['method']} {100 * row['accuracy']:.1f} %")
        lines += [say_other_task(row) for row in found.other_tasks]
        return ", ".join(lines) or "predictions only (no labelled split)"

    def deliver(self, reads: EvaluateReads, artifact: Artifact, place: Path) -> None:
        for line in Evaluation.of(artifact).findings:
            logger.info("%s: %s", reads.data.task.name, line)


STAGE = Evaluate()


def splits_of(run: Run, task: TaskConfig) -> list[str]:
    """Return the splits to evaluate: `split` if given, else those of `evaluate.splits` that the task has.

    Raises:
        DataError: none of them exists.
    """
    if run.config.split is not None:
        return [run.config.split]
    wanted = run.config.evaluate.splits
    found = TaskData.of(run, task, wanted).existing(wanted)
    if not found:
        place = split_path(run.splits(), task, "dev").parent
        raise DataError(f"{place}: has none of the splits {', '.join(wanted)} (evaluate.splits); check data.root")
    return found


def adapted_artifact(run: Run, task: TaskConfig, base: Artifact) -> Artifact | None:
    """Return the run's adapted model, if it has one that was adapted from this base.

    Raises:
        CheckpointError: it was adapted, and the adaptation is incomplete or damaged.
        DataError: it was adapted to another version of the task.
    """
    artifact = run.find("continue_pretrain", task)
    if artifact is None or artifact.inputs["base"].digest != base.digest:
        return None
    if Adaptation.of(artifact).is_adapted:
        refuse_model_of_other_version(artifact, task)
    return artifact


def _estimating_labels(run: Run, task: TaskConfig, base: Artifact) -> Artifact | None:
    """Return the labels whose estimates of a Hugging Face base and of the lexical labeller count, if this base made them."""
    labels = run.find("pseudo_label", task) if is_hf_directory(weights_of(base)) else None
    return labels if labels is not None and labels.inputs["base"].digest == base.digest else None


def refuse_repeated_ids(path: Path, rows: list[TaskRow]) -> None:
    """Raise DataError, before anything is scored, when rows to be submitted cannot be told apart."""
    if is_labelled(rows):
        return
    lines: dict[str, int] = {}
    for row in rows:
        first = lines.setdefault(json.dumps(row.id), row.line)
        if first != row.line:
            raise DataError(f"{path}, line {row.line}: id {json.dumps(row.id)} occurs more than once (before in line {first})")


def _decision(method: Method, task: TaskConfig, evaluated: EvaluatedModel, lexical: LexicalAnswers | None) -> Decision:
    """Return the decision that predicts and is exported.

    Raises:
        DataError: it asks no model, and there are no unlabeled rows that the lexical labeller could learn from.
    """
    if method is not Method.LEXICAL:
        return evaluated.decisions[method]
    if lexical is None:
        raise no_rows_to_learn_from(task)
    return lexical_decision(lexical.n_fitted)


def no_rows_to_learn_from(task: TaskConfig) -> DataError:
    """Return the error of a task that only the lexical labeller is to decide, without unlabeled rows."""
    return DataError(f"evaluate.method=lexical: task '{task.name}' has no unlabeled rows to learn from; choose another method")


def _measure(
    shop: Workshop,
    reads: EvaluateReads,
    evaluated: EvaluatedModel,
    rows_by_split: Mapping[str, list[TaskRow]],
    copied: Mapping[str, Sequence[int]],
    lexical: LexicalAnswers | None,
) -> dict[str, list[dict[str, Any]]]:
    """Return accuracies and answers on labelled rows, criteria beside each other, and what coarse-to-fine loses.

    In the comparison of criteria the rows at the places `copied` do not count.
    """
    task, settings = reads.data.task, reads.evaluate
    if not evaluated.decisions and not settings.criteria:
        return {}
    names = evaluated.prompts
    pairs = [*evaluated.scoring.pairs(task, names), *criteria_pairs(task, settings.criteria)]
    passes = passes_for(pairs, evaluated.scoring.form, with_groups=evaluated.scoring.with_groups)
    table, answers, coarse = [], [], []
    pool: list[tuple[list[TaskRow], Scored]] = []
    counted: list[bool] = []
    for split, rows in rows_by_split.items():
        if not rows:
            continue
        scored = scores_of(shop, reads.scorer, reads.data, evaluated.model, split, rows, passes)
        keys = evaluated.scoring.keys(scored.passes, task, names)
        for method in evaluated.decisions:
            decision = evaluated.decisions[method]
            scores = decision.scores(keys, task, _lexical_scores(lexical, decision, rows))
            line, given = _accuracy(task, evaluated, split, rows, keys, scores, method, scored.seconds)
            table.append(line)
            answers.append(given)
        coarse += _coarse_losses(task, evaluated, split, rows, keys)
        if split in LABELLED_SPLITS:
            pool.append((rows, scored))
            counted += [place not in set(copied[split]) for place in range(len(rows))]
    rows, passes_there = pooled(pool)
    criteria = []
    if rows and settings.criteria:
        criteria = compare_criteria(
            task, evaluated.name, settings.criteria, evaluated.scoring, rows, passes_there, evaluated.fitted_on, counted
        )
    return {"table": table, "criteria": criteria, "coarse_to_fine": coarse, "answers": answers}


def _accuracy(
    task: TaskConfig,
    evaluated: EvaluatedModel,
    split: str,
    rows: list[TaskRow],
    keys: list[PromptKeys],
    scores: FloatArray,
    method: Method,
    seconds: float,
) -> tuple[dict[str, Any], dict[str, Any]]:
    """Return a line of the accuracy table, and the answers it was counted from beside the right ones."""
    decision = evaluated.decisions[method]
    guesses, gold = predictions(scores, rows, task), [row.label or "" for row in rows]
    criteria = {k.prompt: k.criterion for k in keys}
    who = {"task": task.name, "split": split, "model": evaluated.name, "method": method.value}
    line = {
        **who,
        "prompts": "+".join(decision.prompts),
        "criterion": "+".join(dict.fromkeys(criteria[p] for p in decision.prompts)),
        "form": evaluated.scoring.form.value,
        **to_plain(accuracy_of(guesses, gold)),
        **to_plain(balance_of(scores, guesses, gold)),
        "seconds": round(seconds, 2),
    }
    return line, {**who, "answers": guesses, "gold": gold, "confidences": confidences(scores)}


def _lexical_scores(lexical: LexicalAnswers | None, decision: Decision, rows: list[TaskRow]) -> FloatArray | None:
    return lexical.labeller.scores(rows) if lexical is not None and decision.needs_lexical else None


def _coarse_losses(
    task: TaskConfig, evaluated: EvaluatedModel, split: str, rows: list[TaskRow], keys: list[PromptKeys]
) -> list[dict[str, Any]]:
    found = []
    for method, decision in evaluated.decisions.items():
        if decision.groups is not None and not method.needs_lexical:  # what the lexical labeller adds knows no groups
            gold = [row.label or "" for row in rows]
            joined, flat, groups = decision.model_scores(keys, task), decision.flat_scores(keys), decision.group_scores(keys)
            losses = step_losses(joined, flat, groups, gold, task, decision.coarse)
            who = {"task": task.name, "split": split, "model": evaluated.name, "method": method.value}
            found.append({**who, **to_plain(decision.coarse), **to_plain(losses)})
    return found


def _write_predictions(
    shop: Workshop,
    reads: EvaluateReads,
    result: Path,
    evaluated: EvaluatedModel,
    decision: Decision,
    rows_by_split: Mapping[str, list[TaskRow]],
    lexical: LexicalAnswers | None,
) -> None:
    """Write every split's predictions; a split without labels is scored only here, for the method that decides."""
    task = reads.data.task
    names = evaluated.prompts
    for split, rows in rows_by_split.items():
        has_gold = is_labelled(rows)
        wanted = names if has_gold else decision.prompts
        extra = criteria_pairs(task, reads.evaluate.criteria) if has_gold else []
        pairs = [*evaluated.scoring.pairs(task, wanted), *extra]
        passes = passes_for(pairs, evaluated.scoring.form, with_groups=evaluated.scoring.with_groups)
        keys: list[PromptKeys] = []
        if decision.prompts:
            scored = scores_of(shop, reads.scorer, reads.data, evaluated.model, split, rows, passes)
            keys = evaluated.scoring.keys(scored.passes, task, decision.prompts)
        scores = decision.scores(keys, task, _lexical_scores(lexical, decision, rows))
        guesses = predictions(scores, rows, task) if rows else []
        name = submission_name(task)
        if has_gold or (split != "test" and (result / name).exists()):
            name = f"{split}_{name}"
        write_submission(result / name, task, rows, guesses, has_unique_ids=not has_gold)
