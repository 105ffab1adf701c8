"""The baseline of `scoring`: lm-evaluation-harness's Hugging Face class over a GPT-2 with this project's weights.

Gao et al., "A framework for few-shot language model evaluation" (lm_eval, `lm_eval/models/huggingface.py`). It is driven from
where its own tokenization ends (`_loglikelihood_tokens`), so its sorting, grouping, batching, model call and look-up are what is
timed. The packages are an optional extra; nothing here imports them before they are asked for.
"""

from __future__ import annotations

import importlib
import importlib.metadata
import importlib.util
import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import nn

from adapt.core.spans import Reading, Span
from adapt.model.config import Gelu
from adapt.model.gpt import GPT, Block
from adapt.model.moe import DenseMLP

BATCH_ROWS = 16
_NEEDED = ("lm_eval", "transformers", "accelerate")
INSTALL = "pip install -c constraints.txt -e '.[lm-eval]'"

Request = tuple[tuple[str, str], list[int], list[int]]


def missing_packages() -> list[str]:
    """Return which packages of the `lm-eval` extra are not installed."""
    return [name for name in _NEEDED if importlib.util.find_spec(name) is None]


def versions() -> str:
    """Return what the baseline is made of, e.g. 'lm_eval 0.4.13, transformers 5.23.0'."""
    return ", ".join(f"{name} {importlib.metadata.version(name)}" for name in _NEEDED[:2])


@torch.no_grad()
def gpt2_twin(model: GPT) -> Any:
    """Return a `transformers.GPT2LMHeadModel` that computes what a dense `model` computes.

    `gelu_pytorch_tanh` is the fused kernel that this project runs too; GPT-2's own `gelu_new` is the same function in eight passes.
    """
    transformers = importlib.import_module("transformers")
    config = model.config
    assert not model.expert_counts, "GPT-2 has no experts"
    assert config.gelu is Gelu.TANH, "the twin has the tanh form"
    twin = transformers.GPT2LMHeadModel(
        transformers.GPT2Config(
            vocab_size=config.vocab_size,
            n_positions=config.context_length,
            n_embd=config.hidden_size,
            n_layer=config.n_layers,
            n_head=config.n_heads,
            n_inner=config.ffn_width,
            activation_function="gelu_pytorch_tanh",
            layer_norm_epsilon=config.norm_eps,
            bos_token_id=0,
            eos_token_id=0,
        )
    )
    body = twin.transformer
    body.wte.weight.copy_(model.embedding.weight)
    body.wpe.weight.copy_(model.positions.weight)
    for theirs, ours in zip(body.h, model.blocks, strict=True):
        assert isinstance(ours, Block)
        assert isinstance(ours.mlp, DenseMLP)
        _copy(theirs.ln_1, ours.attention_norm)
        _copy(theirs.ln_2, ours.mlp_norm)
        _copy_transposed(theirs.attn.c_attn, ours.attention.qkv)
        _copy_transposed(theirs.attn.c_proj, ours.attention.out)
        _copy_transposed(theirs.mlp.c_fc, ours.mlp.up)
        _copy_transposed(theirs.mlp.c_proj, ours.mlp.down)
    _copy(body.ln_f, model.final_norm)
    return twin.eval()


def harness(twin: Any) -> Any:
    """Return an `lm_eval` `HFLM` over the twin, as the harness makes it for a model that is already in memory."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)  # it warns that a model object was given
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    return huggingface.HFLM(pretrained=twin, tokenizer=_tokenizer(twin.config.vocab_size), batch_size=BATCH_ROWS, device="cpu")


def harness_of_directory(causal: Any, directory: Path, batch_rows: int) -> Any:
    """Return the harness over a model in memory with the tokenizer of its directory, as it reads both for texts."""
    logging.getLogger("lm_eval").setLevel(logging.ERROR)
    huggingface = importlib.import_module("lm_eval.models.huggingface")
    tokenizer = importlib.import_module("transformers").AutoTokenizer.from_pretrained(str(directory), local_files_only=True)
    return huggingface.HFLM(pretrained=causal, tokenizer=tokenizer, batch_size=batch_rows, device="cpu")


def log_likelihoods(lm: Any, requests: Sequence[tuple[str, str]]) -> list[float]:
    """Return the log-likelihood of each second text after the first, tokenized by the harness."""
    instance = importlib.import_module("lm_eval.api.instance").Instance
    asked = [
        instance(request_type="loglikelihood", doc={}, arguments=request, idx=number) for number, request in enumerate(requests)
    ]
    return [total for total, _ in lm.loglikelihood(asked, disable_tqdm=True)]


def requests_of(examples: Sequence[Sequence[Reading]]) -> list[Request]:
    """Return one request per label of each example: the strings that name it, the text's ids, the label's ids."""
    requests = []
    for example in examples:
        for reading in example:
            # A label is what the label targets say; the text is what stands before the first of them.
            first = int(np.flatnonzero(reading.kinds_T == int(Span.LABEL))[0]) + 1
            text, label = reading.inputs_T[:first].tolist(), reading.inputs_T[first:].tolist()
            requests.append(((" ".join(map(str, text)), " " + " ".join(map(str, label))), text, label))
    return requests


def harness_sums(lm: Any, requests: list[Request]) -> list[float]:
    """Return each request's summed log-likelihood, by the harness's own path after tokenization."""
    return [total for total, _ in lm._loglikelihood_tokens(requests, disable_tqdm=True)]


def _tokenizer(vocab_size: int) -> Any:
    tokenizers = importlib.import_module("tokenizers")
    words = {str(index): index for index in range(vocab_size)}
    words_to_ids = tokenizers.Tokenizer(tokenizers.models.WordLevel(words, unk_token="0"))
    words_to_ids.pre_tokenizer = tokenizers.pre_tokenizers.WhitespaceSplit()
    transformers = importlib.import_module("transformers")
    return transformers.PreTrainedTokenizerFast(tokenizer_object=words_to_ids, unk_token="0", eos_token="0", pad_token="0")


def _copy(theirs: Any, ours: nn.LayerNorm) -> None:
    theirs.weight.copy_(ours.weight)
    theirs.bias.copy_(ours.bias)


def _copy_transposed(theirs: Any, ours: nn.Linear) -> None:
    theirs.weight.copy_(ours.weight.T)  # transformers' Conv1D keeps [in, out]
    theirs.bias.copy_(ours.bias)
