"""A base with an extended vocabulary against the base as it is: tokens a document, and loss a character, before and after training.

Both read the same documents in every step, so the extended one reads fewer tokens; losses are nats a character of the same
held-out documents, since a token of one is none of the other. New rows can have a learning rate of their own: `new_rows=5` moves
them five times as far as the optimizer says (AdamW's step is the learning rate times what depends on gradients only). `checkpoint`
is a base of this project or a Hugging Face directory, `text` domain text; documents are cut to `characters`. `precision=bf16`
trains with matrix products in bf16, which is faster where the processor has instructions for it; losses are measured in fp32.
"""

from __future__ import annotations

import copy
import tempfile
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import replace
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.checkpoint.extended_base import EMBEDDING, extended, open_extendable, write_extended
from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Reading, Span, SpannedText, read_with_targets
from adapt.model.batches import collate
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.objective import token_nll
from adapt.text.contract import TextTokenizer
from adapt.text.corpus import find_corpus, is_held_out, read_documents
from adapt.text.hf_vocabulary_extension import extend_hf
from adapt.text.tokenizer import Tokenizer
from adapt.text.vocabulary_extension import Extension, ExtensionConfig, extend
from pipelines.bench.contract import Benchmark, register
from pipelines.bench.options import number, one_of, only
from pipelines.config.locations import demo_dir
from pipelines.stages.extend_vocabulary import check_extendable

_NAME = "extension"
_LR, _WARMUP_SHARE = 3e-4, 0.2  # the peak, after a linear warm-up; a linear fall to 0 follows
_HELD_OUT_SHARE, _SCORED = 0.05, 32


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(
        _NAME,
        options,
        "checkpoint",
        "text",
        "pieces",
        "min_count",
        "max_characters",
        "steps",
        "documents",
        "characters",
        "held_out",
        "new_rows",
        "precision",
        "seed",
        needed=("text",),
    )
    place = Path(options.get("checkpoint", str(demo_dir() / "base")))
    check_extendable(place)
    steps, size = number(_NAME, options, "steps", 100), number(_NAME, options, "documents", 32)
    longest, most = number(_NAME, options, "characters", 200), number(_NAME, options, "held_out", 400)
    is_bf16 = one_of(_NAME, options, "precision", ("fp32", "bf16")) == "bf16"
    torch.manual_seed(number(_NAME, options, "seed", 1))
    texts = [document.text[:longest] for file in find_corpus([options["text"]]) for document in read_documents(file)]
    training = [text for text in texts if not is_held_out(text, _HELD_OUT_SHARE)]
    held_out = list(islice((text for text in texts if is_held_out(text, _HELD_OUT_SHARE)), most))
    if len(training) < size or not held_out:
        raise ConfigError(f"bench {_NAME}: text={options['text']}: {len(texts)} documents are too few; give more text")
    config = ExtensionConfig(
        pieces=number(_NAME, options, "pieces", 2000),
        min_count=number(_NAME, options, "min_count", ExtensionConfig.min_count),
        max_characters=number(_NAME, options, "max_characters", ExtensionConfig.max_characters),
    )
    order = generator_for("bench extension", options.get("seed", "1")).integers(len(training), size=(steps, size))
    rows = []
    for name, model, own, factor, first in _ways(place, training, config, number(_NAME, options, "new_rows", 1)):
        before = loss_per_character(model, own, held_out)
        started = time.process_time()
        _train(model, own, [[training[place] for place in step] for step in order], first, factor, is_bf16)
        seconds = time.process_time() - started
        rows.append(
            {
                "vocabulary": name,
                "pieces": own.vocab_size,
                "tokens/document": sum(map(len, own.encode_documents(held_out))) / len(held_out),
                "nats/character before": before,
                f"after {steps} steps": loss_per_character(model, own, held_out),
                "CPU s/step": seconds / steps,
            }
        )
    return rows


