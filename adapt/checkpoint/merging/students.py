"""Dense students of sparse checkpoints, before they are trained: tensors by name, a layer's experts in memory at a time.

A layer's experts become one MLP (`mlps`, `gathering`), scaled by the weight that the router gave them on average. A dense MLP next
to the experts (residual layers; a shared expert) is put next to it, all of its neurons, with its own mean weight. All layers of a
student have one width, the widest layer's: in others new neurons write nothing yet. An expert-residual network has no place in a
dense layer and is left out; distillation has to learn its effect.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Sequence
from dataclasses import replace
from functools import partial
from pathlib import Path

from torch import Tensor

from adapt.checkpoint.hf_directory import CONFIG_FILE, is_hf_directory
from adapt.checkpoint.merging.gathering import leading_directions, most_important
from adapt.checkpoint.merging.mlps import MLP, merged, side_by_side, widened
from adapt.checkpoint.merging.settings import MergeConfig, MergeMethod, Weighting
from adapt.checkpoint.sibling_families import PROJECTIONS, SPARSE, SparseFamily, dense_name_of, sibling_settings
from adapt.checkpoint.store import Store, open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.upcycling.foreign import copy_other_files
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_config, record_sums, save_model
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object, write_json
from adapt.model.config import GPTConfig
from adapt.model.expert_usage import LayerUsage
from adapt.model.routers.settings import Top1Config

_EXPERT = re.compile(r"model\.layers\.(\d+)\.\w+\.experts\.(\d+)\.\w+\.weight")


def check_source(source: Path) -> None:
    """Raise CheckpointError for a checkpoint of which no dense student can be made."""
    if is_hf_directory(source):
        dense_name_of(source)
    elif not any(load_config(source).expert_counts()):
        raise CheckpointError(f"{source}: is dense already; a dense student is made of a sparse model")


def write_student(directory: Path, source: Path, usage: Sequence[LayerUsage], config: MergeConfig, seed: int) -> None:
    """Write the dense student of a sparse checkpoint, with its tokenizer; `usage` is that of each sparse layer, in order.

    Raises:
        CheckpointError: the source is dense, has no dense sibling, or is damaged.
        ConfigError: there are more groups than experts.
    """
    check_source(source)
    (_write_foreign if is_hf_directory(source) else _write_own)(directory, source, usage, config, seed)


def merged_layer(experts: Sequence[MLP], beside: MLP | None, usage: LayerUsage, config: MergeConfig) -> MLP:
    """Return one MLP for a layer's experts and the dense one next to them."""
    weights = usage.weight_E.tolist()
    if config.method is MergeMethod.SVD:
        found = leading_directions(experts, weights, config.groups, is_aligned=config.is_aligned)
    elif config.method is MergeMethod.TOP_NEURONS:
        found = most_important(experts, weights, config.groups)
    else:
        is_even = config.weighting is Weighting.EVEN
        found = merged(experts, weights, config.groups, is_even=is_even, is_aligned=config.is_aligned)
    if beside is None:
        return found
    assert usage.dense_weight is not None, "the dense part was watched with the experts"
    return side_by_side([found, beside.times(usage.dense_weight)])


def student_config(config: GPTConfig, groups: int) -> GPTConfig:
    """Return the settings of the dense student of a model of this project."""
    width = config.ffn_width * (groups + config.is_residual)
    return replace(
        config,
        experts=[0],
        router=Top1Config(),
        is_residual=False,
        expert_residual_layers=0,
        capacity_factor=None,
        even_routing=False,
        ffn_hidden_size=width,
    )


def _write_own(directory: Path, source: Path, usage: Sequence[LayerUsage], config: MergeConfig, seed: int) -> None:
    sparse, store = load_config(source), open_store(source)
    dense = student_config(sparse, config.groups)
    usages = iter(usage)

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for layer, n_experts in enumerate(sparse.expert_counts()):
            place = f"blocks.{layer}.mlp."
            found = _own_sparse(store, place, n_experts, next(usages), config) if n_experts else _own_dense(store, place)
            found = widened(found, dense.ffn_width, seed, place)
            assert found.down_bias is not None, "models of this project have biases"
            parts = {
                "up.weight": found.ins[0],
                "up.bias": found.in_biases[0],
                "down.weight": found.down,
                "down.bias": found.down_bias,
            }
            yield from ((f"{place}{name}", tensor.contiguous()) for name, tensor in parts.items())
        yield from ((name, store.read(name).float()) for name in store.tensors if ".mlp." not in name)

    save_model(directory, dense, tensors(), load_tokenizer(source, sparse))


