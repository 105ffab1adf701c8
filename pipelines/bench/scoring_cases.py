"""What the scoring benchmarks measure on: one model and made-up examples."""

from __future__ import annotations

import numpy as np

from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT, materialize

VOCAB = 8192
SHAPE = "12 layers x 512 hidden, vocabulary 8,192, fp32, dense; labels of 2-6 random tokens"
LABEL_KINDS = frozenset({Span.LABEL})


def scoring_model() -> GPT:
    """Return the model of `SHAPE`, the same at every call."""
    config = GPTConfig(n_layers=12, hidden_size=512, n_heads=8, context_length=640, vocab_size=VOCAB)
    return materialize(GPT(config), seed=0).eval()


def label_example(n_text: int, n_labels: int, index: int) -> list[Reading]:
    """Return one reading per label: the same `n_text` random tokens, then the label's."""
    random = generator_for("bench scoring", n_text, n_labels, index)
    text = random.integers(5, VOCAB, n_text)
    readings = []
    for _ in range(n_labels):
        label = random.integers(5, VOCAB, int(random.integers(2, 7)))
        ids = np.concatenate([text, label]).astype(np.int64)
        kinds = np.concatenate([np.full(n_text, Span.CONTEXT), np.full(len(label), Span.LABEL)]).astype(np.int64)
        readings.append(read_with_targets(SpannedText(ids_T=ids, kinds_T=kinds), LabelForm.CLM))
    return readings
