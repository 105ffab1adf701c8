"""Model checkpoints: a directory with `config.json`, safetensors shards, an index, and the tokenizer.

Weights are written and read tensor by tensor. The index names every tensor's shard; nothing is ever unpickled. A base from
Hugging Face keeps that form: what was trained from it is a Hugging Face directory again.
"""

from __future__ import annotations

import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Protocol

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.checkpoint.hf_directory import (
    CONFIG_FILE,
    INDEX_FILE,
    SINGLE_FILE,
    artifact_of_files,
    check_shards,
    checkpoint_files_of,
    config_files_of,
    is_hf_directory,
)
from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import Precision
from adapt.core.typed import from_plain, to_plain
from adapt.model.buffers import named_state
from adapt.model.exchange import ExpertShare
from adapt.model.expert_parallel import check_share, own_experts, own_part
from adapt.model.gpt import GPT, GPTConfig
from adapt.model.hf import HFModel, load_hf_model
from adapt.text.contract import TextTokenizer
from adapt.text.hf_tokenizer import TOKENIZER_FILE, TOKENIZER_FILES, HFTokenizer
from adapt.text.tokenizer import MODEL_FILE, Tokenizer

BARE_STAGE = "checkpoint"
_SHARD_BYTES = 2 << 30


class HasVocabulary(Protocol):
    """A model, or the settings of one."""

    @property
    def vocab_size(self) -> int: ...


def is_router(name: str) -> bool:
    """Whether a tensor belongs to a router, which stays in fp32 everywhere."""
    return ".router." in name


def has_weights(directory: Path) -> bool:
    return (directory / INDEX_FILE).is_file() or (directory / SINGLE_FILE).is_file()


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the files that make a checkpoint: configuration, weights and tokenizer."""
    if is_hf_directory(directory):
        return checkpoint_files_of(directory)
    return sorted(
        file
        for file in directory.iterdir()
        if file.name.startswith(("model", CONFIG_FILE, "tokenizer")) or file.name in TOKENIZER_FILES
    )


def has_tokenizer(directory: Path) -> bool:
    return (directory / MODEL_FILE).is_file() or (directory / TOKENIZER_FILE).is_file()


def is_bare_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of this project by its files alone, with or without a manifest."""
    is_whole = all((directory / name).is_file() for name in (INDEX_FILE, CONFIG_FILE)) and has_tokenizer(directory)
    return is_whole and not is_hf_directory(directory)


def open_bare_checkpoint(directory: Path) -> Artifact:
    """Open a checkpoint without a manifest (copied by hand, or shipped) as an artifact named by its files' contents.

    Raises:
        CheckpointError: its configuration or a shard is damaged.
    """
    place = directory.resolve()
    config = to_plain(load_config(place))
    check_shards(place)
    return artifact_of_files(place, BARE_STAGE, checkpoint_files(place), config)


def save_trained(
    directory: Path,
    model: GPT | HFModel,
    weights: Iterator[tuple[str, Tensor]],
    tokenizer: TextTokenizer,
    precision: Precision = Precision.FP32,
) -> None:
    """Write the checkpoint of a trained model, in the form its base had, from a lazy iterator of (name, weight).

    In bf16 all weights are rounded but the routers', since a rounded router sends tokens elsewhere. A Hugging Face model keeps
    the precision of its base's files.
    """
    if isinstance(model, GPT):
        is_rounded = precision is Precision.BF16
        kept = ((n, w.to(torch.bfloat16) if is_rounded and not is_router(n) else w) for n, w in weights)
        save_model(directory, model.config, kept, tokenizer)
        return
    _write_tensors(directory, model.checkpoint_tensors(weights))
    for name, content in model.config_files.items():
        (directory / name).write_bytes(content)
    tokenizer.save(directory)


def save_model(directory: Path, config: GPTConfig, tensors: Iterator[tuple[str, Tensor]], tokenizer: TextTokenizer | None) -> None:
    """Write a checkpoint from a lazy iterator of (name, tensor); no more than one shard and one tensor is held in memory.

    A checkpoint imported without a tokenizer has none.
    """
    _write_tensors(directory, tensors)
    _write_json(directory / CONFIG_FILE, to_plain(config))
    if tokenizer is not None:
        tokenizer.save(directory)


def _write_tensors(directory: Path, tensors: Iterator[tuple[str, Tensor]]) -> None:
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
    _write_json(directory / INDEX_FILE, {"metadata": {"total_size": total}, "weight_map": weight_map})


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