def _own_dense(store: Store, place: str) -> MLP:
    up, up_bias, down, down_bias = (
        store.read(f"{place}{name}").float() for name in ("up.weight", "up.bias", "down.weight", "down.bias")
    )
    return MLP(ins=(up,), in_biases=(up_bias,), down=down, down_bias=down_bias)


def _own_sparse(store: Store, place: str, n_experts: int, usage: LayerUsage, config: MergeConfig) -> MLP:
    def expert(number: int) -> MLP:
        up, up_bias, down, down_bias = (
            store.read_rows(f"{place}experts.{name}", [number])[0].float()
            for name in ("up_weight", "up_bias", "down_weight", "down_bias")
        )
        return MLP(ins=(up,), in_biases=(up_bias,), down=down, down_bias=down_bias)

    is_residual = f"{place}residual_mlp.up.weight" in store.tensors
    beside = _own_dense(store, f"{place}residual_mlp.") if is_residual else None
    return merged_layer([expert(number) for number in range(n_experts)], beside, usage, config)


def _write_foreign(directory: Path, source: Path, usage: Sequence[LayerUsage], config: MergeConfig, seed: int) -> None:
    name, content, store = dense_name_of(source), read_object(source / CONFIG_FILE), open_store(source)
    family = SPARSE[str(content["model_type"])]
    experts = _experts_by_layer(store)
    sample = next((store.place(one) for one in store.tensors if _EXPERT.fullmatch(one)), None)
    if sample is None or len(experts) != len(usage):
        raise CheckpointError(f"{source}: has experts of {len(experts)} layers by name, its model has {len(usage)} sparse ones")
    widths = [
        _width(family, store, layer, experts.get(layer, 0), config.groups) for layer in range(int(content["num_hidden_layers"]))
    ]
    usages = dict(zip(sorted(experts), usage, strict=True))

    def tensors() -> Iterator[tuple[str, Tensor]]:
        for layer in range(len(widths)):
            found = _foreign_layer(family, store, layer, experts.get(layer, 0), usages.get(layer), config)
            found = widened(found, max(widths), seed, str(layer))
            for projection, matrix in zip(PROJECTIONS, (*found.ins, found.down), strict=True):
                yield _dense_name(layer, projection), matrix.to(sample.dtype).contiguous()
        yield from ((one, store.read(one)) for one in store.tensors if not re.search(rf"\.(mlp|{family.block})\.", one))

    write_tensors(directory, tensors(), has_pages=False)
    copy_other_files(directory, source)
    changes = {"intermediate_size": max(widths)}
    write_json(directory / CONFIG_FILE, sibling_settings(source, name, str(sample.dtype).removeprefix("torch."), changes))
    record_sums(directory)


def _experts_by_layer(store: Store) -> dict[int, int]:
    """Count the experts of each sparse layer by the names of their tensors."""
    found: dict[int, int] = {}
    for name in store.tensors:
        if match := _EXPERT.fullmatch(name):
            found[int(match[1])] = max(found.get(int(match[1]), 0), int(match[2]) + 1)
    return found


def _width(family: SparseFamily, store: Store, layer: int, n_experts: int, groups: int) -> int:
    if not n_experts:
        return store.place(_dense_name(layer, PROJECTIONS[0])).shape[0]
    beside = store.place(family.shared(layer, PROJECTIONS[0])).shape[0] if family.has_shared else 0
    return groups * store.place(family.expert(layer, 0, PROJECTIONS[0])).shape[0] + beside


def _foreign_layer(
    family: SparseFamily, store: Store, layer: int, n_experts: int, usage: LayerUsage | None, config: MergeConfig
) -> MLP:
    if usage is None:
        return _read(store, [_dense_name(layer, projection) for projection in PROJECTIONS])
    read = partial(_read, store)
    experts = [read([family.expert(layer, number, projection) for projection in PROJECTIONS]) for number in range(n_experts)]
    beside = read([family.shared(layer, projection) for projection in PROJECTIONS]) if family.has_shared else None
    return merged_layer(experts, beside, usage, config)


def _read(store: Store, names: Sequence[str]) -> MLP:
    gate, up, down = (store.read(name).float() for name in names)
    return MLP(ins=(gate, up), down=down)


def _dense_name(layer: int, projection: str) -> str:
    return f"model.layers.{layer}.mlp.{projection}.weight"
