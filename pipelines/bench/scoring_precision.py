"""Scoring in bf16 against fp32 on real rows: how many decisions change, and how much time it saves.

Options: checkpoint=, root= (CLUE layout), tasks= (a,b,c; all nine), rows= (dev and few, at most 200 a task), fit_rows= (200),
rounds=.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from adapt.core.precision import Precision
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.on_real_rows import opened, real_rows
from pipelines.bench.options import number, only
from pseudo_label.accuracy import accuracy_of
from pseudo_label.decision import Method, fit_decision
from pseudo_label.labelling import ScoringConfig, TaskScorer, predictions

_NAME = "scoring_precision"
_KNOWN = ("checkpoint", "root", "tasks", "rows", "fit_rows", "rounds")
_COMPARED = (Precision.FP32, Precision.BF16)
_NINE = "eprstmt,tnews,csldcp,iflytek,ocnli,bustm,chid,csl,cluewsc"


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN, needed=("checkpoint", "root"))
    models = {precision: opened(Path(options["checkpoint"]), precision) for precision in _COMPARED}
    return [_one_task(name, options, models) for name in options.get("tasks", _NINE).split(",")]


def _one_task(name: str, options: Mapping[str, str], models: Mapping[Precision, Any]) -> dict[str, Any]:
    data = real_rows(
        Path(options["root"]),
        name,
        number(_NAME, options, "rows", 200),
        number(_NAME, options, "fit_rows", 200),
    )
    config = ScoringConfig(prompts=[data.task.reference])
    scorers = {p: TaskScorer(data.task, config, model.scorer, model.tokenizer) for p, model in models.items()}
    answers: dict[Precision, dict[Method, list[str]]] = {}

    def way(precision: Precision) -> None:
        scorer = scorers[precision]
        keys = scorer.keys(data.labelled)
        answers[precision] = {}
        for method in (Method.RAW, Method.PRIOR):
            decision = fit_decision(method, fitted[precision], data.task)
            answers[precision][method] = predictions(decision.scores(keys, data.task), data.labelled, data.task)

    fitted = {precision: scorer.keys(data.unlabeled) for precision, scorer in scorers.items()}
    ways = {precision.value: partial(way, precision) for precision in _COMPARED}
    seconds = interleaved_medians(ways, number(_NAME, options, "rounds", 2))
    gold = [row.label or "" for row in data.labelled]
    line: dict[str, Any] = {"task": name, "rows": len(gold), "fp32/bf16 s": seconds["fp32"] / seconds["bf16"]}
    for method in (Method.RAW, Method.PRIOR):
        both = [answers[precision][method] for precision in _COMPARED]
        line[f"{method.value} changed %"] = 100 * float(np.mean([a != b for a, b in zip(*both, strict=True)]))
        for precision in _COMPARED:
            line[f"{method.value} {precision.value} %"] = 100 * accuracy_of(answers[precision][method], gold).accuracy
    return line


register(
    Benchmark(
        name=_NAME,
        title="Scoring in bf16: share of decisions that change, and seconds, by task (reference prompt, dev and few)",
        baseline="fp32",
        run=_run,
    )
)