def _ways(
    place: Path, texts: Sequence[str], config: ExtensionConfig, new_rows: int
) -> Iterator[tuple[str, GPT | HFModel, TextTokenizer, int, int]]:
    """Yield each vocabulary's name, model, tokenizer, the factor of the new rows' steps, and the first of them, one by one."""
    factors = [(f"extended, new rows x{factor}", factor) for factor in dict.fromkeys((1, new_rows))]
    tokenizer: TextTokenizer
    if not is_hf_directory(place):
        tokenizer, base = Tokenizer.load(place), load_model(place)
        assert isinstance(base, GPT)
        found = extend(tokenizer, texts, config)
        yield "as it is", copy.deepcopy(base), tokenizer, 1, found.first
        for name, factor in factors:
            yield name, grown(base, found), found.tokenizer, factor, found.first
        return
    tokenizer, store, tables = open_extendable(place)
    found = extend_hf(tokenizer, texts, config)
    yield "as it is", load_model(place), tokenizer, 1, found.first
    with tempfile.TemporaryDirectory(prefix="extended-") as result:
        write_extended(Path(result), place, found, store, tables)
        for name, factor in factors:
            yield name, load_model(Path(result)), found.tokenizer, factor, found.first


def grown(base: GPT, found: Extension) -> GPT:
    """Return a copy of a base with a row for each new piece."""
    model = GPT(replace(base.config, vocab_size=found.tokenizer.vocab_size)).to_empty(device="cpu")
    tensors = dict(extended(iter(base.state_dict().items()), found))
    assert tensors[EMBEDDING].shape[0] == found.tokenizer.vocab_size
    model.load_state_dict(tensors)
    return model.eval()


@torch.inference_mode()
def loss_per_character(model: GPT | HFModel, tokenizer: TextTokenizer, texts: Sequence[str]) -> float:
    """Return the nats a character that a model needs for texts, their ends included."""
    total = sum(float(_nll(model, tokenizer, texts[start : start + _SCORED])) for start in range(0, len(texts), _SCORED))
    return total / sum(map(len, texts))


def _train(
    model: GPT | HFModel, tokenizer: TextTokenizer, steps: Sequence[Sequence[str]], first: int, factor: int, is_bf16: bool
) -> None:
    model.train()
    tables = [model.embedding.weight] if isinstance(model, GPT) else unique(model.vocabulary_tables())
    optimizer = torch.optim.AdamW(model.parameters(), lr=_LR, weight_decay=0.0)
    for done, texts in enumerate(steps):
        for group in optimizer.param_groups:
            group["lr"] = _LR * min((done + 1) / (_WARMUP_SHARE * len(steps) + 1), (len(steps) - done) / len(steps))
        optimizer.zero_grad()
        with torch.autocast("cpu", torch.bfloat16, enabled=is_bf16):  # one for each step: it keeps weights as they were cast first
            nats = _nll(model, tokenizer, texts) / sum(map(len, texts))
        nats.backward()
        before = [table.detach()[first:].clone() for table in tables]
        optimizer.step()
        if factor > 1:
            with torch.no_grad():
                for table, old in zip(tables, before, strict=True):
                    table[first:].copy_(old + factor * (table[first:] - old))
    model.eval()


def unique(tables: Mapping[str, torch.Tensor]) -> list[torch.Tensor]:
    """Return tensors, those of several names once."""
    return list({id(table): table for table in tables.values()}.values())


def _nll(model: GPT | HFModel, tokenizer: TextTokenizer, texts: Sequence[str]) -> torch.Tensor:
    batch = collate([[_reading(tokenizer, ids, model.context_length)] for ids in tokenizer.encode_documents(list(texts))])
    places = batch.target_places()
    hidden_NH = model(batch.inputs).hidden_BTH.flatten(0, 1)[places.all_N]
    return token_nll(model, hidden_NH, batch.targets_BT.flatten()[places.all_N]).sum()


def _reading(tokenizer: TextTokenizer, ids: Sequence[int], context_length: int) -> Reading:
    whole = np.asarray([tokenizer.bos_id, *ids, tokenizer.eos_id], np.int64)
    if len(whole) > context_length:
        raise ConfigError(f"bench {_NAME}: a document takes {len(whole)} tokens, the context {context_length}; lower characters=")
    return read_with_targets(SpannedText(ids_T=whole, kinds_T=np.full(len(whole), int(Span.CONTEXT), np.int64)), LabelForm.CLM)


register(
    Benchmark(
        name=_NAME,
        title="A base with more pieces in its vocabulary, trained on domain text",
        baseline="the base as it is, trained on the same documents in the same number of steps",
        run=_run,
    )
)
