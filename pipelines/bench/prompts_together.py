"""Prompts that begin alike, read together, against one reading for each prompt, on real rows.

Options: checkpoint=, root= (CLUE layout), task= (agnews), rows= (64), rounds=, clock=. The task's ensemble is asked, less
prompts whose label comes first. lm-evaluation-harness, where it is installed, reads a text once for each prompt. Before
anything is timed all ways have to agree on every label's sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.checkpoint.open_checkpoint import OpenCheckpoint
from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Reading, Span
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.scoring.tree import build_tree
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.lm_eval_baseline import gpt2_twin, harness, harness_sums, missing_packages, requests_of
from pipelines.bench.on_real_rows import opened, real_rows
from pipelines.bench.options import is_cpu_time, number, only
from pseudo_label.labelling import ScoringConfig, TaskScorer
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow
from pseudo_label.zero_shot import ScoringPass

_NAME = "prompts_together"
_AGREEMENT = 1e-3
_KINDS = frozenset({Span.LABEL})
_TOGETHER, _SINGLY, _HARNESS = "together", "a reading for each", "lm-eval"


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, "checkpoint", "root", "task", "rows", "rounds", "clock", needed=("checkpoint", "root"))
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, torch.get_num_threads(), "cpu") else wall_seconds
    data = real_rows(Path(options["root"]), options.get("task", "agnews"), number(_NAME, options, "rows", 64), 0)
    model = opened(Path(options["checkpoint"]))
    task, rows = data.task, data.labelled
    every = {name: Prompt(task, name, model.tokenizer, model.scorer.context_length) for name in task.ensemble_names()}
    prompts = {name: prompt for name, prompt in every.items() if prompt.opening is not None}
    readings = [[prompt.readings(row, LabelForm.CLM) for row in rows] for prompt in prompts.values()]
    ways = _ways(model, task, rows, list(prompts), readings)
    agreed = {name: way() for name, way in ways.items()}
    worst = max(float(np.abs(np.asarray(sums) - agreed[_TOGETHER]).max()) for sums in agreed.values())
    if not worst <= _AGREEMENT:
        raise ConfigError(f"bench {_NAME}: sums differ by {worst:.2e}; figures would mean nothing")
    seconds = interleaved_medians(ways, number(_NAME, options, "rounds", 3), stopwatch)
    return [
        {
            "way": name,
            "prompts": len(prompts),
            "candidates": sum(len(of_rows[0]) for of_rows in readings),
            "rows": len(rows),
            "tokens/row": _tokens(readings, is_together=name == _TOGETHER),
            "ms/row": 1000 * seconds[name] / len(rows),
            f"way/{_TOGETHER}": seconds[name] / seconds[_TOGETHER],
            "largest difference": worst,
        }
        for name in ways
    ]


def _ways(
    model: OpenCheckpoint,
    task: TaskConfig,
    rows: Sequence[TaskRow],
    names: list[str],
    readings: Sequence[Sequence[Sequence[Reading]]],
) -> dict[str, Callable[[], list[float]]]:
    """Return every way to get the sums of all candidates, prompt by prompt and row by row."""
    asked = TaskScorer(task, ScoringConfig(prompts=names), model.scorer, model.tokenizer)
    passes = [ScoringPass(prompt=name) for name in names]

    def sums(groups: Sequence[Sequence[Any]]) -> list[float]:
        scored = [found for group in groups for found in asked.score(rows, group)]
        return [float(total) for found in scored for row in found.rows for total in row.sums_C3[:, Span.LABEL]]

    ways: dict[str, Callable[[], list[float]]] = {
        _TOGETHER: lambda: sums([passes]),
        _SINGLY: lambda: sums([[what] for what in passes]),
    }
    base = model.model
    if not missing_packages() and isinstance(base, GPT | HFModel) and not base.expert_counts:
        lm = harness(gpt2_twin(base) if isinstance(base, GPT) else base.causal)
        requests = requests_of([example for of_rows in readings for example in of_rows])
        ways[_HARNESS] = lambda: harness_sums(lm, requests)
    return ways


def _tokens(readings: Sequence[Sequence[Sequence[Reading]]], *, is_together: bool) -> float:
    """Return how many nodes a row has: in one tree of all prompts, or in one for each."""
    by_row = list(zip(*readings, strict=True))
    if is_together:
        trees = [build_tree([reading for some in of_prompts for reading in some], _KINDS) for of_prompts in by_row]
    else:
        trees = [build_tree(some, _KINDS) for of_prompts in by_row for some in of_prompts]
    return sum(len(tree) for tree in trees) / len(by_row)


register(
    Benchmark(
        name=_NAME,
        title="An ensemble's prompts, read together: milliseconds per row, fp32",
        baseline="a reading for each prompt; lm-eval (HFLM) where it is installed",
        run=_run,
    )
)
