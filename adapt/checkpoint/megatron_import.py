"""A Megatron-DeepSpeed checkpoint, once its files and settings are known, as this project's tensors, one parameter at a time.

Opening reads names and shapes only and accounts for every one of them; the weights stay in their files. Then each parameter is
made when it is asked for: dense ones from the main file, a layer's stacked experts from one expert file after another, so that
no more is in memory than one parameter.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.checkpoint.import_options import ImportOptions, ResidualAxis
from adapt.checkpoint.importers.contract import ForeignCheckpoint, ImportReport
from adapt.checkpoint.megatron_names import (
    EXPERT_PARTS,
    LAST_BIAS,
    WORDS,
    canonical,
    expert_part,
    foreign_name,
    heads_last,
    network_depth,
)
from adapt.checkpoint.pickled_files import check_sums, flattened, read_pickled
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.progress import progress
from adapt.model.config import Gelu, GPTConfig
from adapt.model.gpt import GPT

_WEIGHT_DTYPES = (torch.float16, torch.bfloat16, torch.float32, torch.float64)
_PADDED_TO = 128
_MOST_SPLITS = 64
_SHOWN = 3
UNUSED_EXPERT_BIAS = "last bias of an expert: stored, never added"
UNUSED_MIX = "residual mix: both its weights are 1 over a batch of one"
UNUSED_RESIDUAL_BIAS = "last bias of a residual MLP: stored, never added"


@dataclass(frozen=True, kw_only=True)
class MegatronFiles:
    """The main file, and the directory of the experts' files."""

    main: Path
    experts: Path

    def expert(self, moe_layer: int, expert: int) -> Path:
        return self.experts / f"layer_{moe_layer}_expert_{expert}_mp_rank_00_model_states.pt"


@dataclass(frozen=True, kw_only=True)
class MegatronSizes:
    """What the foreign configuration says. `experts` is as they write it: per MoE layer or one for all, 0 or 1 for dense."""

    n_layers: int
    hidden_size: int
    n_heads: int
    context_length: int
    ffn_hidden_size: int
    vocab_size: int | None
    experts: list[int]
    gelu: Gelu
    norm_eps: float
    init_std: float
    notes: Mapping[str, Any] = field(default_factory=dict)


@dataclass
class _Accounts:
    """The main file's tensors under canonical names, and what became of every tensor so far."""

    source: Path
    tensors: dict[str, Tensor] = field(default_factory=dict)
    read: int = 0
    mapped: int = 0
    unused: dict[str, int] = field(default_factory=dict)
    missing: list[str] = field(default_factory=list)
    left_over: list[str] = field(default_factory=list)

    def leave(self, reason: str) -> None:
        self.unused[reason] = self.unused.get(reason, 0) + 1


def open_megatron(
    source: Path,
    files: MegatronFiles,
    module: Mapping[str, Any],
    sizes: MegatronSizes,
    options: ImportOptions,
    n_tokens: int | None,
) -> ForeignCheckpoint:
    """Check all names and shapes of a checkpoint and return it as ours, to be read lazily.

    Raises:
        CheckpointError: tensors are missing, left over, of another shape or of no served type, or the sizes make no model.
    """
    accounts = _Accounts(source=source)
    _take_main(module, files.main, accounts)
    config, rows_dropped = _config(sizes, accounts, options, n_tokens)
    wanted = {name: tuple(parameter.shape) for name, parameter in _empty_model(config, source).named_parameters()}
    expert_dtype = _check_experts(config, files, accounts)
    used: set[str] = set()
    for name, shape in wanted.items():
        if ".experts." not in name and not _is_zeroed(name):
            foreign = foreign_name(name)
            used.add(foreign)
            _check_tensor(foreign, shape, accounts)
            if ".residual_mix." in name and options.residual_axis is ResidualAxis.BATCH:
                accounts.mapped -= 1
                accounts.leave(UNUSED_MIX)
    for foreign in sorted(set(accounts.tensors) - used):
        if foreign.endswith(f".mlp.mlp.{LAST_BIAS}") and config.is_residual:
            accounts.leave(UNUSED_RESIDUAL_BIAS)
        else:
            accounts.left_over.append(foreign)
    _refuse_unexplained(accounts)
    report = ImportReport(
        read=accounts.read,
        mapped=accounts.mapped,
        unused=accounts.unused,
        missing=0,
        left_over=0,
        vocabulary_rows_dropped=rows_dropped,
        notes={**sizes.notes, "residual_axis": options.residual_axis.value if config.is_residual else "no residual MLP"},
    )
    maker = _Maker(config, files, accounts.tensors, expert_dtype, options)
    paths = (files.main, *(files.expert(moe, e) for moe, count in enumerate(_moe_counts(config)) for e in range(count)))

    def tensors() -> Iterator[tuple[str, AnyTensor]]:
        if options.checks_sums:
            check_sums(files.main)
        for name in progress(wanted, "importing", total=len(wanted), unit="tensor"):
            yield name, maker.make(name, wanted[name])

    return ForeignCheckpoint(config=config, files=paths, report=report, tensors=tensors)