def load_model(
    directory: Path, device: torch.device | str = "cpu", dtype: torch.dtype | None = None, share: ExpertShare | None = None
) -> GPT | HFModel:
    """Load a checkpoint's model in evaluation mode, in fp32 unless `dtype` says otherwise (routers always).

    With a `share`, only that share of the experts is kept.

    Raises:
        ConfigError: the experts cannot be shared so.
        CheckpointError: tensors are missing, left over, or of another shape.
    """
    if is_hf_directory(directory):
        check_share((), 1 if share is None else share.of)
        check_shards(directory)
        return load_hf_model(directory, config_files_of(directory), device, dtype)
    share = share or ExpertShare()
    model = own_experts(GPT(load_config(directory)), share).to_empty(device=device)
    if dtype is not None:
        for name, weight in model.named_parameters():
            if not is_router(name):  # a rounded router sends tokens elsewhere
                weight.data = weight.data.to(dtype)
    wanted = dict(named_state(model))
    for name, tensor in iterate_tensors(directory):
        place = wanted.pop(name, None)
        if place is None:
            raise CheckpointError(f"{directory}: tensor {name} does not belong to this model")
        tensor = own_part(name, tensor, share)
        if place.shape != tensor.shape:
            raise CheckpointError(
                f"{directory}: tensor {name} has shape {tuple(tensor.shape)}, the model needs {tuple(place.shape)}"
            )
        with torch.no_grad():
            place.copy_(tensor)
    if wanted:
        raise CheckpointError(f"{directory}: tensor {min(wanted)} is missing ({len(wanted)} in all)")
    return model.eval()


def load_tokenizer(directory: Path, model: HasVocabulary) -> TextTokenizer:
    """Load a checkpoint's tokenizer and hold it against the model's vocabulary (`model` may be its settings).

    Raises:
        CheckpointError: there is none, or the sizes do not fit.
    """
    if is_hf_directory(directory):
        return _load_foreign_tokenizer(directory, model)
    if not has_tokenizer(directory):
        raise CheckpointError(
            f"{directory}: has no tokenizer ({MODEL_FILE} or {TOKENIZER_FILE}), so no text can be read or scored; import it with "
            "import_checkpoint.tokenizer=FILE"
        )
    tokenizer = open_tokenizer(directory)
    check_vocabulary(tokenizer, model)
    return tokenizer


def open_tokenizer(place: Path) -> TextTokenizer:
    """Open a SentencePiece model or a `tokenizer.json` with what lies beside it, given as a file or by its directory.

    Raises:
        CheckpointError: there is none, it is damaged, or it puts a space before every text.
    """
    if place.is_dir():
        place = place / (TOKENIZER_FILE if (place / TOKENIZER_FILE).is_file() else MODEL_FILE)
    if not place.is_file():
        raise CheckpointError(f"{place}: no such tokenizer; give a SentencePiece model or a {TOKENIZER_FILE}")
    if place.name == TOKENIZER_FILE:
        # What a model's own config.json says of special tokens is left out: it does not go with the tokenizer.
        files = {name: (place.parent / name).read_bytes() for name in TOKENIZER_FILES if (place.parent / name).is_file()}
        return HFTokenizer(files, {}, str(place))
    tokenizer = Tokenizer.load(place)
    _refuse_prefix(tokenizer)
    return tokenizer


def _refuse_prefix(tokenizer: Tokenizer) -> None:
    if tokenizer.pieces(tokenizer.encode("a"))[0].startswith("▁"):
        raise CheckpointError(
            f"{tokenizer.source}: puts a space before every text, so parts of a prompt could not be joined; give a "
            f"{TOKENIZER_FILE} (in transformers, AutoTokenizer's from_pretrained and then save_pretrained)"
        )


def _load_foreign_tokenizer(directory: Path, model: HasVocabulary) -> TextTokenizer:
    """Load the tokenizer of a Hugging Face directory; its model may have more rows than tokens, never fewer."""
    tokenizer: TextTokenizer
    if (directory / TOKENIZER_FILE).is_file():
        tokenizer = HFTokenizer.load(directory)
    elif (directory / MODEL_FILE).is_file():
        tokenizer = open_tokenizer(directory / MODEL_FILE)
    else:
        raise CheckpointError(f"{directory}: has neither {TOKENIZER_FILE} nor {MODEL_FILE}")
    if tokenizer.vocab_size > model.vocab_size:
        raise CheckpointError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} tokens, but the model's vocabulary is {model.vocab_size}; "
            "give the tokenizer the model was trained with"
        )
    return tokenizer


def check_vocabulary(tokenizer: TextTokenizer, model: HasVocabulary) -> None:
    """Raise CheckpointError unless tokenizer and model have the same vocabulary size."""
    if tokenizer.vocab_size != model.vocab_size:
        raise CheckpointError(
            f"{tokenizer.source}: has {tokenizer.vocab_size} tokens, but the model's vocabulary is {model.vocab_size}; "
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
