"""A base with more pieces in its vocabulary: a row more for each, the mean of the rows of the old tokens that it is made of.

A Hugging Face base keeps its form, its number formats and all files but the tokenizer's other forms. Its tables may have more rows
than the tokenizer has tokens: new pieces take these first, and tables grow only by what is missing.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

import torch

from adapt.checkpoint.hf_directory import CONFIG_FILE, config_files_of
from adapt.checkpoint.store import Store, open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.vocabulary import tokenizer_of
from adapt.checkpoint.weights import record_sums
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object, write_json
from adapt.model.hf import frame_of
from adapt.text.hf_tokenizer import HFTokenizer
from adapt.text.vocabulary_extension import Extension

if TYPE_CHECKING:
    from torch import Tensor

EMBEDDING = "embedding.weight"


def extended(
    tensors: Iterator[tuple[str, Tensor]], found: Extension, tables: Collection[str] = (EMBEDDING,)
) -> Iterator[tuple[str, Tensor]]:
    """Yield a checkpoint's tensors, those of `tables` with the new pieces' rows from the first new token on."""
    for name, tensor in tensors:
        if name in tables:
            rows = [tensor[torch.tensor(old)].float().mean(dim=0) for old in found.old_tokens]
            new = torch.stack(rows).to(tensor.dtype)
            tensor = torch.cat([tensor[: found.first], new, tensor[found.first + len(rows) :]])
        yield name, tensor


def open_extendable(directory: Path) -> tuple[HFTokenizer, Store, list[str]]:
    """Open a Hugging Face base's tokenizer and stored tensors, and say which of these have a row for each token.

    Raises:
        CheckpointError: the family is not served, the base has no `tokenizer.json`, or its tables are not of its vocabulary's size.
    """
    frame, store = frame_of(directory, n_layers=1), open_store(directory)
    tokenizer = tokenizer_of(directory)
    assert isinstance(tokenizer, HFTokenizer), "a directory without tokenizer.json was refused before"
    tables = frame.vocabulary_tables()
    if len({id(table) for table in tables.values()}) == 1:  # tied: the second name is seldom stored
        tables = {name: table for name, table in tables.items() if name in store.tensors} or tables
    for name, table in tables.items():
        if store.place(name).shape != tuple(table.shape):
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {store.place(name).shape}, the model needs {tuple(table.shape)}"
            )
    return tokenizer, store, list(tables)


def write_extended(directory: Path, base: Path, found: Extension, store: Store, tables: Collection[str]) -> None:
    """Write an extended Hugging Face base, tensor by tensor, from what `open_extendable` opened.

    Raises:
        CheckpointError: a shard is damaged, or another process is writing there.
    """
    write_tensors(directory, extended(iter(store), found, tables), has_pages=False)
    for name, content in config_files_of(base).items():
        (directory / name).write_bytes(content)
    config = read_object(base / CONFIG_FILE)
    write_json(directory / CONFIG_FILE, {**config, "vocab_size": max(config["vocab_size"], found.tokenizer.vocab_size)})
    found.tokenizer.save(directory)
    record_sums(directory)
