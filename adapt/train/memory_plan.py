"""What training keeps in memory on each rank, by kind, from sizes only.

Legend: H hidden size, F width of MLPs, E experts, V vocabulary, k experts per token.

Source of the shares: Rajbhandari et al. 2020 (ZeRO, sections 3 and 5, arXiv:1910.02054). Activations are what autograd keeps of our
own blocks with a fused attention kernel. `step_moments` says which kinds are there at the same time.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

from adapt.checkpoint.offload import MomentFormat, OffloadConfig, OptimizerIn, TrainedWeightsIn
from adapt.core.limits import GIVEN_BACK, GIVEN_BACK_ONCE
from adapt.core.precision import Precision
from adapt.model.attention import SHORT
from adapt.model.config import GPTConfig, Recompute
from adapt.model.counting import ParameterCounts, count_parameters
from adapt.model.expert_parallel import is_stack
from adapt.model.gpt import GPT
from adapt.objective import LOGIT_ELEMENTS
from adapt.train.engine_config import EngineConfig
from adapt.train.paged_adamw import N_ROOMS, block_elements
from adapt.train.step_moments import InFiles, MemoryPlan, Passing, TrainedTensors, combined, summed_bytes
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only

Part = tuple[float, float]  # bytes of a token that are kept, and those of each of the tensors that they are in
_INDEX_BYTES = 48  # of a routed pair: token, expert, order


def plan_memory(
    counts: ParameterCounts, engine: EngineConfig, offload: OffloadConfig | None = None, n_trained: int | None = None
) -> dict[str, float]:
    """Return bytes per rank by kind, without activations; `n_trained` parameters are trained, or all.

    A rank holds the whole dense part (routers in fp32), and its share of the experts. Master weights (fp32) and the two moments are
    split over all ranks that hold the same weights, gradients (fp32) too from ZeRO stage 2 on: in the end over all ranks. A bucket
    of gradients and the copy of it that is summed over ranks come on top. Where the optimizer's state is paged, memory holds a few
    blocks of it and the gradients that autograd hands over, of one layer's two stacks of experts at most; `plan_scratch` says
    what files take.
    """
    width = _width(engine)
    experts = counts.by_kind["experts"]
    held = counts.total - experts + experts / engine.expert_parallel
    trained, held_trained = (counts.total, held) if n_trained is None else (n_trained, n_trained)
    bucket = min(engine.bucket_elements, held_trained)
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
        "buckets": bucket * 2 * summed_bytes(engine) if engine.zero_stage and not is_paged else 0.0,
    }


def files_of(memory: Mapping[str, float], offload: OffloadConfig | None) -> InFiles | None:
    """Return what of a plan by kind is in files; None where nothing is."""
    if offload is None or offload.optimizer is not OptimizerIn.PAGED:
        return None
    return InFiles(handed=memory["gradients"], weights=offload.trained_weights is TrainedWeightsIn.MAPPED)


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


def plan_passing(config: GPTConfig, engine: EngineConfig, experts_per_token: int, on_cpu: bool, least: int = GIVEN_BACK) -> Passing:
    """Return what a micro-batch of full rows takes on its way through the model, on a CPU or on a GPU.

    Blocks of at least so many bytes are given back by a CPU's allocator.
    """
    width, tokens = _width(engine), engine.micro_batch * config.context_length
    attention = _attention_parts(config, engine, on_cpu)
    kept: list[tuple[float, float]] = [(2 * config.hidden_size * width, config.hidden_size * width)]  # of a token: bytes, its block
    layer = block = 0.0
    for n_experts in config.expert_counts():
        forward = _feed_forward_parts(config, engine, n_experts, experts_per_token, on_cpu)
        report = 12 * n_experts + (_INDEX_BYTES * experts_per_token if n_experts else 0)
        block_input = (config.hidden_size * width, config.hidden_size * width)
        kept.append((report, 0.0))
        again = 0.0  # computed again in backward
        if engine.activation_checkpointing is Recompute.FULL:
            kept.append(block_input)
            again = sum(n_bytes for n_bytes, _ in [*attention, *forward])
        elif engine.activation_checkpointing is Recompute.SELECTIVE:
            kept += [*attention, block_input]
            again = sum(n_bytes for n_bytes, _ in forward)
        else:
            kept += [*attention, *forward]
        stacks = max(n_experts // engine.expert_parallel, 1) * config.ffn_width * config.hidden_size * width
        inner = 2 * config.ffn_width * max(experts_per_token if n_experts else 1, 1) * width  # gradients after and before GELU
        layer = max(layer, tokens * (again + inner) + stacks * (2 if n_experts else 1))
        block = max(block, stacks)
    return Passing(
        kept=tokens * sum(n_bytes for n_bytes, _ in kept),
        mapped=tokens * sum(n_bytes for n_bytes, each in kept if tokens * each >= least),
        logits=min(tokens, max(LOGIT_ELEMENTS // config.vocab_size, 1)) * config.vocab_size * width,
        is_chunked=tokens * config.vocab_size > LOGIT_ELEMENTS,
        layer=layer,
        layer_block=block,
        table=config.vocab_size * config.hidden_size * width,
    )


@dataclass(frozen=True, kw_only=True)
class OwnModel:
    """What a plan must know of a model of this project's: its sizes, its counts, and the names and sizes of what is trained."""

    config: GPTConfig
    counts: ParameterCounts
    experts_per_token: int
    trained: tuple[tuple[str, int], ...]

    @classmethod
    def of(cls, config: GPTConfig, trains: Trained = Trained.ALL) -> OwnModel:
        """Read it off a model without memory.

        Raises:
            ConfigError: the model has nothing of what is to be trained.
        """
        model = GPT(config)
        train_only(model, trains)
        trained = [(name, parameter.numel()) for name, parameter in model.named_parameters() if parameter.requires_grad]
        return cls(
            config=config,
            counts=count_parameters(config),
            experts_per_token=model.router_traits.experts_per_token,
            trained=tuple(trained),
        )


