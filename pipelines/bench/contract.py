"""What a benchmark is, and how two ways of doing the same are timed: interleaved, medians, as ratios to a named baseline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.core.registry import Registry, import_folder


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A named benchmark. `run(options)` returns rows that all have the same columns; options are those of the command line."""

    name: str
    title: str
    baseline: str
    run: Callable[[Mapping[str, str]], list[dict[str, Any]]]


Stopwatch = Callable[[Callable[[], object]], float]

BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def register(benchmark: Benchmark) -> Benchmark:
    """Register a benchmark under its own name."""
    return BENCHMARKS.register(benchmark.name)(benchmark)


def all_benchmarks() -> Registry[Benchmark]:
    """Return the registry with every file of this folder imported."""
    folder = Path(__file__).parent
    import_folder(__package__, [str(folder)])
    return BENCHMARKS


def wall_seconds(way: Callable[[], object]) -> float:
    """Return the seconds of the clock on the wall that a call takes."""
    started = time.perf_counter()
    way()
    return time.perf_counter() - started


def cpu_seconds(way: Callable[[], object]) -> float:
    """Return the processor's seconds that a call takes, those of the kernel for it included: other work does not count."""
    started = time.process_time()
    way()
    return time.process_time() - started


def cuda_seconds(way: Callable[[], object]) -> float:
    """Return the seconds between two events around a call on the current CUDA device, which has nothing else to do."""
    started, ended = (torch.cuda.Event(enable_timing=True) for _ in range(2))
    torch.cuda.synchronize()
    started.record()
    way()
    ended.record()
    torch.cuda.synchronize()
    return started.elapsed_time(ended) / 1000


def interleaved_medians(
    ways: Mapping[str, Callable[[], object]], rounds: int, stopwatch: Stopwatch = wall_seconds
) -> dict[str, float]:
    """Return the median seconds of each way over `rounds` rounds in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            seconds = stopwatch(way)
            if count:
                times[name].append(seconds)
    return {name: statistics.median(values) for name, values in times.items()}
