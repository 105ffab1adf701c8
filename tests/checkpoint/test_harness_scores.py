"""A Hugging Face base's scores are those that lm-evaluation-harness computes: the rest of the whole text behind its context."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adapt.checkpoint.open_checkpoint import open_checkpoint
from adapt.core.precision import Precision
from adapt.scoring.scorer_config import ScorerConfig
from pseudo_label.labelling import ScoringConfig, TaskScorer
from pseudo_label.tasks import FieldConfig, PromptConfig, TaskConfig, TaskRow
from tests.support.hf_checkpoints import BYTE_LEVEL, METASPACE, make_checkpoint

WORDS = {"a": "world news", "b": "体育", "c": "sports"}
TEXTS = ["物流很快，包装也好。", "The court said yes", "a 1 b 2", "第一行\n第二行"]


@pytest.mark.parametrize("kind", [BYTE_LEVEL, METASPACE])
def test_log_likelihoods_are_those_of_the_harness(kind: str, tmp_path: Path) -> None:
    place = make_checkpoint(tmp_path, "qwen3", kind)
    opened = open_checkpoint(place, ScorerConfig(precision=Precision.FP32))
    task = TaskConfig(
        name="planted",
        fields={"one": FieldConfig(path="one")},
        label_words=WORDS,
        prompts={"reference": PromptConfig(template="{one} is about {label}", criterion="sum")},
        shorten=["one"],
    )
    rows = [TaskRow(id=n, texts={"one": text}, label=None, candidates=None, line=n) for n, text in enumerate(TEXTS)]
    (keys,) = TaskScorer(task, ScoringConfig(), opened.scorer, opened.tokenizer).keys(rows)
    model: Any = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    for row, keys_C in zip(rows, keys.labels_NC, strict=True):
        for word, key in zip(WORDS.values(), keys_C, strict=True):
            context, whole = (
                tokenizer.encode(text, add_special_tokens=False)
                for text in (f"{row.texts['one']} is about", f"{row.texts['one']} is about {word}")
            )
            rest = whole[len(context) :]
            with torch.no_grad():
                log_probs = model(torch.tensor([[opened.tokenizer.bos_id, *whole]])).logits[0].log_softmax(-1)
            expected = sum(float(log_probs[len(whole) - len(rest) + i, token]) for i, token in enumerate(rest))
            assert key == pytest.approx(expected, abs=1e-3)
