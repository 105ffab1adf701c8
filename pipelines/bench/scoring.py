"""Scoring label candidates: the prefix tree against naive full rows, on the same weights.

Fixed: 12 layers x 512, vocabulary 8,192, fp32, dense; texts of 128 or 512 tokens; labels of 2 to 6 random tokens. The naive way
runs every candidate as a row of its own, batch 16, with logits at every position.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import torch

from adapt.core.errors import ConfigError
from adapt.core.runtime import generator_for
from adapt.core.spans import NO_TARGET, LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.batches import collate
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.scoring.tree_scorer import ScorerConfig, TreeScorer
from pipelines.bench.contract import Benchmark, interleaved_medians, register

_VOCAB = 8192
_NAIVE_BATCH = 16
_AGREEMENT = 1e-3
# (tokens of text, labels, examples): fewer examples where the naive way takes long.
_SHAPES = ((128, 2, 16), (128, 15, 8), (128, 67, 2), (128, 119, 2), (512, 2, 4), (512, 15, 2), (512, 67, 1))


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    unknown = set(options) - {"rounds", "shapes"}
    if unknown:
        raise ConfigError(f"bench scoring: unknown option '{min(unknown)}'; there are: rounds, shapes")
    rounds = int(options.get("rounds", "3"))
    shapes = _SHAPES[: int(options.get("shapes", str(len(_SHAPES))))]
    model = materialize(
        GPT(GPTConfig(n_layers=12, hidden_size=512, n_heads=8, context_length=640, vocab_size=_VOCAB)), seed=0
    ).eval()
    scorer, kinds = TreeScorer(model, ScorerConfig()), frozenset({Span.LABEL})
    rows = []
    for n_text, n_labels, n_examples in shapes:
        examples = [_example(n_text, n_labels, index) for index in range(n_examples)]

        def tree(examples: list[list[Reading]] = examples) -> list[np.ndarray]:
            return [scores[:, Span.LABEL] for scores in scorer.score(examples, kinds)]

        def naive(examples: list[list[Reading]] = examples) -> list[np.ndarray]:
            return [_naive(model, example) for example in examples]

        difference = max(float(np.abs(a - b).max()) for a, b in zip(tree(), naive(), strict=True))
        if difference > _AGREEMENT:
            raise ConfigError(f"bench scoring: the two ways differ by {difference:.2e}; the figures would mean nothing")
        seconds = interleaved_medians({"naive": naive, "tree": tree}, rounds)
        rows.append(
            {
                "text": n_text,
                "labels": n_labels,
                "naive s/example": seconds["naive"] / n_examples,
                "tree s/example": seconds["tree"] / n_examples,
                "naive/tree": seconds["naive"] / seconds["tree"],
                "largest difference": difference,
            }
        )
    return rows


def _example(n_text: int, n_labels: int, index: int) -> list[Reading]:
    random = generator_for("bench scoring", n_text, n_labels, index)
    text = random.integers(5, _VOCAB, n_text)
    readings = []
    for _ in range(n_labels):
        label = random.integers(5, _VOCAB, int(random.integers(2, 7)))
        ids = np.concatenate([text, label]).astype(np.int64)
        kinds = np.concatenate([np.full(n_text, Span.CONTEXT), np.full(len(label), Span.LABEL)]).astype(np.int64)
        readings.append(read_with_targets(SpannedText(ids_T=ids, kinds_T=kinds), LabelForm.CLM))
    return readings


@torch.inference_mode()
def _naive(model: GPT, readings: list[Reading]) -> np.ndarray:
    sums = []
    for start in range(0, len(readings), _NAIVE_BATCH):
        batch = collate([[reading] for reading in readings[start : start + _NAIVE_BATCH]])
        log_probs = model.logits(model(batch.inputs).hidden_BTH).log_softmax(dim=-1)
        asked = (batch.targets_BT != NO_TARGET) & (batch.kinds_BT == int(Span.LABEL))
        picked = log_probs.gather(-1, batch.targets_BT.clamp_min(0).unsqueeze(-1)).squeeze(-1)
        sums.append((picked * asked).sum(dim=1).double().numpy())
    return np.concatenate(sums)


register(
    Benchmark(
        name="scoring",
        title="Scoring label candidates: seconds per example, and how many times faster the prefix tree is",
        baseline="naive full rows, batch 16",
        run=_run,
    )
)
