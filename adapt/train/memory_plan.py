"""What a training step keeps in memory on each rank, by kind, from sizes only; and which setting fits where this one does not.

Legend: H hidden size, F width of MLPs, E experts, V vocabulary, k experts per token.

Source of the shares: Rajbhandari et al. 2020 (ZeRO, sections 3 and 5, arXiv:1910.02054). Activations are what autograd keeps of our
own blocks with a fused attention kernel. The framework's own memory comes on top.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from dataclasses import replace

import torch

from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.core.errors import ConfigError
from adapt.core.limits import MemoryLimit, memory_limits
from adapt.core.precision import Precision
from adapt.model.config import GPTConfig, Recompute
from adapt.model.counting import ParameterCounts, count_parameters
from adapt.model.expert_parallel import check_share
from adapt.model.gpt import GPT
from adapt.objective import LOGIT_ELEMENTS
from adapt.train.engine_config import EngineConfig, GradientCommunication
from adapt.train.paged_adamw import N_ROOMS, block_elements

_INDEX_BYTES = 48  # of a routed pair: token, expert, order
_MOST_RANKS = 1024


def plan_memory(
    counts: ParameterCounts, engine: EngineConfig, offload: OffloadConfig | None = None, n_trained: int | None = None
) -> dict[str, float]:
    """Return bytes per rank by kind, without activations; `n_trained` parameters are trained, or all.

    A rank holds the whole dense part (routers in fp32), and its share of the experts. Master weights (fp32) and the two moments are
    split over all ranks that hold the same weights, gradients (fp32) too from ZeRO stage 2 on: in the end over all ranks. A bucket
    of gradients, the copy of it that is summed over ranks, and an all-gather bucket come on top. Where the optimizer's state is
    paged, memory holds a few blocks of it and the gradients that autograd hands over, of one layer's two stacks of experts at most;
    `plan_scratch` says what files take.
    """
    width = _width(engine)
    experts = counts.by_kind["experts"]
    held = counts.total - experts + experts / engine.expert_parallel
    trained, held_trained = (counts.total, held) if n_trained is None else (n_trained, n_trained)
    bucket = min(engine.bucket_elements, held_trained)
    summed = 4 if engine.gradient_communication is GradientCommunication.FP32 else width
    state_share = engine.world_size if engine.zero_stage else 1
    offload = offload or OffloadConfig()
    is_paged = offload.optimizer is OptimizerIn.PAGED
    weights = held * width + counts.by_kind["router"] * (4 - width)
    gradients = 4 * (trained / engine.world_size if engine.zero_stage >= 2 else held_trained)
    return {
        "weights": 0.0 if offload.trained_weights is TrainedWeightsIn.MAPPED else weights,
        "gradients": min(gradients, 8 * counts.largest) if is_paged else gradients,
        "master": 0.0 if is_paged or not engine.zero_stage else trained * 4 / engine.world_size,
        "moments": _paged_bytes(trained, engine, offload) if is_paged else trained * 8 / state_share,
        "buckets": 0.0 if is_paged else bucket * (2 * summed + width),
    }


def plan_scratch(
    counts: ParameterCounts, engine: EngineConfig, offload: OffloadConfig, n_trained: int | None = None
) -> dict[str, float]:
    """Return the bytes of a rank's scratch files by kind, nothing where nothing is paged.

    In fp32 masters are the weights. A bucket of gradients and the sum over ranks, which the fp64 form of the largest one for its
    norm may exceed, are in files too; without ZeRO the sum is that of all gradients.
    """
    if offload.optimizer is not OptimizerIn.PAGED:
        return {}
    experts = counts.by_kind["experts"]
    held = counts.total - experts + experts / engine.expert_parallel
    trained, held_trained = (counts.total, held) if n_trained is None else (n_trained, n_trained)
    own = trained / engine.world_size if engine.zero_stage else trained
    bucket = 4 * min(engine.bucket_elements, held_trained)
    whole = 4 * held_trained if engine.zero_stage < 2 else 0.0
    found = {
        "moments": own * 2 * offload.moments.dtype.itemsize,
        "master": own * 4 if engine.precision.is_rounded else 0.0,
        "gradients": whole + (own * 4 if engine.zero_stage else 0.0),
        "buckets": bucket + max(bucket, 8 * counts.largest) if engine.zero_stage else whole,
    }
    is_mapped = offload.trained_weights is TrainedWeightsIn.MAPPED
    return found | ({"weights": held * _width(engine)} if is_mapped else {})


def _paged_bytes(n_trained: int, engine: EngineConfig, offload: OffloadConfig) -> float:
    """Return the bytes of a paged optimizer's blocks in memory: those that are read, updated and written."""
    n_elements = n_trained // (engine.world_size if engine.zero_stage else 1)
    width = 2 * offload.moments.dtype.itemsize + (4 if engine.precision.is_rounded else 0)
    extra = 24 if offload.moments is MomentFormat.BF16 else 0  # fp32 forms of the block, and its rounding
    return block_elements(n_elements) * (N_ROOMS * width + extra)


