"""A dense Hugging Face model to its family's sparse sibling, with the same answers: tensors streamed from files to files.

Legend: E experts, H hidden size, k experts per token, G parts that a copy is cut into.

The gates of these families weight a token's experts so that the weights sum to 1 (`norm_topk_prob`), so copies of the feed-forward
part f give f(x) whatever the gate says, and it starts as any matrix does. Where the family has a shared expert, that is f with a
gate of 1/2, and experts write f / 2.

With `split` a copy's G parts are experts of their own, each with 1 / G of the columns, and the gate has one row for all of them:
equal logits choose all parts of a copy or none, and parts write G times as much. Source: He et al. 2024 (Upcycling Large Language
Models into Mixture of Experts), virtual groups, arXiv:2410.07524.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.checkpoint.hf_directory import CONFIG_FILE, CONFIG_FILES
from adapt.checkpoint.sibling_families import PROJECTIONS, SparseFamily, sibling_settings, sparse_family_of
from adapt.checkpoint.store import Store, open_store
from adapt.checkpoint.store_writer import write_tensors
from adapt.checkpoint.upcycling.copies import copy_of, refuse_rounding, scaled
from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.weights import record_sums
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_object, write_json
from adapt.core.runtime import seed_for
from adapt.text.hf_tokenizer import TOKENIZER_FILES

_EXPERTS_PER_TOKEN = 2
_FEED_FORWARD = re.compile(r"model\.layers\.(\d+)\.mlp\.(gate_proj|up_proj|down_proj)\.weight")


@dataclass(frozen=True, kw_only=True)
class Plan:
    """What becomes of a dense model: its layers' experts in number and width, which layers are sparse, and what is written."""

    family: SparseFamily
    n_experts: int
    experts_per_token: int
    split: int
    layers: frozenset[int]
    output_factor: float
    gate_std: float
    settings: Mapping[str, Any]


def plan_of(source: Path, store: Store, options: UpcycleOptions) -> Plan:
    """Return what a dense model's sparse sibling will be.

    Raises:
        ConfigError: the options make no model, are for another kind, or would round weights.
        CheckpointError: the family has no sibling, or the model is sparse.
    """
    options.refuse_own()
    family, raw = sparse_family_of(source), read_object(source / CONFIG_FILE)
    n_layers, width = int(raw["num_hidden_layers"]), int(raw["intermediate_size"])
    [n_experts], split = options.experts, options.split
    k = _EXPERTS_PER_TOKEN * split if options.experts_per_token is None else options.experts_per_token
    if n_experts < 2 or not 2 <= k <= n_experts:
        raise ConfigError(
            f"experts_per_token: {k} of {n_experts} experts; give from 2 to all of them. One expert of a token would have weight 1 "
            "whatever its gate says, and the gate would learn nothing from text"
        )
    if width % split or n_experts % split or k % split:
        raise ConfigError(f"split: {split} does not divide the width {width}, {n_experts} experts and {k} of a token alike")
    layers = frozenset(range(n_layers) if options.layers is None else options.layers)
    if not layers or not layers <= frozenset(range(n_layers)):
        raise ConfigError(f"layers: {sorted(layers)} are not some of the {n_layers} layers, which are numbered from 0")
    if len(layers) < n_layers and not family.is_partly_dense:
        raise ConfigError(f"layers: in {family.name} every layer is sparse; leave it out")
    dtype = _dtype_of(source, store)
    factor = split * (0.5 if family.has_shared else 1.0)
    refuse_rounding(factor, dtype, f"split={split}")
    changes = _changes(family, n_experts, k, width, split, sorted(set(range(n_layers)) - layers))
    settings = sibling_settings(source, family.name, str(dtype).removeprefix("torch."), changes)
    return Plan(
        family=family, n_experts=n_experts, experts_per_token=k, split=split, layers=layers, output_factor=factor,
        gate_std=float(settings["initializer_range"]), settings=settings,
    )  # fmt: skip


