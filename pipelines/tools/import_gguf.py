"""`python -m pipelines.import_gguf source=FILE output=DIR [precision=fp32] [force=true]`

Turn a GGUF file into a Hugging Face directory that model.path= and checkpoint= take: weights in safetensors, config.json and a
tokenizer.json made of the file's metadata. No code is run. The written directory is then opened as any base is, and has to
continue some beginnings exactly as the model of the file does; these continuations are printed.

  source       a .gguf file, or a wheel or zip archive that holds one
  output       directory to be made
  precision    number format of the written weights: fp32 (default), bf16 or fp16
  force        true writes over a checkpoint that is there

Needs `pip install 'moe-adapt[gguf]'`. Served are the families of docs/models.md.
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.faults import writable
from adapt.core.precision import Precision

_BEGINNINGS = ("The capital of France is", "Water boils at", "Once upon a time, there was", "1, 2, 3, 4,")
_N_TOKENS = 16


@dataclass(frozen=True, kw_only=True)
class ImportGGUFConfig:
    """A GGUF file and the directory that is made of it."""

    source: str
    output: str
    precision: Precision = Precision.FP32
    force: bool = False


def import_gguf(config: ImportGGUFConfig) -> int:
    """Convert, open what was written, and compare continuations.

    Raises:
        ConfigError: a package is missing, the precision is `auto`, or the directory holds a checkpoint.
        CheckpointError: the file cannot be read, or the written directory answers otherwise.
    """
    from adapt.checkpoint.gguf_files import convert_gguf, gguf_file_of  # these import torch
    from adapt.checkpoint.vocabulary import load_tokenizer
    from adapt.checkpoint.weights import has_weights, load_model
    from adapt.model.continuing import greedy_tokens

    place, started = Path(config.output), time.monotonic()
    if config.precision is Precision.AUTO:
        raise ConfigError("precision=auto: a file is fp32, bf16 or fp16; name one")
    if place.is_dir() and any(place.iterdir()) and not (config.force and has_weights(place)):
        advice = "choose another place, or set force=true" if has_weights(place) else "choose another place"
        raise ConfigError(f"{place}: is not empty; {advice}")
    scratch = place.with_name(f".{place.name}.unfinished")
    with writable(place), gguf_file_of(Path(config.source)) as file:
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        original = convert_gguf(file, scratch, config.precision)
    written = load_model(scratch)
    tokenizer = load_tokenizer(scratch, written)
    beginnings = [[tokenizer.bos_id, *ids] for ids in tokenizer.encode_documents(list(_BEGINNINGS))]
    expected, found = (greedy_tokens(model, beginnings, _N_TOKENS) for model in (original, written))
    if expected != found:
        raise CheckpointError(f"{scratch}: continues a text otherwise than the model in {config.source}; do not use it")
    with writable(place):
        shutil.rmtree(place, ignore_errors=True)
        scratch.rename(place)
    size = sum(weight.numel() for weight in written.parameters())
    sys.stdout.write(f"{place}: {size:,} weights in {config.precision.value}, {time.monotonic() - started:.0f} s\n")
    for beginning, ids in zip(_BEGINNINGS, found, strict=True):
        sys.stdout.write(f"  {beginning!r} -> {tokenizer.decode(ids)!r}\n")
    return 0
