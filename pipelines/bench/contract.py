"""What a benchmark is, and how two ways of doing the same are timed: interleaved, medians, as ratios to a named baseline."""

from __future__ import annotations

import statistics
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.registry import Registry, import_folder


@dataclass(frozen=True, kw_only=True)
class Benchmark:
    """A named benchmark. `run(options)` returns rows that all have the same columns; options are those of the command line."""

    name: str
    title: str
    baseline: str
    run: Callable[[Mapping[str, str]], list[dict[str, Any]]]


BENCHMARKS: Registry[Benchmark] = Registry("benchmark")


def register(benchmark: Benchmark) -> Benchmark:
    """Register a benchmark under its own name."""
    return BENCHMARKS.register(benchmark.name)(benchmark)


def all_benchmarks() -> Registry[Benchmark]:
    """Return the registry with every file of this folder imported."""
    folder = Path(__file__).parent
    import_folder(__package__, [str(folder)])
    return BENCHMARKS


def interleaved_medians(ways: Mapping[str, Callable[[], object]], rounds: int) -> dict[str, float]:
    """Return the median seconds of each way over `rounds` rounds in turn, after one round that is not counted."""
    times: dict[str, list[float]] = {name: [] for name in ways}
    for count in range(rounds + 1):
        for name, way in ways.items():
            started = time.perf_counter()
            way()
            if count:
                times[name].append(time.perf_counter() - started)
    return {name: statistics.median(values) for name, values in times.items()}
