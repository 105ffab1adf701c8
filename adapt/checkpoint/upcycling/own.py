"""A dense GPT of this project to a sparse one that gives the same answers: tensors by name, one after another.

Legend: E experts, F width, H hidden size, N tokens.

Every expert is a copy of the layer's MLP f, so a layer's output is f(x) times the sum of a token's weights. Three cases:

- A router whose weights sum to 1 for every token (top2, sigmoid_bias with several experts, maps without a gate) may start anywhere.
- A router that scales one expert by its gate probability (top1, large_margin, s_base, expert_choice) starts with a gate so small
  that its probabilities are even to fp32 rounding, c each, while its arg max still tells tokens apart; experts write f / c.
- Any other router is refused.

Which case it is, the router itself is asked. Residual layers mix c0 * experts(x) + c1 * mlp(x) with c0 + c1 = 1: experts and the
dense MLP next to them are all copies. An expert-residual network adds nothing while it is untrained.
Source: Komatsuzaki et al. 2022 (Sparse Upcycling), arXiv:2212.05055, which copies MLPs and normalises weights to sum to 1.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path

import torch
from torch import Tensor

from adapt.checkpoint.store import Store, open_store
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.checkpoint.upcycling.copies import copy_of, refuse_rounding, scaled
from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_config, save_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.model.buffers import saved_buffers
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT, initial_part
from adapt.model.inputs import RouterInputs
from adapt.model.routers.contract import build_router
from adapt.model.routers.settings import Top2Config

_EVEN_LOGIT = 1e-6  # of a gate that starts even: some sixteen steps of fp32 next to 1
_ASKED_TOKENS = 64
_EXPERTS = {"up_weight": "up.weight", "up_bias": "up.bias", "down_weight": "down.weight", "down_bias": "down.bias"}
_DENSE = "residual_mlp."


@dataclass(frozen=True, kw_only=True)
class GateStart:
    """How a layer starts: whether its gate's probabilities are even, and the factor on what experts write."""

    is_even: bool
    output_factor: float


def sparse_config(source: Path, options: UpcycleOptions) -> GPTConfig:
    """Return the sparse model's settings.

    Raises:
        ConfigError: the options make no model, or are for another kind.
        CheckpointError: the source is sparse already.
    """
    options.refuse_foreign()
    dense = load_config(source)
    if any(dense.expert_counts()):
        raise CheckpointError(f"{source}: is sparse already ({dense.experts} experts); upcycling takes a dense model")
    found = replace(
        dense,
        experts=list(options.experts),
        router=options.router or Top2Config(),
        is_residual=options.is_residual,
        expert_residual_layers=options.expert_residual_layers,
        capacity_factor=None,
    )
    try:
        found.validate()
        GPT(found)
    except ConfigError as error:
        raise ConfigError(f"the sparse model of {source}: {error}") from error
    if not any(found.expert_counts()):
        raise ConfigError(f"experts: {options.experts} makes no layer sparse; give a count of at least 2")
    return found


def gate_start(config: GPTConfig, n_experts: int) -> GateStart:
    """Ask the router how a token's weights add up, with a gate of any kind and with an even one.

    Raises:
        ConfigError: they add up to something else for every token, even where the gate is even.
    """
    if bool(_weight_sums(config, n_experts, 1.0).sub(1).abs().max() < 1e-5):
        return GateStart(is_even=False, output_factor=1.0)
    even_N = _weight_sums(config, n_experts, 0.0)
    if bool(even_N.min() > 0) and bool(even_N.max() - even_N.min() < 1e-6):
        inverse = 1 / float(even_N[0])
        whole = round(inverse)
        return GateStart(is_even=True, output_factor=float(whole) if abs(inverse - whole) < 1e-5 else inverse)
    raise ConfigError(
        f"router: with '{config.router.name}' a token's weights add up to other sums for other tokens, so copies would not answer "
        "as the dense model does; take another router"
    )


