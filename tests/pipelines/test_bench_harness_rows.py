"""The benchmark of real rows: what it asks the harness for, this project's sums, and wrong options."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
import torch
from transformers import AutoModelForCausalLM, PreTrainedTokenizerFast

from adapt.core.errors import ConfigError
from adapt.text.hf_tokenizer import HFTokenizer
from pipelines.bench import harness_rows
from pipelines.bench.contract import all_benchmarks
from pipelines.bench.on_real_rows import opened, real_rows
from pseudo_label.harnesses.prompt_text import TextForm
from pseudo_label.prompts import Prompt
from tests.support.hf_checkpoints import make_checkpoint


def test_requests_and_own_sums_are_those_of_plain_full_passes(tmp_path: Path) -> None:
    (tmp_path / "sst2").mkdir()
    rows = [{"sentence": text, "label": "positive"} for text in ("fine , and warm .", "a bore", "so long , so dull")]
    text = "".join(json.dumps({"id": n, **row}) + "\n" for n, row in enumerate(rows))
    (tmp_path / "sst2" / "dev.json").write_text(text, encoding="utf-8")
    (tmp_path / "sst2" / "unlabeled.json").write_text('{"id": 9, "sentence": "b"}\n', encoding="utf-8")
    place = make_checkpoint(tmp_path / "base", "llama")
    model, data = opened(place), real_rows(tmp_path, "sst2", 9, 1)
    assert isinstance(model.tokenizer, HFTokenizer)
    form = TextForm(tokenizer=model.tokenizer, context_length=model.scorer.context_length)
    requests = harness_rows.harness_requests(data.task, data.labelled, form)
    prompt = Prompt(data.task, data.task.reference, model.tokenizer, model.scorer.context_length)
    sums = harness_rows.own_sums(model, prompt, data.labelled)
    assert len(requests) == len(sums) == 6
    causal = AutoModelForCausalLM.from_pretrained(place, dtype=torch.float32).eval()
    tokenizer = PreTrainedTokenizerFast(tokenizer_file=str(place / "tokenizer.json"))
    for (context, label), total in zip(requests, sums, strict=True):
        start = [model.tokenizer.bos_id]
        before, whole = (start + tokenizer.encode(text, add_special_tokens=False) for text in (context.rstrip(), context + label))
        with torch.no_grad():
            log_probs = causal(torch.tensor([whole])).logits[0].log_softmax(-1)
        expected = sum(float(log_probs[place - 1, whole[place]]) for place in range(len(before), len(whole)))
        assert total == pytest.approx(expected, abs=1e-3)


def test_wrong_options_and_a_missing_harness_are_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    run = all_benchmarks().get("harness_rows").run
    with pytest.raises(ConfigError, match="unknown option 'shots'"):
        run({"checkpoint": "c", "root": "r", "shots": "5"})
    with pytest.raises(ConfigError, match="needs checkpoint="):
        run({"root": "r"})
    monkeypatch.setattr(harness_rows, "missing_packages", lambda: ["lm_eval"])
    with pytest.raises(ConfigError, match=r"needs lm_eval; install it with `pip install .*lm-eval"):
        run({"checkpoint": "c", "root": "r"})
