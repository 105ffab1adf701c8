"""Checkpoints larger than memory: writing, loading and scoring against the rates that the disk has by itself.

Options: parts= (write,read,ranks,score), dir= (a scratch directory, else the system's; emptied at the end), gb= (4: size of the
pieces written and read), rounds= (7), ranks= (2), model= (16b_pyramid, a name of conf/model), layers= (all of it: so many layers of
the model, experts in proportion), checkpoint= (one to score instead of a random one made here), rows= (8), columns= (256),
ways= (ring,mmap), threads= (2), ahead_mb= (1024), most_gb= (60: refused if more disk is needed at once).

Ways are timed in turn; medians, and the median of the rounds' ratios. `raw` is one thread's O_DIRECT transfer in 16 MB steps.
Files are dropped from the page cache before they are read. Private memory is RssAnon, sampled while a way runs, above what it was
before: the peak that the kernel keeps counts the files' pages. Scoring computes in bf16 with even routing; its I/O time is the
reading thread's, its compute time that of the pass without waiting for it.
"""

from __future__ import annotations

import dataclasses
import shutil
import tempfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import yaml

from adapt.core.errors import ConfigError
from adapt.core.registry import suggest
from adapt.core.typed import from_plain
from adapt.model.config import GPTConfig
from adapt.model.counting import count_parameters
from pipelines.bench.contract import Benchmark, register
from pipelines.bench.options import number, only, some_of
from pipelines.bench.paging_measure import measure_ranks, measure_read, measure_score, measure_write
from pipelines.config.locations import conf_dir

_NAME = "paging"
_KNOWN = (
    "parts", "dir", "gb", "rounds", "ranks", "model", "layers", "checkpoint", "rows", "columns", "ways", "threads", "ahead_mb",
    "most_gb",
)  # fmt: skip
_PARTS = ("write", "read", "ranks", "score")
_WAYS = ("ring", "mmap")
_VOCAB = 50000


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    parts = some_of(_NAME, options, "parts", _PARTS, _PARTS)
    if not parts:
        raise ConfigError(f"bench {_NAME}: parts=none: give some of: {', '.join(_PARTS)}")
    ways = some_of(_NAME, options, "ways", _WAYS, _WAYS)
    n_bytes, rounds = number(_NAME, options, "gb", 4) * 10**9, number(_NAME, options, "rounds", 7)
    ranks, threads = number(_NAME, options, "ranks", 2), number(_NAME, options, "threads", 2)
    rows, columns = number(_NAME, options, "rows", 8), number(_NAME, options, "columns", 256)
    ahead_mb = number(_NAME, options, "ahead_mb", 1024)
    model, checkpoint = _model(options), options.get("checkpoint")
    needed = {"write": 2 * n_bytes, "read": n_bytes, "ranks": n_bytes}
    needed["score"] = 0 if checkpoint else 2 * count_parameters(model).total
    _refuse_large(options, max(needed[part] for part in parts))
    found: list[dict[str, Any]] = []
    place = Path(tempfile.mkdtemp(prefix="bench_paging_", dir=options.get("dir")))
    try:
        if "write" in parts:
            found += measure_write(place, n_bytes, rounds, threads)
        if "read" in parts:
            found += measure_read(place, n_bytes, rounds, threads)
        if "ranks" in parts:
            found += measure_ranks(place, n_bytes, ranks, threads)
        if "score" in parts:
            given = None if checkpoint is None else Path(checkpoint)
            found += measure_score(place, model, given, (rows, columns), ways, ahead_mb, rounds=1, threads=threads)
    finally:
        shutil.rmtree(place, ignore_errors=True)
    return found


def _model(options: Mapping[str, str]) -> GPTConfig:
    """Return the model to score: a preset, cut to `layers` of its layers (the last ones' expert counts stay)."""
    name = options.get("model", "16b_pyramid")
    place = conf_dir() / "model" / f"{name}.yaml"
    if not place.is_file():
        names = sorted(path.stem for path in place.parent.glob("*.yaml"))
        raise ConfigError(f"bench {_NAME}: model={name}: unknown{suggest(name, names)}; there are: {', '.join(names)}")
    values = yaml.safe_load(place.read_text(encoding="utf-8"))
    if values.get("kind") == "hf":
        raise ConfigError(f"bench {_NAME}: model={name}: has no sizes of its own")
    if not isinstance(values["vocab_size"], int):
        values["vocab_size"] = _VOCAB
    config: GPTConfig = dataclasses.replace(from_plain(GPTConfig, values, str(place)), even_routing=True)
    layers = number(_NAME, options, "layers", config.n_layers)
    if layers > config.n_layers:
        raise ConfigError(f"bench {_NAME}: layers={layers}: {name} has {config.n_layers}")
    experts = config.experts if len(config.experts) == 1 else config.experts[len(config.experts) - layers // 2 :]
    return dataclasses.replace(config, n_layers=layers, experts=experts)


def _refuse_large(options: Mapping[str, str], needed: int) -> None:
    most = number(_NAME, options, "most_gb", 60) * 10**9
    place = options.get("dir", tempfile.gettempdir())
    if not Path(place).is_dir():
        raise ConfigError(f"bench {_NAME}: dir={place}: no such directory")
    free = shutil.disk_usage(place).free
    if needed > min(most, free):
        raise ConfigError(
            f"bench {_NAME}: needs {needed / 1e9:.1f} GB of disk, {place} has {free / 1e9:.1f} GB free and most_gb allows "
            f"{most / 1e9:.0f}; scale down by gb= and layers="
        )


register(
    Benchmark(
        name=_NAME,
        title="Paging: writing, loading and scoring checkpoints larger than memory",
        baseline="raw: one thread's O_DIRECT transfer of the same bytes, in turn; of scoring the larger of I/O and compute time",
        run=_run,
    )
)
