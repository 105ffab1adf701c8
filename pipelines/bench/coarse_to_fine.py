"""Coarse to fine against ranking all labels at once, on real rows: nodes, seconds and accuracy.

Options: checkpoint=, root= (CLUE layout), task= (iflytek), rows= (dev and few, at most 400), fit_rows= (300), rounds=. Nodes
are the tokens beyond the text: the candidates' own. The reference prompt under prior matching; the text is read once either way.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.errors import ConfigError
from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Reading, Span
from adapt.scoring.tree import build_tree
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.on_real_rows import RealRows, opened, rows_asked_for
from pipelines.bench.options import number, only
from pseudo_label.accuracy import accuracy_of
from pseudo_label.candidates import Candidates
from pseudo_label.coarse_to_fine import CoarseRule, CoarseToFine, followed_groups, groups_of_labels
from pseudo_label.decision import Decision, Method, fit_decision
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.prompts import Prompt

_KINDS = frozenset({Span.LABEL})
_NAME = "coarse_to_fine"
_KNOWN = ("checkpoint", "root", "task", "rows", "fit_rows", "rounds")
_WAYS = {
    "sequential, beam 1": CoarseToFine(beam=1),
    "sequential, beam 2": CoarseToFine(beam=2),
    "marginal, beam 2": CoarseToFine(beam=2, rule=CoarseRule.MARGINAL),
    "marginal, beam 3": CoarseToFine(beam=3, rule=CoarseRule.MARGINAL),
}


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN, needed=("checkpoint", "root"))
    data = rows_asked_for(_NAME, options, "iflytek")
    task = data.task
    if task.label_tree is None:
        raise ConfigError(f"bench coarse_to_fine: task '{task.name}' has no label_tree")
    model = opened(Path(options["checkpoint"]))
    flat = TaskScorer(task, ScoringConfig(prompts=[task.reference]), model.scorer, model.tokenizer)
    grouped = TaskScorer(task, ScoringConfig(prompts=[task.reference], with_groups=True), model.scorer, model.tokenizer)
    fit_keys = grouped.keys(data.unlabeled)
    decisions: dict[str, Decision] = {"flat": fit_decision(Method.PRIOR, fit_keys, task)}
    decisions |= {name: fit_decision(Method.PRIOR, fit_keys, task, coarse_to_fine=how) for name, how in _WAYS.items()}
    scores: dict[str, FloatArray] = {}

    def way(name: str) -> None:
        scorer = flat if name == "flat" else grouped
        scores[name] = scorer.scores(data.labelled, decisions[name])

    ways = {name: partial(way, name) for name in decisions}
    seconds = interleaved_medians(ways, number(_NAME, options, "rounds", 3))
    everything = grouped.keys(data.labelled)
    prompt = Prompt(task, task.reference, model.tokenizer, model.scorer.context_length)
    flat_answers = predictions(scores["flat"], data.labelled, task)
    flat_nodes = sum(_nodes(prompt.readings(row, LabelForm.CLM)) for row in data.labelled)
    rows = []
    for name, decision in decisions.items():
        answers = predictions(scores[name], data.labelled, task)
        found = accuracy_of(answers, [row.label or "" for row in data.labelled])
        nodes = (
            flat_nodes if decision.groups is None else _two_step_nodes(prompt, data, decision, decision.group_scores(everything))
        )
        rows.append(
            {
                "way": name,
                "rows": len(answers),
                "nodes/row": nodes / len(answers),
                "nodes/flat": nodes / flat_nodes,
                "s/row": seconds[name] / len(answers),
                "flat/s": seconds["flat"] / seconds[name],
                "accuracy %": 100 * found.accuracy,
                "ci95 low": 100 * found.ci95[0],
                "ci95 high": 100 * found.ci95[1],
                "other answer %": 100 * float(np.mean([a != b for a, b in zip(answers, flat_answers, strict=True)])),
            }
        )
    return rows


def _nodes(readings: list[Reading]) -> int:
    tree = build_tree(readings, _KINDS)
    return len(tree) - tree.trunk


def _two_step_nodes(prompt: Prompt, data: RealRows, decision: Decision, groups_NG: FloatArray) -> int:
    """Count the candidates' own nodes: the groups', then those of the labels in followed groups."""
    group_of_label = groups_of_labels(data.task)
    candidates = Candidates.of(data.task, prompt.name, with_groups=True)
    followed = followed_groups(groups_NG, decision.coarse.beam)
    total = 0
    for row, groups in zip(data.labelled, followed, strict=True):
        readings = prompt.readings(row, LabelForm.CLM, with_groups=True)
        fine = [readings[label] for label in np.flatnonzero(groups[group_of_label])]
        text = build_tree(readings, _KINDS).trunk
        total += sum(len(build_tree(some, _KINDS)) - text for some in (candidates.groups_of(readings), fine))
    return total


register(
    Benchmark(
        name=_NAME,
        title="Coarse to fine: the groups of the label tree first, then the labels inside the best of them",
        baseline="flat: all labels at once, the same prompt and prior matching",
        run=_run,
    )
)
