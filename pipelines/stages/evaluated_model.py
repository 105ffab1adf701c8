"""A model under evaluation: how its scores of a task are decided on, with every method fitted on unlabeled rows."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace

from adapt.core.artifacts import Artifact
from adapt.core.spans import LabelForm
from pipelines.config.label_settings import EvaluateConfig
from pipelines.stages.contract import Reads, Workshop
from pipelines.stages.criteria_table import criteria_pairs
from pipelines.stages.rows import UNLABELED, TaskData, adaptation_rows, domain_texts
from pipelines.stages.scores import Scored, ScorerReads, content_free_keys, scores_of
from pipelines.stages.scoring_choice import chosen_prompts, coarse_of
from pseudo_label.decision import Combining, Decision, Method, fit_combined, fit_decision
from pseudo_label.labelling import ScoringConfig
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.zero_shot import passes_for

BASE, ADAPTED = "base", "adapted"


@dataclass(frozen=True, kw_only=True)
class Measuring(Reads):
    """How models are measured; `form` is that of the objective, `prompts` those of `pseudo_label.prompts`."""

    evaluate: EvaluateConfig
    prompts: list[str] | None
    form: LabelForm
    scorer: ScorerReads


@dataclass(frozen=True, kw_only=True)
class EvaluatedModel:
    """A model under evaluation: `base` or `adapted`, its artifact, and how each method decides on its scores.

    `prompts` are all that its methods read.
    """

    name: str
    model: Artifact
    scoring: ScoringConfig
    prompts: list[str]
    decisions: Mapping[Method, Decision]
    fitted_on: Scored


def evaluated_model_of(
    shop: Workshop,
    how: Measuring,
    data: TaskData,
    name: str,
    model: Artifact,
    methods: Sequence[Method],
    criteria: Sequence[str] = (),
    combining: Combining | None = None,
) -> EvaluatedModel:
    """Fit each method's decision for a model, on unlabeled rows; those rows are scored for the criteria too.

    Methods that ask no model are left out. `combining` says how `combined` joins the model with the lexical labeller.
    """
    task, settings = data.task, how.evaluate
    methods = [method for method in methods if method.needs_model]
    combining = combining or Combining()
    scoring = ScoringConfig(
        form=settings.form or how.form,
        prompts=chosen_prompts(how.prompts, task),
        criterion=settings.criterion,
        with_groups=settings.coarse_to_fine and task.label_tree is not None,
    )
    wants_rows = any(method.needs_rows for method in methods) or bool(criteria)
    fit_rows = fit_rows_of(shop, data, settings.fit_rows) if wants_rows else []
    if wants_rows and not fit_rows:
        unfitted = ", ".join(method.value for method in methods if method.needs_rows)
        shop.say_once(
            f"{task.name}: no unlabeled rows to fit on, so {unfitted or 'criteria'} are the reference prompt as it is (raw)"
        )
    prompts = prompts_of(task, scoring, methods, combining)
    pairs = [*scoring.pairs(task, prompts), *criteria_pairs(task, criteria)]
    scoring = replace(scoring, domain=domain_texts(shop, data, (criterion.null for _, criterion in pairs)))
    passes = passes_for(pairs, scoring.form, with_groups=scoring.with_groups)
    fitted_on = scores_of(shop, how.scorer, data, model, UNLABELED, fit_rows, passes)
    coarse = coarse_of(task, settings.coarse_to_fine, settings.coarse)
    decisions: dict[Method, Decision] = {}
    for method in methods:
        names = prompts_of(task, scoring, [method], combining)
        keys = scoring.keys(fitted_on.passes, task, names) if fit_rows else []
        if method is Method.COMBINED:
            decisions[method] = fit_combined(
                keys,
                task,
                combining=combining,
                shortlist=settings.shortlist,
                coarse_to_fine=coarse,
            )
            continue
        if method is Method.CONTENT_FREE:
            keys = content_free_keys(shop, how.scorer, data, model, scoring)
        decisions[method] = fit_decision(method, keys, task, coarse_to_fine=coarse)
    return EvaluatedModel(name=name, model=model, scoring=scoring, prompts=prompts, decisions=decisions, fitted_on=fitted_on)


def prompts_of(task: TaskConfig, scoring: ScoringConfig, methods: Sequence[Method], combining: Combining) -> list[str]:
    """Return the prompts that methods read: an ensemble reads all, and so does `combined` where it has one."""
    reads_all = Method.ENSEMBLE in methods or (Method.COMBINED in methods and combining.model is Method.ENSEMBLE)
    return scoring.names(task) if reads_all else [task.reference]


def fit_rows_of(shop: Workshop, data: TaskData, limit: int) -> list[TaskRow]:
    """Return the unlabeled rows that calibration is fitted on; none where the task has no such file."""
    return adaptation_rows(shop, data, limit).rows if data.existing([UNLABELED]) else []