def write_sparse(directory: Path, source: Path, options: UpcycleOptions) -> GPTConfig:
    """Write the sparse model of a dense checkpoint, with its tokenizer, and return its settings.

    Raises:
        ConfigError: the options make no model, or weights would be rounded.
        CheckpointError: the source is sparse or damaged, has no tokenizer, or another process is writing there.
    """
    config = sparse_config(source, options)
    tokenizer = load_tokenizer(source, config)
    save_model(directory, config, sparse_tensors(config, open_store(source), options), tokenizer)
    return config


def sparse_tensors(config: GPTConfig, store: Store, options: UpcycleOptions) -> Iterator[tuple[str, AnyTensor]]:
    """Yield the sparse model's tensors, stacked experts one by one. Raises ConfigError where weights would be rounded."""
    model = GPT(config)
    starts = {count: gate_start(config, count) for count in {*config.expert_counts()} if count}
    for count, start in starts.items():
        for name in (name for name in store.tensors if name.endswith("down.weight")):
            refuse_rounding(start.output_factor, store.place(name).dtype, f"{count} experts, router '{config.router.name}'")
    for name, parameter in model.named_parameters():
        yield name, _parameter(config, store, options, starts, name, tuple(parameter.shape))
    for name, buffer in saved_buffers(model):
        yield name, torch.zeros(buffer.shape, dtype=buffer.dtype)


def _parameter(
    config: GPTConfig, store: Store, options: UpcycleOptions, starts: dict[int, GateStart], name: str, shape: tuple[int, ...]
) -> AnyTensor:
    if name in store.tensors:
        return store.read(name)
    layer, _, part = name.partition(".mlp.")
    if part.startswith(_DENSE):
        return store.read(f"{layer}.mlp.{part.removeprefix(_DENSE)}")
    start = starts[config.expert_counts()[int(layer.rpartition(".")[2])]]
    if part.startswith("experts."):
        return _copies(store, options, start, f"{layer}.mlp.{_EXPERTS[part.removeprefix('experts.')]}", shape[0])
    new = initial_part(config, name, 0, shape, options.seed)
    if part == "router.weight":
        return _even_gate(new) if start.is_even else new
    return new if part.startswith("router.") else new.to(store.place(f"{layer}.mlp.up.weight").dtype)


def _copies(store: Store, options: UpcycleOptions, start: GateStart, name: str, n_experts: int) -> PartedTensor:
    place = store.place(name)

    def parts() -> Iterator[Tensor]:
        source = store.read(name)
        if ".down." in name:
            source = scaled(source, start.output_factor, name)
        yield from (copy_of(source, name, expert, options.noise, options.seed) for expert in range(n_experts))

    return PartedTensor(shape=(n_experts, *place.shape), dtype=place.dtype, parts=partial(parts))


def _even_gate(weight_EH: Tensor) -> Tensor:
    """Return a gate whose logits are of the size of `_EVEN_LOGIT` for normed tokens."""
    spread = float(weight_EH.std()) * weight_EH.shape[1] ** 0.5
    return weight_EH * (_EVEN_LOGIT / spread) if spread else weight_EH


@torch.no_grad()
def _weight_sums(config: GPTConfig, n_experts: int, std: float) -> Tensor:
    """Return the sum of weights of each of some random tokens, where the gate's weights have that standard deviation."""
    generator = torch.Generator().manual_seed(0)
    router = build_router(config.router, config.hidden_size, n_experts).eval()
    for parameter in router.parameters():
        parameter.normal_(0.0, std, generator=generator)
    for buffer in router.buffers():
        buffer.zero_()
    number_N = torch.arange(_ASKED_TOKENS)
    inputs = RouterInputs(
        token_ids_N=number_N, sequence_ids_N=torch.zeros_like(number_N), positions_N=number_N, domain_ids_N=number_N
    )
    x_NH = torch.empty(_ASKED_TOKENS, config.hidden_size).normal_(generator=generator)
    routing = router.route(x_NH, inputs)
    return torch.zeros(_ASKED_TOKENS).index_add_(0, routing.token_K, routing.weight_K.float())
