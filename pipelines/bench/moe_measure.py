"""What `bench moe` does in its child processes: time the ways of one case in turn, alone or under ZeRO-2, and weigh a step.

Alone: forward and backward; gradients are let go after each step and their memory is used again. Under ZeRO-2: the same, driven
by the training engine on one rank, which takes the gradients on their way; its optimizer step follows, outside what is counted.
"""

from __future__ import annotations

import logging
import resource
from collections.abc import Callable
from dataclasses import dataclass, field
from functools import partial

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo
from adapt.model.moe import DenseMLP
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from pipelines.bench.contract import Stopwatch, cpu_seconds, cuda_seconds, interleaved_medians, wall_seconds
from pipelines.bench.moe_cases import (
    Case,
    Forward,
    Way,
    bare_grouped_mm,
    dense,
    draw_tokens,
    draw_weights,
    loop,
    our_layer,
    our_weights,
    ours,
    plain_inputs,
    step_bytes,
)
from pipelines.bench.moe_peers import PEERS, build_peer
from pipelines.bench.own_memory import STATUS, private_growth_mib

DENSE, OURS = "dense", "ours"
PEER_NAMES = (*PEERS, "bare grouped_mm", "loop")
AGREEMENT = {Precision.FP32: 1e-4, Precision.BF16: 4e-2, Precision.FP16: 5e-3}  # of the largest value
_STEPS = 5
_WARM_STEPS = 2


@dataclass(frozen=True, kw_only=True)
class Settings:
    """How cases are timed. The loop over W[e] is left out above `loop_experts`: it costs the square of them."""

    repeats: int
    peers: tuple[str, ...]
    loop_experts: int
    is_cpu_time: bool = False


@dataclass(kw_only=True)
class Timed:
    """Median seconds of each way, why others are missing, and how far the ways lie apart."""

    seconds: dict[str, float]
    left_out: dict[str, str] = field(default_factory=dict)
    difference: float | None = None
    fullest: float
    page_faults: int | None = None
    kept_mib: float | None = None


def time_alone(case: Case, settings: Settings) -> Timed:
    """Time the layer by itself against the dense MLP and the peers.

    Raises:
        ConfigError: ways that leave no token out do not agree; nothing is timed then.
    """
    logging.getLogger("transformers").setLevel(logging.ERROR)
    weights = draw_weights(case)
    x_BTH, gradient_BTH, expert_N = draw_tokens(case, weights)
    our_way = ours(case, weights, plain_inputs(x_BTH))
    our_step = partial(our_way.timed_step, x_BTH, gradient_BTH)
    kept_mib = None if case.device != "cpu" or not STATUS.exists() else _kept_mib(our_step)
    found: dict[str, Way | str] = {}
    for name in settings.peers:
        if name == "loop":
            is_long = case.experts > settings.loop_experts
            found[name] = f"more than loop_experts={settings.loop_experts}" if is_long else loop(case, weights)
        elif name in PEERS:
            found[name] = build_peer(name, case, weights)
        else:
            found[name] = bare_grouped_mm(case, weights)
    left_out = {name: way for name, way in found.items() if isinstance(way, str)}
    peers = {name: way for name, way in found.items() if isinstance(way, Way)}
    difference = _check_agreement(case, our_way, peers, left_out, x_BTH, gradient_BTH)
    ways = {DENSE: dense(case), OURS: our_way, **{name: way for name, way in peers.items() if name not in left_out}}
    steps: dict[str, Callable[[], object]] = {name: partial(way.timed_step, x_BTH, gradient_BTH) for name, way in ways.items()}
    seconds = interleaved_medians(steps, settings.repeats, _stopwatch(case, settings))
    faults_before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    our_step()
    return Timed(
        seconds=seconds,
        left_out=left_out,
        difference=difference,
        fullest=fullest_of(case, expert_N),
        page_faults=resource.getrusage(resource.RUSAGE_SELF).ru_minflt - faults_before,
        kept_mib=kept_mib,
    )


