"""A checkpoint and the results that were made of it, dense to sparse or sparse to dense: each reads the same text.

`source` is a checkpoint of this project or a Hugging Face directory. A dense one is upcycled to `experts=4`; a sparse one is merged
to a dense one by its routing over the first half of the rows, without training. `results=DIR,DIR` adds others of the source's
vocabulary, such as finished students. Rows are `rows` documents of `text=FILES`, cut to `tokens`; losses, divergences and likeliest
tokens are over their second half. Speed is that of reading all of these, in turn, after one reading that is not counted.
"""

from __future__ import annotations

import tempfile
from collections.abc import Iterator, Mapping, Sequence
from functools import partial
from itertools import islice
from pathlib import Path
from typing import Any

import numpy as np
import torch

from adapt.checkpoint.hf_directory import is_hf_directory
from adapt.checkpoint.merging.settings import MergeConfig
from adapt.checkpoint.merging.students import write_student
from adapt.checkpoint.upcycling.foreign import write_sparse_sibling
from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.upcycling.own import write_sparse
from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.checkpoint.weights import count_weights, load_model
from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.compared_logits import compared, logits_of
from adapt.model.expert_usage import usage_of
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel
from adapt.objective import mean_loss
from adapt.text.contract import TextTokenizer
from adapt.text.corpus import find_corpus, read_documents
from pipelines.bench.contract import Benchmark, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.options import is_cpu_time, number, only
from pipelines.config.locations import demo_dir
from pipelines.stages.models import open_model_artifact, weights_of

_NAME = "upcycling"


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, "source", "results", "experts", "text", "rows", "tokens", "rounds", "clock")
    n_rows, rounds = number(_NAME, options, "rows", 32), number(_NAME, options, "rounds", 3)
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, torch.get_num_threads(), "cpu") else wall_seconds
    source = _place(options.get("source", str(demo_dir() / "base")), "source")
    model = load_model(source)
    tokens = min(number(_NAME, options, "tokens", 128), model.context_length)
    rows = _rows(tokenizer_of(source), options.get("text", str(demo_dir() / "corpus" / "general.txt")), n_rows, tokens)
    counted, measured = rows[: len(rows) // 2], rows[len(rows) // 2 :]
    with tempfile.TemporaryDirectory(prefix="upcycling-") as scratch:
        places = {"source": source, **_made(source, model, counted, number(_NAME, options, "experts", 4), Path(scratch))}
        places |= {Path(name).name: _place(name, "results") for name in options.get("results", "").split(",") if name}
        models = {name: model if name == "source" else load_model(place) for name, place in places.items()}
        if strange := [name for name, one in models.items() if one.vocab_size != model.vocab_size]:
            raise ConfigError(f"bench {_NAME}: results: {places[strange[0]]} has another vocabulary than the source")
        expected = logits_of(model, measured)
        ways = {name: partial(_read, one, measured) for name, one in models.items()}
        seconds = interleaved_medians(ways, rounds, stopwatch)
        weights = {name: count_weights(place) for name, place in places.items()}
    n_tokens = sum(map(len, measured))
    return [
        _line(name, one, measured, expected)
        | {"weights": weights[name], "tokens/s": n_tokens / seconds[name], "speed/source": seconds["source"] / seconds[name]}
        for name, one in models.items()
    ]


def _line(name: str, model: GPT | HFModel, rows: Sequence[list[int]], expected: Sequence[torch.Tensor]) -> dict[str, Any]:
    found = logits_of(model, rows)
    difference = compared(expected, found)
    pairs = [(one.log_softmax(-1), other.log_softmax(-1)) for one, other in zip(expected, found, strict=True)]
    divergence = sum(float((one.exp() * (one - other)).sum()) for one, other in pairs) / difference.positions
    return {
        "checkpoint": name,
        "nats/token": mean_loss(model, _batches(rows)),
        "divergence from source": divergence,
        "same likeliest token": 1 - difference.other_choices / difference.positions,
        "largest difference": difference.largest,
    }


def _made(source: Path, model: GPT | HFModel, counted: Sequence[list[int]], experts: int, scratch: Path) -> dict[str, Path]:
    """Write what is made of the source without training, and return it by name."""
    if model.expert_counts:
        usage = usage_of(model, _batches(counted))
        for groups in (1, 2):
            (scratch / str(groups)).mkdir()
            write_student(scratch / str(groups), source, usage, MergeConfig(groups=groups), 0)
        return {"merged": scratch / "1", "merged, two groups": scratch / "2"}
    options = UpcycleOptions(experts=[experts])
    (write_sparse_sibling if is_hf_directory(source) else write_sparse)(scratch, source, options)
    return {f"{experts} experts": scratch}


@torch.inference_mode()
def _read(model: GPT | HFModel, rows: Sequence[list[int]]) -> None:
    for batch in _batches(rows):
        model.logits(model(batch.inputs).hidden_BTH)


def _batches(rows: Sequence[list[int]]) -> Iterator[Batch]:
    for row in rows:
        text = SpannedText(ids_T=np.asarray(row, np.int64), kinds_T=np.full(len(row), int(Span.CONTEXT), np.int64))
        yield collate([[read_with_targets(text, LabelForm.CLM)]])


def _rows(tokenizer: TextTokenizer, text: str, n_rows: int, tokens: int) -> list[list[int]]:
    documents = (document.text for file in find_corpus(text.split(",")) for document in read_documents(file))
    encoded = ([tokenizer.bos_id, *tokenizer.encode_documents([one])[0]][:tokens] for one in documents)
    rows = list(islice((row for row in encoded if len(row) > 1), n_rows))
    if len(rows) < 2:
        raise ConfigError(f"bench {_NAME}: text={text}: {len(rows)} documents are too few; give more text")
    return rows


def _place(name: str, key: str) -> Path:
    return weights_of(open_model_artifact(Path(name), key))


register(
    Benchmark(
        name=_NAME,
        title="Dense to sparse and sparse to dense: answers and speed",
        baseline="the source as it is, reading the same text",
        run=_run,
    )
)
