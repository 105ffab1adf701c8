"""The MoE layer against a dense MLP of equal active size and against other packages' layers: forward and backward, and memory.

Options: cases= (ExT: E experts, at least 2, T tokens; an s behind it: skewed, the fullest expert 9 times the mean),
dtypes= (fp32,bf16), hidden=, ffn=, groups= (alone,zero2 and, on a CPU, expert_parallel), peers= (none, or names with _ for a
blank), repeats= (7), threads= (1), loop_experts= (8; on CUDA 64), clock= (wall or cpu; cpu is for a machine with other work,
one thread), device= (cuda where there is one).

Every case is measured in processes of its own whose allocator keeps freed memory, as ranks of a training run have it. Three groups
of rows: `alone`, the layer by itself, its gradients' memory used again from step to step; `under ZeRO-2`, layer and dense MLP
each under the training engine on one rank, gradient handling included; and `expert parallel 2`, a layer whose experts two ranks
share over gloo (32x2048 unless cases= says otherwise; tokens and times are a rank's). A group is one entry of `_GROUPS`.
"""

from __future__ import annotations

import importlib.util
import re
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

from adapt.core.errors import ConfigError
from adapt.core.precision import FORMATS, Precision
from pipelines.bench.contract import Benchmark, register
from pipelines.bench.moe_cases import Case
from pipelines.bench.moe_measure import DENSE, OURS, PEER_NAMES, Settings, Timed, time_alone, time_under_zero2, weigh_step
from pipelines.bench.moe_peers import PEERS
from pipelines.bench.moe_ranks import slowest, time_shared
from pipelines.bench.options import device_of, is_cpu_time, number, only, some_of
from pipelines.bench.own_memory import STATUS
from pipelines.ranks.fresh_processes import GIVE_BACK, as_a_rank, in_child, on_ranks

_NAME = "moe"
_KNOWN = (
    "cases", "dtypes", "hidden", "ffn", "groups", "peers", "repeats", "threads", "loop_experts", "clock", "device",
)  # fmt: skip
_DROPPING = "deepspeed drop"


@dataclass(frozen=True, kw_only=True)
class _Defaults:
    cases: str
    dtypes: tuple[str, ...]
    hidden: int
    ffn: int
    loop_experts: int


@dataclass(frozen=True, kw_only=True)
class _Group:
    """Rows of one kind: how they are called, how a case is timed, and the largest ratio to dense by tokens per expert.

    Groups of several `ranks` are for CPUs only; `cases` are a group's own where none are asked for.
    """

    title: str
    measure: Callable[[Case, Settings], Timed]
    has_peers: bool
    targets: Mapping[int, float]
    ranks: int = 1
    cases: str | None = None
    has_bf16_target: bool = True


_DEFAULTS = {
    "cpu": _Defaults(
        cases="8x2048,8x8192,32x2048,32x8192,64x2048,64x8192,32x2048s",
        dtypes=("fp32", "bf16"),
        hidden=512,
        ffn=2048,
        loop_experts=8,
    ),
    "cuda": _Defaults(cases="32x16384,64x16384", dtypes=("bf16",), hidden=2048, ffn=8192, loop_experts=64),
}
_GROUPS = {
    "alone": _Group(title="alone", measure=time_alone, has_peers=True, targets={256: 1.15, 64: 1.35, 32: 2.2}),
    "zero2": _Group(title="under ZeRO-2", measure=time_under_zero2, has_peers=False, targets={256: 1.3, 64: 1.7, 32: 2.4}),
    "expert_parallel": _Group(
        title="expert parallel 2",
        measure=time_shared,
        has_peers=False,
        targets={64: 1.35},
        ranks=2,
        cases="32x2048",
        has_bf16_target=False,
    ),
}
_SKEWED_TARGET, _CUDA_TARGET, _MEMORY_TARGET = 1.7, 1.2, 1.3


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    device = device_of(_NAME, options)
    threads = number(_NAME, options, "threads", 1)
    defaults = _DEFAULTS[device]
    peers = [name.replace(" ", "_") for name in PEER_NAMES]
    settings = Settings(
        repeats=number(_NAME, options, "repeats", 7),
        peers=tuple(name for name in PEER_NAMES if name.replace(" ", "_") in some_of(_NAME, options, "peers", peers, peers)),
        loop_experts=number(_NAME, options, "loop_experts", defaults.loop_experts),
        is_cpu_time=is_cpu_time(_NAME, options, threads, device),
    )
    for_device = [name for name, group in _GROUPS.items() if device == "cpu" or group.ranks == 1]
    groups = [_GROUPS[name] for name in some_of(_NAME, options, "groups", list(_GROUPS), for_device)]
    asked = [(group, case) for group in groups for case in _cases(options, defaults, device, group)]
    return [_row(group, case, settings, threads) for group, case in asked]


