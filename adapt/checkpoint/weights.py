"""Model checkpoints: a directory with `config.json`, safetensors shards, an index, and the tokenizer.

Weights are written and read tensor by tensor. The index names every tensor's shard; nothing is ever unpickled.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.typed import from_plain, to_plain
from adapt.model.gpt import GPT, GPTConfig
from adapt.text.tokenizer import Tokenizer

CONFIG_FILE = "config.json"
INDEX_FILE = "model.safetensors.index.json"
_SHARD_BYTES = 2 << 30


def has_weights(directory: Path) -> bool:
    return (directory / INDEX_FILE).is_file()


def save_model(directory: Path, config: GPTConfig, tensors: Iterator[tuple[str, Tensor]], tokenizer: Tokenizer) -> None:
    """Write a checkpoint from a lazy iterator of (name, tensor); at most one shard is held in memory."""
    weight_map: dict[str, str] = {}
    shard: dict[str, Tensor] = {}
    size = total = 0

    def flush() -> None:
        nonlocal shard, size
        if shard:
            name = f"model-{len(set(weight_map.values())) + 1:05d}.safetensors"
            save_file(shard, directory / name, metadata={"format": "pt"})
            weight_map.update(dict.fromkeys(shard, name))
            shard, size = {}, 0

    for name, tensor in tensors:
        shard[name] = tensor.detach().cpu().contiguous()
        size += tensor.numel() * tensor.element_size()
        total += tensor.numel() * tensor.element_size()
        if size >= _SHARD_BYTES:
            flush()
    flush()
    _write_json(directory / CONFIG_FILE, to_plain(config))
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})
    tokenizer.save(directory)


def iterate_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a checkpoint, one at a time.

    Raises:
        CheckpointError: a shard is missing, damaged, or lacks a tensor.
    """
    weight_map = _read_json(directory / INDEX_FILE).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise CheckpointError(f"{directory / INDEX_FILE}: has no weight_map of tensor names to shards")
    for shard in sorted(set(weight_map.values())):
        try:
            with safe_open(directory / shard, framework="pt") as stream:
                for name in sorted(n for n, s in weight_map.items() if s == shard):
                    yield name, stream.get_tensor(name)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{directory / shard}: missing or damaged ({error})") from error


def load_config(directory: Path) -> GPTConfig:
    """Read a checkpoint's model configuration.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    place = directory / CONFIG_FILE
    try:
        config: GPTConfig = from_plain(GPTConfig, _read_json(place), str(place))
        config.validate()
    except ConfigError as error:
        raise CheckpointError(f"{place}: not a model configuration ({error})") from error
    return config


def load_model(directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None) -> GPT:
    """Load a checkpoint's model in evaluation mode.

    Raises:
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    model = GPT(load_config(directory)).to_empty(device=device)
    if dtype is not None:
        model = model.to(dtype)
    wanted = dict(model.named_parameters())
    for name, tensor in iterate_tensors(directory):
        parameter = wanted.pop(name, None)
        if parameter is None:
            raise CheckpointError(f"{directory}: tensor {name} does not belong to this model")
        if parameter.shape != tensor.shape:
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {tuple(tensor.shape)}, the model needs {tuple(parameter.shape)}"
            )
        with torch.no_grad():
            parameter.copy_(tensor)
    if wanted:
        raise CheckpointError(f"{directory}: tensor {min(wanted)} is missing ({len(wanted)} in all)")
    return model.eval()


def load_tokenizer(directory: Path, config: GPTConfig) -> Tokenizer:
    """Load a checkpoint's tokenizer and hold it against the model's vocabulary.

    Raises:
        CheckpointError: there is none, or the sizes differ.
    """
    tokenizer = Tokenizer.load(directory)
    check_vocabulary(tokenizer, config)
    return tokenizer


def check_vocabulary(tokenizer: Tokenizer, config: GPTConfig) -> None:
    """Raise CheckpointError unless tokenizer and model have the same vocabulary size."""
    if tokenizer.vocab_size != config.vocab_size:
        raise CheckpointError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} tokens, but the model's vocabulary is {config.vocab_size}; "
            "set model.vocab_size to the tokenizer's, or give the tokenizer the model was trained with"
        )


def _write_json(path: Path, value: object) -> None:
    path.write_text(json.dumps(value, ensure_ascii=False, indent=1) + "\n", encoding="utf-8")


def _read_json(path: Path) -> dict[str, Any]:
    try:
        content = json.loads(path.read_text(encoding="utf-8"))
    except FileNotFoundError:
        raise CheckpointError(f"{path}: no such file; is this a checkpoint directory?") from None
    except (json.JSONDecodeError, UnicodeDecodeError) as error:
        raise CheckpointError(f"{path}: not valid JSON ({error})") from error
    if not isinstance(content, dict):
        raise CheckpointError(f"{path}: expected a JSON object")
    return content