def write_sparse_sibling(directory: Path, source: Path, options: UpcycleOptions) -> Plan:
    """Write the sparse sibling of a dense Hugging Face model, with its tokenizer, and return what it is.

    Raises:
        ConfigError: as for `plan_of`.
        CheckpointError: as for `plan_of`; a shard is damaged, or another process is writing there.
    """
    store = open_store(source)
    plan = plan_of(source, store, options)
    write_tensors(directory, _tensors(plan, store, options), has_pages=False)
    copy_other_files(directory, source)
    write_json(directory / CONFIG_FILE, plan.settings)
    record_sums(directory)
    return plan


def copy_other_files(directory: Path, source: Path) -> None:
    """Copy the tokenizer and the settings of generation of a Hugging Face model."""
    for name in {*TOKENIZER_FILES, *CONFIG_FILES} - {CONFIG_FILE}:
        if (source / name).is_file():
            (directory / name).write_bytes((source / name).read_bytes())


def _changes(family: SparseFamily, n_experts: int, k: int, width: int, split: int, dense_layers: list[int]) -> dict[str, Any]:
    """Return the settings that the sparse family has beyond its sibling's."""
    shared = {"num_experts_per_tok": k, "output_router_logits": False}
    if family.name == "mixtral":
        return {**shared, "num_local_experts": n_experts, "intermediate_size": width // split}
    more: dict[str, Any] = {"qkv_bias": True, "shared_expert_intermediate_size": width} if family.has_shared else {}
    more |= {"num_experts": n_experts, "moe_intermediate_size": width // split, "intermediate_size": width}
    return {**shared, **more, "norm_topk_prob": True, "decoder_sparse_step": 1, "mlp_only_layers": dense_layers}


def _tensors(plan: Plan, store: Store, options: UpcycleOptions) -> Iterator[tuple[str, Tensor]]:
    found = 0
    for name, tensor in store:
        match = _FEED_FORWARD.fullmatch(name)
        if match is None or int(match[1]) not in plan.layers:
            yield name, tensor
            continue
        found += 1
        yield from _of_feed_forward(plan, int(match[1]), match[2], tensor, options)
    if found != len(PROJECTIONS) * len(plan.layers):
        raise CheckpointError(f"{store.directory}: has {found} of the {len(PROJECTIONS) * len(plan.layers)} matrices of its layers")


def _of_feed_forward(
    plan: Plan, layer: int, projection: str, tensor: Tensor, options: UpcycleOptions
) -> Iterator[tuple[str, Tensor]]:
    """Yield what one matrix of a layer becomes; the layer's gate comes with the first of them."""
    family, is_down = plan.family, projection == "down_proj"
    if projection == PROJECTIONS[0]:
        yield family.gate(layer), _gate(plan, layer, tensor, options)
        if family.has_shared:
            yield family.shared_gate(layer), torch.zeros(1, tensor.shape[1], dtype=tensor.dtype)
    if family.has_shared:
        yield family.shared(layer, projection), tensor
    written = scaled(tensor, plan.output_factor, family.expert(layer, 0, projection)) if is_down else tensor
    parts = written.chunk(plan.split, dim=1 if is_down else 0)
    for expert in range(plan.n_experts):
        name = family.expert(layer, expert, projection)
        yield name, copy_of(parts[expert % plan.split], name, expert, options.noise, options.seed).contiguous()


def _gate(plan: Plan, layer: int, like: Tensor, options: UpcycleOptions) -> Tensor:
    """Return a layer's gate: one random row for all parts of a copy."""
    generator = torch.Generator().manual_seed(seed_for(options.seed, "gate", layer))
    rows = torch.empty(plan.n_experts // plan.split, like.shape[1]).normal_(0.0, plan.gate_std, generator=generator)
    return rows.repeat_interleave(plan.split, dim=0).to(like.dtype)


def _dtype_of(source: Path, store: Store) -> torch.dtype:
    """Return the format of the feed-forward parts. Raises CheckpointError where there is none, or several."""
    found = {place.dtype for name, place in store.tensors.items() if _FEED_FORWARD.fullmatch(name)}
    if len(found) != 1:
        raise CheckpointError(f"{source}: its feed-forward parts are in {len(found)} number formats; one is expected")
    return found.pop()