def plan_activations(config: GPTConfig, engine: EngineConfig, experts_per_token: int) -> dict[str, float]:
    """Return bytes per rank of a micro-batch of full rows: what forward keeps, and what backward adds at its peak."""
    width, tokens = _width(engine), engine.micro_batch * config.context_length
    attention = 6 * config.hidden_size * width + 4 * config.n_heads
    kept, largest = 0.0, 0.0
    for n_experts in config.expert_counts():
        forward = _feed_forward_bytes(config, engine, n_experts, experts_per_token)
        report = 12 * n_experts + (_INDEX_BYTES * experts_per_token if n_experts else 0)
        block_input = config.hidden_size * width
        if engine.activation_checkpointing is Recompute.FULL:
            kept, largest = kept + block_input + report, max(largest, attention + forward)
        elif engine.activation_checkpointing is Recompute.SELECTIVE:
            kept, largest = kept + attention + block_input + report, max(largest, forward)
        else:
            kept += attention + forward + report
    logits = min(tokens, max(LOGIT_ELEMENTS // config.vocab_size, 1)) * config.vocab_size * width
    kept = tokens * (kept + 2 * config.hidden_size * width)
    is_chunked = tokens * config.vocab_size > LOGIT_ELEMENTS
    return {
        "activations": kept if is_chunked else kept + logits,
        "backward": max(tokens * largest, 2 * logits if is_chunked else logits),
    }


def plan_total(config: GPTConfig, engine: EngineConfig, offload: OffloadConfig | None = None, tokens: int | None = None) -> float:
    """Return the bytes that a rank needs, activations for rows of so many tokens (absent: the context) included."""
    counts, k = count_parameters(config), GPT(config).router_traits.experts_per_token
    rows = config if tokens is None else replace(config, context_length=min(tokens, config.context_length))
    return sum({**plan_memory(counts, engine, offload), **plan_activations(rows, engine, k)}.values())


def check_memory(config: GPTConfig, engine: EngineConfig, offload: OffloadConfig | None = None) -> None:
    """Compare a plan with `engine.memory_gb`, where it is given.

    Raises:
        ConfigError: it does not fit, with the nearest setting that does.
    """
    if engine.memory_gb is not None:
        room = engine.memory_gb * 1e9
        _check_fits(config, engine, offload, "engine.memory_gb", f"there are {engine.memory_gb:g}", lambda other: room)


def check_machine(config: GPTConfig, engine: EngineConfig, offload: OffloadConfig | None = None) -> None:
    """Compare a plan with what the system lets this command's ranks take, where they compute on its CPUs.

    The framework's own memory comes on top of a plan, so a plan that fits may still run out.

    Raises:
        ConfigError: it does not fit under `ulimit -v` or a control group's limit.
    """
    if torch.cuda.is_available() or engine.hostfile is not None:
        return
    for limit in memory_limits():

        def room(other: EngineConfig, limit: MemoryLimit = limit) -> float:
            return limit.n_bytes / (other.world_size if limit.is_shared else 1)

        allowed = f"{limit.what} allows {room(engine) / 1e9:.2f} GB for each of {engine.world_size} ranks"
        _check_fits(config, engine, offload, "engine", allowed, room)


def _check_fits(
    config: GPTConfig,
    engine: EngineConfig,
    offload: OffloadConfig | None,
    key: str,
    allowed: str,
    room: Callable[[EngineConfig], float],
) -> None:
    """Raise ConfigError where a rank needs more than its room, with the nearest setting that fits."""

    def total(engine: EngineConfig) -> float:
        return plan_total(config, engine, offload)

    needed = total(engine)
    if needed <= room(engine):
        return
    what = f"{key}: a rank needs {needed / 1e9:.1f} GB, and {allowed}"
    for other in _nearest_first(config, engine):
        if total(other) <= room(other):
            raise ConfigError(f"{what}; the nearest setting that fits is {_differences(engine, other)}")
    raise ConfigError(f"{what}; no setting fits on up to {_MOST_RANKS} ranks: take a smaller model")


def _feed_forward_bytes(config: GPTConfig, engine: EngineConfig, n_experts: int, k: int) -> float:
    """Return what a token's feed-forward part keeps: norm, then an MLP, or experts and what stands beside them."""
    hidden, mlp, width = config.hidden_size, 2 * config.ffn_width, _width(engine)
    if not n_experts:
        return (2 * hidden + mlp) * width
    elements = 2 * hidden + k * _pair_elements(config, engine)
    if config.expert_residual_layers:
        elements += (6 * config.expert_residual_layers + 1) * hidden
    if config.is_residual:
        elements += 3 * hidden + mlp
    return elements * width


def _pair_elements(config: GPTConfig, engine: EngineConfig) -> int:
    """Return what one of a token's experts keeps. In bf16 that is planned as on a GPU, where one kernel takes all experts.

    One by one they keep the values before GELU; the kernel keeps those behind it too. Where a kernel or other ranks take the rows,
    rows, outputs and weighted outputs are kept beside them.
    """
    is_by_kernel = engine.precision is Precision.BF16
    rows = 3 * config.hidden_size if is_by_kernel or engine.expert_parallel > 1 else 0
    return rows + config.ffn_width * (2 if is_by_kernel else 1)


def _nearest_first(config: GPTConfig, engine: EngineConfig) -> Iterator[EngineConfig]:
    """Yield other settings that compute the same, those with the fewest changes first, on more ranks last."""
    counts = GPT(config).expert_counts
    n_ranks = engine.world_size
    while n_ranks <= _MOST_RANKS:
        batches = [engine.micro_batch >> shift for shift in range(engine.micro_batch.bit_length())]
        recomputes = list(Recompute)[list(Recompute).index(engine.activation_checkpointing) :]
        sizes = [n for n in range(engine.expert_parallel, n_ranks + 1) if n_ranks % n == 0 and _can_share(counts, n)]
        found = [
            replace(engine, world_size=n_ranks, micro_batch=m, activation_checkpointing=r, expert_parallel=n, zero_stage=z)
            for n, r, z, m in itertools.product(sizes, recomputes, sorted({engine.zero_stage, 2}), batches)
            if z or (n == 1 and n_ranks == engine.world_size)  # stage 0 shares nothing
        ]
        yield from sorted(found, key=lambda other: len(_changed(engine, other)))
        n_ranks *= 2


def _can_share(counts: tuple[int, ...], n_ranks: int) -> bool:
    try:
        check_share(counts, n_ranks)
    except ConfigError:
        return False
    return True


def _changed(engine: EngineConfig, other: EngineConfig) -> dict[str, object]:
    names = ("world_size", "expert_parallel", "zero_stage", "activation_checkpointing", "micro_batch")
    return {name: getattr(other, name) for name in names if getattr(other, name) != getattr(engine, name)}


def _differences(engine: EngineConfig, other: EngineConfig) -> str:
    changed = _changed(engine, other).items()
    return " ".join(f"engine.{name}={value.value if isinstance(value, Recompute) else value}" for name, value in changed)


def _width(engine: EngineConfig) -> int:
    return engine.precision.dtype.itemsize
