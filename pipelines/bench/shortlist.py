"""Shortlists against asking the model about every label, on real rows: nodes, seconds and accuracy.

Options: checkpoint=, root= (CLUE layout), task= (csldcp), rows= (dev and few, at most 400), fit_rows= (300), rounds=. The
lexical labeller and the decision `combined` are fitted on the fit rows; nodes are the candidates' own tokens, beyond the text.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.scorer import FloatArray
from adapt.core.spans import LabelForm, Span
from adapt.scoring.tree import build_tree
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.on_real_rows import opened, rows_asked_for
from pipelines.bench.options import number, only
from pseudo_label.accuracy import accuracy_of
from pseudo_label.decision import Combining, Method, fit_combined
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions
from pseudo_label.prompts import Prompt
from pseudo_label.shortlist import with_shortlists
from pseudo_label.tasks import TaskRow
from pseudo_label.teachers import lexical_files

_NAME = "shortlist"
_KNOWN = ("checkpoint", "root", "task", "rows", "fit_rows", "rounds")
_COUNTS = (5, 10, 20)
_EVERY_LABEL = "every label"


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN, needed=("checkpoint", "root"))
    data = rows_asked_for(_NAME, options, "csldcp")
    task = data.task
    model = opened(Path(options["checkpoint"]))
    scorer = TaskScorer(task, ScoringConfig(prompts=[task.reference]), model.scorer, model.tokenizer)
    lexical_NC = lexical_files.fit(task, data.unlabeled, seed=0).scores(data.labelled)
    every = fit_combined(scorer.keys(data.unlabeled), task, combining=Combining(model=Method.RAW))
    decisions = {_EVERY_LABEL: every} | {f"the best {count}": replace(every, shortlist=count) for count in _COUNTS}
    scores: dict[str, FloatArray] = {}

    def way(name: str) -> None:
        scores[name] = scorer.scores(data.labelled, decisions[name], lexical_NC)

    seconds = interleaved_medians({name: partial(way, name) for name in decisions}, number(_NAME, options, "rounds", 3))
    prompt = Prompt(task, task.reference, model.tokenizer, model.scorer.context_length)
    first = predictions(scores[_EVERY_LABEL], data.labelled, task)
    rows = []
    for name, decision in decisions.items():
        asked = data.labelled
        if decision.shortlist is not None:
            asked = with_shortlists(asked, lexical_NC, decision.shortlist)
        answers = predictions(scores[name], data.labelled, task)
        found = accuracy_of(answers, [row.label or "" for row in data.labelled])
        rows.append(
            {
                "way": name,
                "rows": len(answers),
                "nodes/row": float(np.mean([_nodes(prompt, row) for row in asked])),
                "s/row": seconds[name] / len(answers),
                "every label/s": seconds[_EVERY_LABEL] / seconds[name],
                "accuracy %": 100 * found.accuracy,
                "ci95 low": 100 * found.ci95[0],
                "ci95 high": 100 * found.ci95[1],
                "other answer %": 100 * float(np.mean([a != b for a, b in zip(answers, first, strict=True)])),
            }
        )
    return rows


def _nodes(prompt: Prompt, row: TaskRow) -> int:
    """Count the candidates' own nodes of a row."""
    tree = build_tree(prompt.readings(row, LabelForm.CLM), frozenset({Span.LABEL}))
    return len(tree) - tree.trunk


register(
    Benchmark(
        name=_NAME,
        title="Shortlists: the model is asked about the labels that the lexical labeller finds best",
        baseline="every label: the same prompt and decision over all labels of the task",
        run=_run,
    )
)
