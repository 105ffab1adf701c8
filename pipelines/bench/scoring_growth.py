"""What scoring costs as labels and examples grow: time follows the tree's nodes, peak memory does not follow the examples.

Times are taken here, in turn. Peak memory is that of a process of its own per figure: it loads the model, scores one example,
forgets the peak so far (Linux, /proc/self/clear_refs), scores the examples as a stream, and reports how far its resident memory
rose above where it stood. glibc keeps some of what was freed, and more of it the longer a process runs; so the peak is also
measured with the allocator told to give everything back, which shows what the scorer itself holds.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Mapping
from types import MappingProxyType
from typing import Any

import torch

from adapt.core.errors import ConfigError
from adapt.core.spans import Reading
from adapt.model.gpt import GPT
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree import build_tree
from adapt.scoring.tree_scorer import TreeScorer
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.options import number, only
from pipelines.bench.own_memory import STATUS, forget_peak, memory_mib
from pipelines.bench.scoring_cases import LABEL_KINDS, SHAPE, label_example, scoring_model
from pipelines.ranks.fresh_processes import GIVE_BACK, in_child

_TEXT = 256
_BATCH_TOKENS = 2048
_WINDOW = 16  # examples, so that more examples are more windows
_TIMED = ((2, 4), (8, 4), (32, 4), (128, 2))  # (labels, examples)
_STREAMED = ((2, 16), (2, 64), (2, 256))


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only("scoring_growth", options, "rounds", "most_examples")
    rounds = number("scoring_growth", options, "rounds", 3)
    most = number("scoring_growth", options, "most_examples", 256)
    if not STATUS.exists():
        raise ConfigError("bench scoring_growth: peak memory is read from Linux's /proc, which is not here; run it on Linux")
    scorer = _scorer(scoring_model())

    def way(n_labels: int, n_examples: int) -> Callable[[], object]:
        examples = list(_stream(n_labels, n_examples))
        return lambda: list(scorer.score(examples, LABEL_KINDS))

    timed = {f"{n_labels}": way(n_labels, n_examples) for n_labels, n_examples in _TIMED}
    seconds = interleaved_medians(timed, rounds)
    rows = [_row("labels", labels, count, seconds[f"{labels}"] / count, _peak(labels, count)[1]) for labels, count in _TIMED]
    for n_labels, n_examples in _STREAMED:
        if n_examples <= most:
            taken, peak = _peak(n_labels, n_examples)
            rows.append(_row("examples", n_labels, n_examples, taken / n_examples, peak))
    return rows


def _row(growing: str, n_labels: int, n_examples: int, seconds: float, peak_mib: float) -> dict[str, Any]:
    nodes = sum(len(build_tree(example, LABEL_KINDS)) for example in _stream(n_labels, n_examples)) / n_examples
    return {
        "growing": growing,
        "text": _TEXT,
        "labels": n_labels,
        "examples": n_examples,
        "nodes": round(nodes),
        "labels x text": n_labels * _TEXT,
        "s/example": seconds,
        "ms/node": 1000 * seconds / nodes,
        "ms/(label x text)": 1000 * seconds / (n_labels * _TEXT),
        "peak MiB above the model": round(peak_mib),
        "with freed memory given back": round(_peak(n_labels, n_examples, GIVE_BACK)[1]),
    }


def _peak(n_labels: int, n_examples: int, allocator: Mapping[str, str] = MappingProxyType({})) -> tuple[float, float]:
    """Return the seconds and MiB that scoring takes in a fresh process with these settings of the allocator."""
    return in_child(allocator, torch.get_num_threads(), _measure, n_labels, n_examples)


def _measure(n_labels: int, n_examples: int) -> tuple[float, float]:
    scorer = _scorer(scoring_model())
    list(scorer.score(_stream(n_labels, 1), LABEL_KINDS))
    before = memory_mib("VmRSS")
    forget_peak()
    started = time.perf_counter()
    for _ in scorer.score(_stream(n_labels, n_examples), LABEL_KINDS):
        pass
    return time.perf_counter() - started, memory_mib("VmHWM") - before


def _scorer(model: GPT) -> TreeScorer:
    return TreeScorer(model, ScorerConfig(max_batch_tokens=_BATCH_TOKENS, window=_WINDOW))


def _stream(n_labels: int, n_examples: int) -> Iterator[list[Reading]]:
    return (label_example(_TEXT, n_labels, index) for index in range(n_examples))


register(
    Benchmark(
        name="scoring_growth",
        title=f"Growth of the tree scorer; {SHAPE}; text {_TEXT}; windows of {_WINDOW} examples, {_BATCH_TOKENS:,} tokens a batch",
        baseline="the first line of each part (labels grow, then examples)",
        run=_run,
    )
)
