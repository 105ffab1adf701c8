"""Ways to lay out a candidate tree, timed by shape, and whether the cost model picks the fastest.

The constant of the cost model (`adapt/scoring/layout.py`) comes from this table. Models: 6 layers x 192 and 12 x 512, dense, fp32;
texts and labels of 2 to 4 random tokens; labels stand after the text, in its middle, or before it. Option: rounds=.
"""

from __future__ import annotations

from collections.abc import Mapping
from functools import partial
from typing import Any

from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Reading, Span, join_parts, read_with_targets
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT, materialize
from adapt.scoring.layout import best_layout
from adapt.scoring.scorer_config import Layout, ScorerConfig
from adapt.scoring.tree import build_tree
from adapt.scoring.tree_scorer import TreeScorer
from pipelines.bench.contract import Benchmark, interleaved_medians, register
from pipelines.bench.options import number, only

_VOCAB = 8192
_SIZES = ((6, 192, 6), (12, 512, 8))
# (where the label stands, tokens of text, labels, examples)
_SHAPES = (
    ("after", 128, 2, 8), ("after", 128, 67, 4), ("after", 480, 15, 2), ("middle", 30, 7, 8), ("middle", 100, 7, 4),
    ("middle", 200, 7, 4), ("before", 16, 15, 4), ("before", 30, 15, 4), ("before", 60, 2, 8), ("before", 100, 15, 2),
)  # fmt: skip
_KINDS = frozenset({Span.LABEL})
_TIMED = (Layout.PACKED, Layout.ROWS, Layout.CACHE)


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only("scoring_layouts", options, "rounds")
    rounds = number("scoring_layouts", options, "rounds", 3)
    rows = []
    for n_layers, hidden, n_heads in _SIZES:
        config = GPTConfig(n_layers=n_layers, hidden_size=hidden, n_heads=n_heads, context_length=640, vocab_size=_VOCAB)
        model = materialize(GPT(config), seed=0).eval()
        scorers = {layout.value: TreeScorer(model, ScorerConfig(layout=layout)) for layout in _TIMED}
        for place, n_text, n_labels, n_examples in _SHAPES:
            examples = [_example(place, n_text, n_labels, index) for index in range(n_examples)]
            ways = {name: partial(_score, scorer, examples) for name, scorer in scorers.items()}
            seconds = interleaved_medians(ways, rounds)
            chosen = best_layout(build_tree(examples[0], _KINDS), Layout.AUTO, hidden).value
            rows.append(
                {
                    "model": f"{n_layers} x {hidden}",
                    "label": f"{place} the text" if place != "middle" else "in its middle",
                    "text": n_text,
                    "labels": n_labels,
                    **{f"packed/{name}": seconds["packed"] / seconds[name] for name in seconds if name != "packed"},
                    "packed s/example": seconds["packed"] / n_examples,
                    "chosen": chosen,
                    "best/chosen": min(seconds.values()) / seconds[chosen],
                }
            )
    return rows


def _score(scorer: TreeScorer, examples: list[list[Reading]]) -> None:
    list(scorer.score(examples, _KINDS))


def _example(place: str, n_text: int, n_labels: int, index: int) -> list[Reading]:
    random = generator_for("bench scoring_layouts", place, n_text, n_labels, index)
    text = random.integers(5, _VOCAB, n_text).tolist()
    cut = {"after": n_text, "middle": n_text // 2, "before": 1}[place]
    readings = []
    for _ in range(n_labels):
        label = random.integers(5, _VOCAB, int(random.integers(2, 5))).tolist()
        parts = [(text[:cut], Span.CONTEXT), (label, Span.LABEL), (text[cut:], Span.CONTEXT)]
        readings.append(read_with_targets(join_parts(parts), LabelForm.CLM))
    return readings


register(
    Benchmark(
        name="scoring_layouts",
        title="Ways to lay out a candidate tree: how many times as fast as one packed row, and what the cost model chooses",
        baseline="packed: one row with a tree mask over its tail",
        run=_run,
    )
)
