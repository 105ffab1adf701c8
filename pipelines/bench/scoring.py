"""Scoring label candidates: the prefix tree against lm-evaluation-harness and against naive full rows, on the same weights.

The harness is driven as it runs itself, one request per label per example, all examples in one call. The naive way is this
project's own model with every candidate in a row of its own and logits at every position; its batches are all alike, so one of
them is timed. Before anything is timed all ways have to agree on every sum.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from typing import Any

import numpy as np
import torch

from adapt.core.errors import ConfigError
from adapt.core.spans import NO_TARGET, Reading, Span
from adapt.model.batches import collate
from adapt.model.gpt import GPT
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree import build_tree
from adapt.scoring.tree_scorer import TreeScorer
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.lm_eval_baseline import (
    BATCH_ROWS,
    INSTALL,
    gpt2_twin,
    harness,
    harness_sums,
    missing_packages,
    requests_of,
    versions,
)
from pipelines.bench.options import number, only
from pipelines.bench.scoring_cases import LABEL_KINDS, SHAPE, label_example, scoring_model

_AGREEMENT = 1e-3
_HARNESS, _NAIVE, _TREE = "lm-eval", "naive", "tree"
# (tokens of text, labels, examples, rounds, target): never a single round, which other work on the machine could fall into.
_SHAPES = (
    (128, 2, 8, 5, 6.0),
    (128, 15, 4, 3, 10.0),
    (128, 67, 2, 3, 25.0),
    (128, 119, 2, 2, 25.0),
    (512, 2, 4, 3, 3.5),
    (512, 15, 2, 2, 20.0),
    (512, 67, 1, 2, 60.0),
)

Way = Callable[[], list[float]]


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only("scoring", options, "rounds", "shapes", "layouts")
    layouts = _layouts(options.get("layouts", "packed,cache"))
    shapes = _SHAPES[: number("scoring", options, "shapes", len(_SHAPES))]
    rounds_of = [number("scoring", options, "rounds", shape[3]) for shape in shapes]
    model = scoring_model()
    lm = None if missing_packages() else harness(gpt2_twin(model))
    scorers = {_TREE: TreeScorer(model, ScorerConfig())}
    scorers |= {layout.value: TreeScorer(model, ScorerConfig(layout=layout)) for layout in layouts}
    rows = []
    for (n_text, n_labels, n_examples, _, target), rounds in zip(shapes, rounds_of, strict=True):
        examples = [label_example(n_text, n_labels, index) for index in range(n_examples)]
        ways = _ways(model, lm, scorers, examples)
        seconds, difference = _timed(ways, rounds)
        per_example = {name: value / n_examples for name, value in seconds.items()}
        per_example[_NAIVE] *= max(n_labels * n_examples / BATCH_ROWS, 1.0)
        baselines = [name for name in (_HARNESS, _NAIVE) if name in ways]
        rows.append(
            {"text": n_text, "labels": n_labels, "examples": n_examples}
            | {f"{name} s/example": value for name, value in per_example.items()}
            | {f"{name}/{_TREE}": per_example[name] / per_example[_TREE] for name in baselines}
            | ({"target": target} if lm is not None else {})
            | {
                "largest difference": difference,
                "nodes": round(sum(len(build_tree(example, LABEL_KINDS)) for example in examples) / n_examples),
                "labels x text": n_labels * n_text,
            }
        )
    return rows


def _layouts(names: str) -> list[Layout]:
    known = {layout.value: layout for layout in Layout if layout is not Layout.AUTO}
    asked = [] if names == "none" else names.split(",")
    if not set(asked) <= set(known):
        raise ConfigError(f"bench scoring: layouts={names}: give none, or some of: {','.join(known)}")
    return [known[name] for name in asked]


def _ways(model: GPT, lm: Any, scorers: Mapping[str, TreeScorer], examples: list[list[Reading]]) -> dict[str, Way]:
    """Return every way to get the candidates' sums, example by example; the naive one those of its first batch."""
    ways: dict[str, Way] = {}
    if lm is not None:
        requests = requests_of(examples)
        ways[_HARNESS] = lambda: harness_sums(lm, requests)
    batch = [reading for example in examples for reading in example][:BATCH_ROWS]
    ways[_NAIVE] = lambda: _naive(model, batch)

    def by_tree(scorer: TreeScorer) -> Way:
        return lambda: [float(total) for sums in scorer.score(examples, LABEL_KINDS) for total in sums[:, Span.LABEL]]

    return ways | {name: by_tree(scorer) for name, scorer in scorers.items()}


def _timed(ways: Mapping[str, Way], rounds: int) -> tuple[dict[str, float], float]:
    """Return the median seconds of each way, and how far the ways' sums lie apart.

    Raises:
        ConfigError: the sums of the uncounted round differ; nothing was timed then.
    """
    sums: dict[str, list[float]] = {}
    differences = [0.0]

    def kept(name: str) -> Callable[[], None]:
        return lambda: sums.update({name: ways[name]()})

    def agree() -> None:
        for name, ours in sums.items():
            differences.append(_difference(sums[_TREE], ours))
            if not differences[-1] <= _AGREEMENT:
                raise ConfigError(
                    f"bench scoring: {name}, {_TREE}: sums differ by {differences[-1]:.2e}; figures would mean nothing"
                )

    seconds = interleaved_medians({name: kept(name) for name in ways} | {"agreement": agree}, rounds)
    return {name: seconds[name] for name in ways}, max(differences)


def _difference(tree: Sequence[float], other: Sequence[float]) -> float:
    return float(np.abs(np.asarray(tree[: len(other)]) - np.asarray(other)).max())


@torch.inference_mode()
def _naive(model: GPT, readings: list[Reading]) -> list[float]:
    batch = collate([[reading] for reading in readings])
    log_probs = model.logits(model(batch.inputs).hidden_BTH).log_softmax(dim=-1)
    asked = (batch.targets_BT != NO_TARGET) & (batch.kinds_BT == int(Span.LABEL))
    picked = log_probs.gather(-1, batch.targets_BT.clamp_min(0).unsqueeze(-1)).squeeze(-1)
    return [float(total) for total in (picked * asked).sum(dim=1)]


def _baseline() -> str:
    naive = f"naive full rows, batch {BATCH_ROWS}"
    if missing := missing_packages():
        return f"{naive} (lm-eval and its targets are left out: no {', '.join(missing)}; {INSTALL})"
    return f"lm-eval (HFLM, batch {BATCH_ROWS}; {versions()}), and {naive}"


register(
    Benchmark(
        name="scoring",
        title=f"Scoring label candidates, seconds per example; {SHAPE}; texts of 128 or 512 tokens; targets are for lm-eval/tree",
        baseline=_baseline(),
        run=_run,
    )
)