def plan_own(
    model: OwnModel,
    engine: EngineConfig,
    offload: OffloadConfig | None = None,
    *,
    on_cpu: bool = False,
    tokens: int | None = None,
    batch_rows: int | None = None,
    is_kept_near: bool = False,
) -> MemoryPlan:
    """Plan the training of a model of this project's; rows have so many tokens (absent: they fill the context).

    `batch_rows` make a step over all ranks; absent, one micro-batch on each. A loss that keeps the model near its base reads
    another copy of it, and keeps the gradient by logits from the forward pass on.
    """
    config, counts = model.config, model.counts
    rows = config if tokens is None else replace(config, context_length=min(tokens, config.context_length))
    trained = TrainedTensors(
        sizes=[size // engine.expert_parallel if is_stack(name) else size for name, size in model.trained],
        total=sum(size for _, size in model.trained),
        apart=sum(size // engine.expert_parallel for name, size in model.trained if is_stack(name) and engine.expert_parallel > 1),
    )
    is_whole = trained.total == counts.total
    memory = plan_memory(counts, engine, offload, None if is_whole else trained.total)
    if not is_whole and engine.precision.is_rounded:
        memory["weights"] += 4 * (counts.total - trained.total)  # frozen weights are kept exact next to their rounded form
    in_files = files_of(memory, offload)
    passing = plan_passing(rows, engine, model.experts_per_token, on_cpu, GIVEN_BACK if in_files is None else GIVEN_BACK_ONCE)
    if is_kept_near:
        memory["weights"] += plan_memory(counts, engine)["weights"]
        passing = replace(passing, logits=2 * passing.logits)
    return combined(
        memory,
        trained,
        passing,
        engine,
        on_cpu=on_cpu,
        batch_rows=batch_rows,
        in_files=in_files,
        on_host=offload is not None and offload.optimizer is OptimizerIn.CPU,
        scratch=sum(plan_scratch(counts, engine, offload or OffloadConfig(), None if is_whole else trained.total).values()),
    )


def _attention_parts(config: GPTConfig, engine: EngineConfig, on_cpu: bool) -> list[Part]:
    """Return what attention keeps of a token; in short bf16 rows on a CPU it is made of plain products, which keep weights."""
    hidden, width, length = config.hidden_size, _width(engine), config.context_length
    parts: list[Part] = [(3 * hidden * width, hidden * width), (3 * hidden * width, 3 * hidden * width), (4 * config.n_heads, 0.0)]
    if on_cpu and engine.precision is Precision.BF16 and length <= SHORT:
        parts.append((config.n_heads * length * width, config.n_heads * length * width))
        parts.append((length / engine.micro_batch, 0.0))  # the mask, one for all rows
    return parts


def _feed_forward_parts(config: GPTConfig, engine: EngineConfig, n_experts: int, k: int, on_cpu: bool) -> list[Part]:
    """Return what a token's feed-forward part keeps: norm, then an MLP, or experts and what stands beside them."""
    hidden, width = config.hidden_size * _width(engine), _width(engine)
    mlp: Part = (2 * config.ffn_width * width, config.ffn_width * width)
    parts: list[Part] = [(2 * hidden, hidden)]
    if not n_experts:
        return [*parts, mlp]
    parts.append((k * _pair_elements(config, engine, on_cpu) * width, k * config.ffn_width * width))
    if config.expert_residual_layers:
        parts.append(((6 * config.expert_residual_layers + 1) * hidden, hidden))
    if config.is_residual:
        parts += [(3 * hidden, hidden), mlp]
    return parts


def _pair_elements(config: GPTConfig, engine: EngineConfig, on_cpu: bool) -> int:
    """Return what one of a token's experts keeps, on a CPU and on a GPU, where in bf16 one kernel takes all experts.

    One by one they keep the values before GELU; the kernel keeps those behind it too. Where a kernel or other ranks take the rows,
    rows, outputs and weighted outputs are kept beside them.
    """
    is_by_kernel = engine.precision is Precision.BF16 and not on_cpu
    rows = 3 * config.hidden_size if is_by_kernel or engine.expert_parallel > 1 else 0
    return rows + config.ffn_width * (2 if is_by_kernel else 1)


def _width(engine: EngineConfig) -> int:
    return engine.precision.dtype.itemsize