class _Maker:
    """Makes our parameters, one at a time, from the mapped tensors of the main file, and experts, one at a time, from theirs."""

    def __init__(
        self,
        config: GPTConfig,
        files: MegatronFiles,
        tensors: Mapping[str, Tensor],
        expert_dtype: torch.dtype,
        options: ImportOptions,
    ) -> None:
        self.config = config
        self.files = files
        self.tensors = tensors
        self.expert_dtype = expert_dtype
        self.checks_sums = options.checks_sums
        # With both weights of the mix 1 instead of summing to 1: even weights of 1/2, and parts that are twice as large.
        self.is_summed = config.is_residual and options.residual_axis is ResidualAxis.BATCH
        layers = [layer for layer, count in enumerate(config.expert_counts()) if count]
        self.moe_layer_of = {layer: number for number, layer in enumerate(layers)}

    def make(self, name: str, shape: tuple[int, ...]) -> AnyTensor:
        if ".experts." in name:
            return self._stacked(name, shape)
        if _is_zeroed(name):
            return torch.zeros(shape, dtype=self.expert_dtype)
        if self.is_summed and ".residual_mix." in name:
            return torch.zeros(shape)
        tensor = _served(self.tensors[foreign_name(name)])
        if ".attention.qkv." in name:
            return heads_last(tensor, self.config.n_heads)
        if name == "embedding.weight":
            return tensor[: shape[0]].clone()
        if ".router." in name:
            return tensor.float()
        if self.is_summed and name.endswith(".residual_mlp.down.weight"):
            return tensor * 2
        return tensor.clone()

    def _stacked(self, name: str, shape: tuple[int, ...]) -> PartedTensor:
        return PartedTensor(shape=shape, dtype=self.expert_dtype, parts=lambda: self._experts(name, shape))

    def _experts(self, name: str, shape: tuple[int, ...]) -> Iterator[Tensor]:
        """Make a parameter expert by expert, each from its own file."""
        layer, part = int(name.split(".")[1]), name.rpartition(".")[2]
        scale = 2 if self.is_summed and part == "down_weight" else 1
        for expert in range(shape[0]):
            made = torch.zeros(shape[1:], dtype=self.expert_dtype)
            if part in EXPERT_PARTS:  # else the last bias, which is never added
                path = self.files.expert(self.moe_layer_of[layer], expert)
                if self.checks_sums and part == "up_weight":
                    check_sums(path)
                for key, tensor in flattened(read_pickled(path), path):
                    found = expert_part(key)
                    if found is not None and found[2] == EXPERT_PARTS[part]:
                        made.copy_(_served(tensor) * scale if scale != 1 else _served(tensor))
            yield made


def _take_main(module: Mapping[str, Any], path: Path, accounts: _Accounts) -> None:
    """Take the main file's tensors under canonical names; names that have no place in the layout are left over."""
    for name, tensor in flattened(module, path):
        accounts.read += 1
        known = canonical(name)
        if known is None:
            accounts.left_over.append(name)
        elif known in accounts.tensors:
            raise CheckpointError(f"{path}: holds {known} twice, the second time as {name}")
        else:
            accounts.tensors[known] = tensor


def _config(sizes: MegatronSizes, accounts: _Accounts, options: ImportOptions, n_tokens: int | None) -> tuple[GPTConfig, int]:
    """Return our configuration of the model, and how many rows of its vocabulary are padding."""
    names = set(accounts.tensors)
    embedding = accounts.tensors.get(WORDS)
    if embedding is None or embedding.dim() != 2:
        raise CheckpointError(f"{accounts.source}: has no matrix {WORDS}; read {accounts.read} tensors")
    rows = embedding.shape[0]
    vocab_size = _vocabulary(rows, sizes.vocab_size, options.vocab_size, n_tokens, accounts.source)
    depth = network_depth(names)
    is_residual = any(".mlp.coefficient." in name for name in names)
    if is_residual and depth and options.residual_axis is ResidualAxis.BATCH:
        raise ConfigError(
            "import_checkpoint.residual_axis: batch cannot be imported exactly behind an expert-residual network; use two"
        )
    config = GPTConfig(
        n_layers=sizes.n_layers,
        hidden_size=sizes.hidden_size,
        n_heads=sizes.n_heads,
        context_length=sizes.context_length,
        vocab_size=vocab_size,
        ffn_hidden_size=None if sizes.ffn_hidden_size == 4 * sizes.hidden_size else sizes.ffn_hidden_size,
        experts=[0 if count == 1 else count for count in sizes.experts],
        is_residual=is_residual,
        init_std=sizes.init_std,
        norm_eps=sizes.norm_eps,
        gelu=sizes.gelu,
        expert_residual_layers=depth,
    )
    return config, rows - vocab_size