def _cases(options: Mapping[str, str], defaults: _Defaults, device: str, group: _Group) -> list[Case]:
    if group.ranks > 1 and device != "cpu":
        raise ConfigError(
            f"bench {_NAME}: {group.title} is measured on a CPU, over gloo; leave it out of groups=, or take device=cpu"
        )
    hidden, ffn = number(_NAME, options, "hidden", defaults.hidden), number(_NAME, options, "ffn", defaults.ffn)
    precisions = some_of(_NAME, options, "dtypes", [precision.value for precision in FORMATS], defaults.dtypes)
    cases = []
    for text in options.get("cases", group.cases or defaults.cases).split(","):
        shape = re.fullmatch(r"([1-9]\d*)x([1-9]\d*)(s?)", text)
        if shape is None:
            raise ConfigError(f"bench {_NAME}: cases={text}: give experts x tokens, e.g. 32x2048, or 32x2048s for skewed routing")
        if int(shape[1]) < 2:
            raise ConfigError(f"bench {_NAME}: cases={text}: a MoE layer has two experts or more")
        if int(shape[1]) % group.ranks:
            raise ConfigError(f"bench {_NAME}: cases={text}: {group.ranks} ranks cannot share {shape[1]} experts evenly")
        for precision in precisions:
            cases.append(
                Case(
                    experts=int(shape[1]),
                    tokens=int(shape[2]),
                    is_skewed=bool(shape[3]),
                    precision=Precision(precision),
                    hidden=hidden,
                    ffn=ffn,
                    device=device,
                )
            )
    return cases


def _row(group: _Group, case: Case, settings: Settings, threads: int) -> dict[str, Any]:
    environment = as_a_rank(threads)
    if group.ranks == 1:
        timed = in_child(environment, threads, group.measure, case, settings)
    else:
        timed = slowest(on_ranks(group.ranks, threads, group.measure, case, settings))
    ratios = {name: value / timed.seconds[DENSE] for name, value in timed.seconds.items()}
    dropless = {name: ratio for name, ratio in ratios.items() if name in PEER_NAMES and name != _DROPPING}
    fastest = min(dropless, key=lambda name: dropless[name], default=None)
    weighs = group.has_peers and (case.device != "cpu" or STATUS.exists())
    step_mib, formula_mib = in_child({**environment, **GIVE_BACK}, threads, weigh_step, case) if weighs else (None, None)
    return {
        "group": group.title,
        "device": case.device,
        "threads": threads,
        "hidden": case.hidden,
        "ffn": case.ffn,
        "experts": case.experts,
        "tokens": case.tokens,
        "tokens/expert": case.tokens / case.experts,
        "routing": "skewed" if case.is_skewed else "even",
        "fullest/mean": timed.fullest,
        "dtype": case.precision.value,
        "dense ms": 1000 * timed.seconds[DENSE],
        "dense GFLOP/s": 12 * case.tokens * case.hidden * case.ffn / timed.seconds[DENSE] / 1e9,
        f"{OURS}/dense": ratios[OURS],
        "target": _target(group, case),
        **{f"{name}/dense": ratios.get(name) for name in PEER_NAMES},
        "fastest dropless peer": fastest,
        "ours/fastest": None if fastest is None else ratios[OURS] / ratios[fastest],
        "step MiB": step_mib,
        "formula MiB": formula_mib,
        "memory/formula": None if step_mib is None or formula_mib is None else step_mib / formula_mib,
        "memory target": None if step_mib is None else _MEMORY_TARGET,
        "freed kept/formula": None if timed.kept_mib is None or formula_mib is None else timed.kept_mib / formula_mib,
        "page faults": timed.page_faults,
        "optimizer ms": 1000 * timed.seconds[f"{OURS} optimizer"] if f"{OURS} optimizer" in timed.seconds else None,
        "largest difference": timed.difference,
        "left out": "; ".join(f"{name}: {reason}" for name, reason in timed.left_out.items()) or None,
    }


def _target(group: _Group, case: Case) -> float | None:
    """Return the largest ratio to dense that is asked for, None where this project asks for none."""
    defaults = _DEFAULTS[case.device]
    if (case.hidden, case.ffn) != (defaults.hidden, defaults.ffn):
        return None
    if case.device != "cpu":
        return _CUDA_TARGET if group.has_peers else None
    if case.is_skewed:
        return _SKEWED_TARGET if group.has_peers else None
    if case.precision is Precision.BF16 and not group.has_bf16_target:
        return None
    return group.targets.get(min(case.tokens // case.experts, max(group.targets)))


def _baseline() -> str:
    missing = sorted({peer.package for peer in PEERS.values() if importlib.util.find_spec(peer.package) is None})
    left_out = f"; left out: {', '.join(missing)} (not installed)" if missing else ""
    return f"dense: an MLP of the same hidden size, FFN width, tokens and number format, timed in turn with the rest{left_out}"


register(
    Benchmark(
        name=_NAME,
        title="MoE layer, top-1, router included, forward + backward: medians as ratios to dense. Memory is the rise of a step's "
        "private bytes; formula: bytes per value x (tokens x (2 x hidden + FFN) + weight gradients)",
        baseline=_baseline(),
        run=_run,
    )
)
