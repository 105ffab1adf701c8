"""Model checkpoints: a directory with `config.json`, safetensors shards, an index, and the tokenizer.

Weights are written and read tensor by tensor (`store_writer`, `store`); nothing is ever unpickled. A base from Hugging Face keeps
that form: what was trained from it is a Hugging Face directory again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable, Iterator
from pathlib import Path

import torch
from torch import Tensor

from adapt.checkpoint.delta import load_changed, merged_tensors, open_delta, read_record, write_delta
from adapt.checkpoint.frozen_views import frozen_views
from adapt.checkpoint.hf_directory import (
    CONFIG_FILE,
    CONFIG_FILES,
    INDEX_FILE,
    OWN_SECTION,
    SINGLE_FILE,
    artifact_of_files,
    check_shards,
    checkpoint_files_of,
    config_files_of,
    is_delta,
    is_hf_directory,
    is_own_form,
)
from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig, Verify
from adapt.checkpoint.paged_weights import PagedWeights
from adapt.checkpoint.shard_format import ByteRange
from adapt.checkpoint.store import Store, open_store
from adapt.checkpoint.store_writer import add_sums, write_tensors
from adapt.checkpoint.streaming import stream
from adapt.checkpoint.tensors_in_parts import AnyTensor
from adapt.checkpoint.vocabulary import has_tokenizer
from adapt.core.artifacts import Artifact
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_object, write_json
from adapt.core.precision import Precision
from adapt.core.typed import from_plain, to_plain
from adapt.model.buffers import named_state
from adapt.model.config import GPTConfig
from adapt.model.exchange import ExpertShare
from adapt.model.expert_parallel import check_share, is_stack, own_experts
from adapt.model.gpt import GPT
from adapt.model.hf import HFModel, load_hf_model
from adapt.model.paged_gpt import PagedGPT
from adapt.text.contract import TextTokenizer
from adapt.text.hf_tokenizer import TOKENIZER_FILES

BARE_STAGE = "checkpoint"
CODE_PATTERN = "*_moe_adapt.py"  # what transformers runs of a model of this project in the form of a Hugging Face directory
SHARD_SUFFIX = ".safetensors"


def is_router(name: str) -> bool:
    """Whether a tensor belongs to a router, which stays in fp32 everywhere."""
    return ".router." in name


def has_weights(directory: Path) -> bool:
    """Whether a directory holds weights, or what was changed of a base's."""
    return is_delta(directory) or (directory / INDEX_FILE).is_file() or (directory / SINGLE_FILE).is_file()


def checkpoint_files(directory: Path) -> list[Path]:
    """Return the files that make a checkpoint: configuration, weights and tokenizer."""
    if is_hf_directory(directory):
        return checkpoint_files_of(directory)
    starts = ("model.", "model-", CONFIG_FILE, "tokenizer")
    names = {*TOKENIZER_FILES, *(CONFIG_FILES if is_own_form(directory) else ())}
    code = directory.glob(CODE_PATTERN) if is_own_form(directory) else ()
    return sorted([*(file for file in directory.iterdir() if file.name.startswith(starts) or file.name in names), *code])


def is_bare_checkpoint(directory: Path) -> bool:
    """Whether a directory holds a checkpoint of this project, judged by its files only, with or without a manifest."""
    has_tensors = (directory / INDEX_FILE).is_file() or (is_own_form(directory) and (directory / SINGLE_FILE).is_file())
    is_whole = has_tensors and (directory / CONFIG_FILE).is_file() and has_tokenizer(directory)
    return is_whole and not is_hf_directory(directory)


def open_bare_checkpoint(directory: Path) -> Artifact:
    """Open a checkpoint without a manifest (copied by hand, or shipped) as an artifact named by its files' contents.

    Configuration and tokenizer are compared with the sums that the index records, if it does. Shards whose sums stand in the index
    are not read for it: the index names them.

    Raises:
        CheckpointError: its configuration or a shard is damaged.
    """
    place = directory.resolve()
    config = to_plain(load_config(place))
    store = open_store(place, Verify.NEVER)
    summed = set(store.files()) if set(store.sums) == set(store.tensors) else set()
    return artifact_of_files(place, BARE_STAGE, [file for file in checkpoint_files(place) if file not in summed], config)