def _vocabulary(rows: int, stated: int | None, asked: int | None, n_tokens: int | None, source: Path) -> int:
    """Return the vocabulary's size; what rows there are beyond it must be Megatron's padding, unless it was asked for.

    Raises:
        CheckpointError: there are too few rows, or more than padding explains.
    """
    size = next((value for value in (asked, stated, n_tokens) if value is not None), rows)
    padded = {_PADDED_TO * n * -(-size // (_PADDED_TO * n)) for n in range(1, _MOST_SPLITS + 1)}
    if size > rows or (size < rows and asked is None and rows not in padded):
        raise CheckpointError(
            f"{source}: {WORDS} has {rows} rows, which is neither the vocabulary of {size} nor it padded to a multiple of "
            f"{_PADDED_TO}; set import_checkpoint.vocab_size to the rows to keep"
        )
    return size


def _empty_model(config: GPTConfig, source: Path) -> GPT:
    try:
        return GPT(config)
    except ConfigError as error:
        raise CheckpointError(f"{source}: its configuration makes no model ({error})") from error


def _check_tensor(name: str, shape: tuple[int, ...], accounts: _Accounts) -> None:
    """Count a tensor of the main file as mapped; raise CheckpointError for another shape or type, note it if it is missing."""
    tensor = accounts.tensors.get(name)
    if tensor is None:
        accounts.missing.append(name)
        return
    needs = (tensor.shape[0], *shape[1:]) if name == WORDS else shape
    _refuse_shape(accounts.source, name, tensor, needs)
    accounts.mapped += 1


def _check_experts(config: GPTConfig, files: MegatronFiles, accounts: _Accounts) -> torch.dtype:
    """Account for every expert file, and return the type that holds all experts' weights."""
    hidden, width = config.hidden_size, config.ffn_width
    shapes = {
        "dense_h_to_4h.weight": (width, hidden),
        "dense_h_to_4h.bias": (width,),
        "dense_4h_to_h.weight": (hidden, width),
        LAST_BIAS: (hidden,),
    }
    dtype: torch.dtype | None = None
    layers = [(layer, count) for layer, count in enumerate(config.expert_counts()) if count]
    pairs = [(moe, layer, expert) for moe, (layer, count) in enumerate(layers) for expert in range(count)]
    for moe_layer, layer, expert in progress(pairs, "checking experts", unit="file"):
        path = files.expert(moe_layer, expert)
        if not path.is_file():
            accounts.missing.append(path.name)
            continue
        found: set[str] = set()
        for key, tensor in flattened(read_pickled(path), path):
            accounts.read += 1
            part = expert_part(key)
            if part is None or part[2] in found:
                accounts.left_over.append(f"{path.name}: {key}")
                continue
            if part[1] != expert or part[0] not in (None, layer):
                raise CheckpointError(f"{path}: is expert {expert} of layer {layer} by its name, but holds {key}")
            _refuse_shape(path, key, tensor, shapes[part[2]])
            found.add(part[2])
            if part[2] == LAST_BIAS:
                accounts.leave(UNUSED_EXPERT_BIAS)
            else:
                accounts.mapped += 1
                dtype = tensor.dtype if dtype is None else torch.promote_types(dtype, tensor.dtype)
        accounts.missing += [f"{path.name}: {part}" for part in EXPERT_PARTS.values() if part not in found]
    known = {files.expert(moe, expert).name for moe, _, expert in pairs}
    accounts.left_over += sorted(file.name for file in files.experts.glob("*expert_*_states.pt") if file.name not in known)
    return torch.float32 if dtype in (None, torch.float64) else dtype


def _refuse_shape(path: Path, name: str, tensor: Tensor, needs: tuple[int, ...]) -> None:
    if tuple(tensor.shape) != needs:
        raise CheckpointError(f"{path}: tensor {name} has shape {tuple(tensor.shape)}, its configuration says {needs}")
    if tensor.dtype not in _WEIGHT_DTYPES:
        raise CheckpointError(f"{path}: tensor {name} is {tensor.dtype}, not a floating-point weight")


def _refuse_unexplained(accounts: _Accounts) -> None:
    """Raise CheckpointError if a tensor is missing or left over: one line that counts them and names the first."""
    problems = [
        f"{len(names)} {what} ({', '.join(names[:_SHOWN])}{', ...' if len(names) > _SHOWN else ''})"
        for what, names in (("missing", accounts.missing), ("left over", accounts.left_over))
        if names
    ]
    if problems:
        read = f"read {accounts.read} tensors"
        raise CheckpointError(f"{accounts.source}: {read}, {'; '.join(problems)}; is its configuration the right one?")


def _is_zeroed(name: str) -> bool:
    """Whether ours is a last bias that theirs stores and never adds, outside the stacked experts."""
    return name.endswith(".residual_mlp.down.bias")


def _moe_counts(config: GPTConfig) -> list[int]:
    return [count for count in config.expert_counts() if count]


def _served(tensor: Tensor) -> Tensor:
    return tensor.float() if tensor.dtype == torch.float64 else tensor
