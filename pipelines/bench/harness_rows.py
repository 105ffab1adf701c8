"""A task's real rows, from texts to log-likelihoods: this project's scorer against lm-evaluation-harness, every candidate compared.

Options: checkpoint= (a Hugging Face directory), root= (CLUE layout), task= (sst2), task_dir=, rows= (200), rounds= (1), clock=,
harness_batch= (16). The harness gets the texts that `export.harness_split` writes for it, and tokenizes them by itself. Before
figures are given, every log-likelihood has to agree.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.checkpoint.open_checkpoint import OpenCheckpoint
from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span
from adapt.model.hf import HFModel
from adapt.text.hf_tokenizer import HFTokenizer
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.lm_eval_baseline import BATCH_ROWS, INSTALL, harness_of_directory, log_likelihoods, missing_packages
from pipelines.bench.on_real_rows import opened, real_rows
from pipelines.bench.options import is_cpu_time, number, only
from pseudo_label.decision import Decision, FittedScores, Method
from pseudo_label.harnesses.lm_eval import filled
from pseudo_label.harnesses.prompt_text import PromptText, TextForm, harness_rows, prompt_text
from pseudo_label.labelling import ScoringConfig
from pseudo_label.prompts import Prompt
from pseudo_label.tasks import TaskConfig, TaskRow

_NAME = "harness_rows"
_KNOWN = ("checkpoint", "root", "task", "task_dir", "rows", "rounds", "clock", "harness_batch")
_AGREEMENT = 1e-3
_OURS, _HARNESS = "tree", "lm-eval"

Way = Callable[[], list[float]]


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN, needed=("checkpoint", "root"))
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, torch.get_num_threads(), "cpu") else wall_seconds
    if missing := missing_packages():
        raise ConfigError(f"bench {_NAME}: needs {missing[0]}; install it with `{INSTALL}`")
    place, name = Path(options["checkpoint"]), options.get("task", "sst2")
    own_tasks = Path(options["task_dir"]) if "task_dir" in options else None
    data = real_rows(Path(options["root"]), name, number(_NAME, options, "rows", 200), 0, own_tasks)
    model, task, rows = opened(place), data.task, data.labelled
    form = _text_form(place, model)
    requests = harness_requests(task, rows, form)
    lm = harness_of_directory(_causal(place, model), place, number(_NAME, options, "harness_batch", BATCH_ROWS))
    prompt = Prompt(task, task.reference, model.tokenizer, model.scorer.context_length)
    ways: dict[str, Way] = {
        _OURS: lambda: own_sums(model, prompt, rows),
        _HARNESS: lambda: log_likelihoods(lm, requests),
    }
    kept: dict[str, list[float]] = {}

    def timed(way: str) -> Callable[[], None]:
        def run() -> None:
            kept[way] = ways[way]()

        return run

    seconds = interleaved_medians({way: timed(way) for way in ways}, number(_NAME, options, "rounds", 1), stopwatch)
    worst = float(np.abs(np.asarray(kept[_OURS]) - np.asarray(kept[_HARNESS])).max())
    if not worst <= _AGREEMENT:
        raise ConfigError(f"bench {_NAME}: log-likelihoods differ by {worst:.2e}; figures would mean nothing")
    return [
        {
            "task": name,
            "labels": len(requests) // len(rows),
            "rows": len(rows),
            "candidates": len(requests),
            **{f"{way} ms/row": 1000 * taken / len(rows) for way, taken in seconds.items()},
            f"{_HARNESS}/{_OURS}": seconds[_HARNESS] / seconds[_OURS],
            "largest difference": worst,
        }
    ]


def harness_requests(task: TaskConfig, rows: Sequence[TaskRow], form: TextForm) -> list[tuple[str, str]]:
    """Return the texts before and from the label on that an exported task file makes the harness ask for, row by row."""
    raw = Decision(method=Method.RAW, labels=FittedScores(prompts=[task.reference]), groups=None, n_fitted=0)
    prompt = prompt_text(task, ScoringConfig(), raw, form)
    found = []
    for row in harness_rows(task, prompt, rows).rows:
        context = _context(prompt, row.slots)
        rest = filled(prompt.after if prompt.counts_after else (), row.slots, form.separator)
        found += [(context, form.separator.join([word, rest]) if rest else word) for word in row.choices]
    return found


def own_sums(model: OpenCheckpoint, prompt: Prompt, rows: Sequence[TaskRow]) -> list[float]:
    """Return the sums of all candidates' labels, row by row."""
    examples = (prompt.readings(row, LabelForm.CLM) for row in rows)
    return [float(total) for sums in model.scorer.score(examples, frozenset({Span.LABEL})) for total in sums[:, Span.LABEL]]


def _context(prompt: PromptText, slots: dict[str, str]) -> str:
    separator = prompt.form.separator
    text = filled(prompt.before, slots, separator)
    return prompt.form.start + (text + separator if text else "")


def _text_form(place: Path, model: OpenCheckpoint) -> TextForm:
    tokenizer = model.tokenizer
    if not isinstance(tokenizer, HFTokenizer) or tokenizer.whole is None:
        raise ConfigError(f"bench {_NAME}: {place}: encodes the parts of a prompt on their own; take a Hugging Face directory")
    return TextForm(tokenizer=tokenizer, context_length=model.scorer.context_length, start=tokenizer.start_as_text)


def _causal(place: Path, model: OpenCheckpoint) -> Any:
    if not isinstance(model.model, HFModel):
        raise ConfigError(f"bench {_NAME}: {place}: is no Hugging Face model, which the harness reads")
    return model.model.causal


register(
    Benchmark(
        name=_NAME,
        title="A task's real rows, from texts to log-likelihoods: milliseconds per row, fp32",
        baseline=f"lm-eval (HFLM, batch {BATCH_ROWS})",
        run=_run,
    )
)