def save_trained(
    directory: Path,
    model: GPT | HFModel,
    weights: Iterator[tuple[str, Tensor]],
    tokenizer: TextTokenizer,
    precision: Precision = Precision.FP32,
) -> None:
    """Write the checkpoint of a trained model, in the form its base had, from a lazy iterator of (name, weight).

    In bf16 and fp16 all weights are rounded but the routers', since a rounded router sends tokens elsewhere. A Hugging Face model
    keeps the precision of its base's files; where its base was frozen, what was trained beside it is written as a delta.
    """
    if isinstance(model, GPT):
        save_model(directory, model.config, rounded(weights, precision), tokenizer)
        return
    if model.lora is not None:
        write_delta(directory, model, model.lora, weights)
        tokenizer.save(directory)
        return
    write_tensors(directory, model.checkpoint_tensors(weights), has_pages=False)
    for name, content in model.config_files.items():
        (directory / name).write_bytes(content)
    tokenizer.save(directory)
    record_sums(directory)


def write_merged(directory: Path, delta_directory: Path, verify: Verify = Verify.SAMPLE) -> None:
    """Write a delta's base with the delta's changes as a Hugging Face checkpoint, tensor by tensor, without a tokenizer.

    Raises:
        CheckpointError: as for `open_delta` and `merged_tensors`.
    """
    delta = open_delta(delta_directory, verify=verify)
    write_tensors(directory, merged_tensors(delta), has_pages=False)
    for name, content in config_files_of(delta.base).items():
        (directory / name).write_bytes(content)


def rounded(weights: Iterable[tuple[str, AnyTensor]], precision: Precision) -> Iterator[tuple[str, AnyTensor]]:
    """Round weights to the precision, all but the routers'."""
    return ((name, w.to(precision.dtype) if precision.is_rounded and not is_router(name) else w) for name, w in weights)


def save_model(
    directory: Path, config: GPTConfig, tensors: Iterable[tuple[str, AnyTensor]], tokenizer: TextTokenizer | None
) -> None:
    """Write a checkpoint from a lazy iterator of (name, tensor); no more than one tensor, or one part of it, is held in memory.

    A checkpoint imported without a tokenizer has none.

    Raises:
        CheckpointError: another process is writing there.
    """
    write_tensors(directory, tensors)
    write_json(directory / CONFIG_FILE, config)
    if tokenizer is not None:
        tokenizer.save(directory)
    record_sums(directory)


def record_sums(directory: Path) -> tuple[int, int]:
    """Record in a checkpoint's index the sums of configuration and tokenizer, and of its tensors where they have none.

    Returns how many tensors and files have sums. The tensors of a Hugging Face directory are left as they are.

    Raises:
        CheckpointError: it has no index, it is damaged, or another process is writing there.
    """
    if not (directory / INDEX_FILE).is_file():
        raise CheckpointError(f"{directory}: has no {INDEX_FILE}, where the sums of a checkpoint are recorded")
    files = [file for file in checkpoint_files(directory) if file.name != INDEX_FILE and file.suffix != SHARD_SUFFIX]
    return add_sums(directory, files, with_tensors=not is_hf_directory(directory)), len(files)


def count_weights(directory: Path) -> int:
    """Return how many numbers a checkpoint's tensors hold, by its headers or index; of a delta, those of its base.

    Raises:
        CheckpointError: a shard is missing or damaged.
    """
    if is_delta(directory):
        directory = Path(read_record(directory).base)
    return sum(math.prod(place.shape) for place in open_store(directory, Verify.NEVER).tensors.values())


def iterate_tensors(directory: Path) -> Iterator[tuple[str, Tensor]]:
    """Yield (name, tensor) of a checkpoint, one at a time.

    Raises:
        CheckpointError: a shard is missing, damaged, or lacks a tensor.
    """
    yield from open_store(directory)


def load_config(directory: Path) -> GPTConfig:
    """Read a checkpoint's model configuration.

    Raises:
        CheckpointError: there is none, or it is not one.
    """
    place = directory / CONFIG_FILE
    try:
        content = read_object(place, "is this a checkpoint directory?")
        config: GPTConfig = from_plain(GPTConfig, content.get(OWN_SECTION, content), str(place))
        config.validate()
    except ConfigError as error:
        raise CheckpointError(f"{place}: not a model configuration ({error})") from error
    return config