def time_under_zero2(case: Case, settings: Settings) -> Timed:
    """Time the layer and the dense MLP as the training engine runs them on one rank: ZeRO-2, fp32 masters and gradients."""
    from adapt.train.engine import Engine  # imports DeepSpeed, which only this process needs

    rank = RankInfo(rank=0, world_size=1, local_rank=0)
    config, optimizer = EngineConfig(zero_stage=2, precision=case.precision), OptimizerConfig()
    weights = draw_weights(case)
    x_BTH, gradient_BTH, expert_N = draw_tokens(case, weights)
    inputs = plain_inputs(x_BTH)
    layer = our_layer(case)
    layer.load_state_dict({name: value.float() for name, value in our_weights(weights).items()}, assign=True)
    del weights
    torch.manual_seed(0)
    mlp = DenseMLP(case.hidden, case.ffn).to(case.device)
    modules: dict[str, tuple[nn.Module, Forward]] = {DENSE: (mlp, mlp), OURS: (layer, lambda x_BTH: layer(x_BTH, inputs)[0])}
    steps: dict[str, Callable[[], object]] = {}
    for name, (module, forward) in modules.items():
        engine = Engine(module, config, optimizer, rank)

        def accumulate(engine: Engine = engine, forward: Forward = forward) -> None:
            x = x_BTH.detach().clone().requires_grad_()
            engine.accumulate(lambda: (forward(x) * gradient_BTH).sum(), is_last=True)

        steps[name] = accumulate
        steps[f"{name} optimizer"] = partial(engine.step, 0.0)
    seconds = interleaved_medians(steps, settings.repeats, _stopwatch(case, settings))
    return Timed(seconds=seconds, fullest=fullest_of(case, expert_N))


def weigh_step(case: Case) -> tuple[float, float]:
    """Return the MiB by which private memory rises in a step of the layer, and the MiB of the formula.

    On a CPU the process's allocator has to give back what is freed, so that the peak is what the layer itself holds.
    """
    weights = draw_weights(case)
    x_BTH, gradient_BTH, _ = draw_tokens(case, weights)
    way = ours(case, weights, plain_inputs(x_BTH))
    for _ in range(_WARM_STEPS):  # libraries keep their own buffers from the first call on
        way.timed_step(x_BTH, gradient_BTH)
    formula = step_bytes(case, weights) / 2**20
    if case.device == "cpu":
        return private_growth_mib(partial(way.timed_step, x_BTH, gradient_BTH)), formula
    torch.cuda.synchronize()
    before = torch.cuda.memory_allocated()
    torch.cuda.reset_peak_memory_stats()
    way.timed_step(x_BTH, gradient_BTH)
    torch.cuda.synchronize()
    return (torch.cuda.max_memory_allocated() - before) / 2**20, formula


def _kept_mib(our_step: Callable[[], object]) -> float:
    """Return the private memory of several steps of the layer where the allocator keeps what is freed, holes included."""
    for _ in range(_WARM_STEPS):
        our_step()
    return private_growth_mib(lambda: [our_step() for _ in range(_STEPS)])


def _check_agreement(
    case: Case, our_way: Way, peers: dict[str, Way], left_out: dict[str, str], x_BTH: Tensor, gradient_BTH: Tensor
) -> float:
    """Run every peer once and compare; a peer that cannot run is added to `left_out`."""
    out, dx = our_way.step(x_BTH, gradient_BTH)
    our_way.clear()
    largest = 0.0
    for name, way in peers.items():
        try:
            theirs = way.step(x_BTH, gradient_BTH)
        except (RuntimeError, TypeError, AttributeError, AssertionError) as error:
            # Another package's code, on this device, in this number format, for so many tokens.
            left_out[name] = f"cannot run here: {(str(error) or type(error).__name__).splitlines()[0]}"
            continue
        finally:
            way.clear()
        if way.drops:
            continue
        difference = max(difference_of(out, theirs[0]), difference_of(dx, theirs[1]))
        if not difference <= AGREEMENT[case.precision]:
            raise ConfigError(
                f"bench moe: ours, {name}: results differ by {difference:.2e} of the largest; figures would mean nothing"
            )
        largest = max(largest, difference)
    return largest


def difference_of(ours: Tensor, theirs: Tensor) -> float:
    """Return the largest difference as a share of our largest value."""
    return float((ours - theirs).abs().max() / ours.abs().max())


def fullest_of(case: Case, expert_N: Tensor) -> float:
    """Return how many times the mean the fullest expert has."""
    return float(torch.bincount(expert_N, minlength=case.experts).max()) * case.experts / case.tokens


def _stopwatch(case: Case, settings: Settings) -> Stopwatch:
    if case.device != "cpu":
        return cuda_seconds
    return cpu_seconds if settings.is_cpu_time else wall_seconds