def load_model(
    directory: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    share: ExpertShare | None = None,
    verify: Verify = Verify.SAMPLE,
    frozen: FrozenWeightsIn = FrozenWeightsIn.MEMORY,
) -> GPT | HFModel:
    """Load a checkpoint's model in evaluation mode, in fp32 unless `dtype` says otherwise (routers always).

    With a `share`, only that share of the experts is kept. With `frozen` mapped, the weights of a Hugging Face base are views of
    its files, in their number format; the engine copies those that it trains.

    Raises:
        ConfigError: the experts cannot be shared so, or these weights cannot be mapped.
        CheckpointError: tensors are missing, left over, of another shape, or not those that were written.
    """
    if is_delta(directory):
        check_share((), 1 if share is None else share.of)
        return load_changed(directory, device, dtype, verify)
    if is_hf_directory(directory):
        check_share((), 1 if share is None else share.of)
        n_stored = check_shards(directory)
        stored = open_store(directory, verify if (directory / INDEX_FILE).is_file() else Verify.NEVER)
        views = frozen_views(stored) if frozen is FrozenWeightsIn.MAPPED else None
        model = load_hf_model(directory, config_files_of(directory), n_stored, device, dtype, views)
        model.stored_dtypes = {name: place.dtype for name, place in stored.tensors.items()}
        return model
    store, frame = _checked(directory, verify, dtype)
    if share is not None and share.of > 1:
        frame, store = own_experts(frame, share), _own_tensors(store, share)
    own = frame.to_empty(device=device)
    places = dict(named_state(own))
    with torch.no_grad():
        for piece in stream(store):
            place = places[piece.name]
            if piece.first is not None:
                place = place[piece.first : piece.first + len(piece.content)]
            place.copy_(piece.content)
    return own.eval()


def open_paged(directory: Path, config: OffloadConfig, device: torch.device | str, dtype: torch.dtype | None) -> PagedGPT:
    """Open a checkpoint of this project as a model that reads its weights as it computes.

    Raises:
        CheckpointError: as for `load_model`.
    """
    store, frame = _checked(directory, config.verify, dtype)
    return PagedGPT(frame, PagedWeights(store, config, torch.device(device)), config.pass_tokens)


def _own_tensors(store: Store, share: ExpertShare) -> Store:
    """Narrow a store to what a rank owns: its slice of stacked experts, all of anything else."""

    def own(name: str, place: ByteRange) -> ByteRange:
        if not is_stack(name):
            return place
        rows = share.slice_of(place.shape[0])
        return place.rows(rows.start, rows.stop - rows.start)

    return Store(directory=store.directory, tensors={name: own(name, place) for name, place in store.tensors.items()})


def _checked(directory: Path, verify: Verify, dtype: torch.dtype | None) -> tuple[Store, GPT]:
    """Open a checkpoint's tensors, and make a model without memory whose names and shapes are theirs."""
    config, store = load_config(directory), open_store(directory, verify)
    if config.n_layers > len(store.tensors):
        raise CheckpointError(
            f"{directory / CONFIG_FILE}: says {config.n_layers} layers, but there are {len(store.tensors)} tensors"
        )
    model = GPT(config)
    if dtype is not None:
        for name, weight in model.named_parameters():
            if not is_router(name):  # a rounded router sends tokens elsewhere
                weight.data = weight.data.to(dtype)
    wanted = {name: tuple(tensor.shape) for name, tensor in named_state(model)}
    for name, place in store.tensors.items():
        if name not in wanted:
            raise CheckpointError(f"{directory}: tensor {name} does not belong to this model")
        if wanted[name] != place.shape:
            raise CheckpointError(f"{directory}: tensor {name} has shape {place.shape}, the model needs {wanted[name]}")
    missing = wanted.keys() - store.tensors.keys()
    if missing:
        raise CheckpointError(f"{directory}: tensor {min(missing)} is missing ({len(missing)} in all)")
    return store, model
