"""A training step of a sparse model against the dense model of equal active size, and what the loop adds around it.

Options: models= (names of conf/model, or 512_moe8: 6 layers of hidden size 512; 7m_moe8,512_moe8, on CUDA 1.3b_moe32),
dtypes= (fp32,bf16; on CUDA bf16), tokens_per_expert= (256: a batch is as many rows as that takes), rows= (a batch of so many
instead; on CUDA the most that fit), repeats= (5), loop_steps= (8), vocab= (8000, where a model leaves it open), corpus= (the
demo's), threads= (1), clock= (wall or cpu, as for moe; the loop is timed by the wall), peak_tflops= (the device's dense peak,
where it is not an H200, H100 or A100), device= (cuda where there is one).

Steps of both models are timed in turn, in a process whose allocator keeps freed memory as ranks of a training run have it. On a
CPU the optimizer step is timed apart, and the training loop itself is run on both models: `outside` is the share of its steps
spent outside forward, backward and optimizer (rows, collation, ledger). `plain` is the loop that one writes without this project:
the dense model in plain PyTorch through `torch.compile` (where a C++ compiler is there), whole steps timed in turn with the
others. Model FLOPs utilisation counts 6 x active parameters x
tokens for forward and backward, of the peak given.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import torch
import yaml

from adapt.core.errors import ConfigError
from adapt.core.precision import FORMATS, Precision
from adapt.core.registry import suggest
from adapt.core.typed import from_plain
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT
from pipelines.bench.contract import Benchmark, register
from pipelines.bench.options import device_of, is_cpu_time, number, only, some_of
from pipelines.bench.step_measure import DENSE, SPARSE, StepCase, StepTimes, time_steps
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.ranks.fresh_processes import as_a_rank, in_child

_NAME = "step"
_KNOWN = (
    "models", "dtypes", "tokens_per_expert", "rows", "repeats", "loop_steps", "vocab", "corpus", "threads", "clock",
    "peak_tflops", "device",
)  # fmt: skip
_LARGER = {"512_moe8": {"n_layers": 6, "hidden_size": 512, "n_heads": 8, "context_length": 256, "experts": [8]}}
_MODELS = {"cpu": "7m_moe8,512_moe8", "cuda": "1.3b_moe32"}
_DTYPES = {"cpu": ("fp32", "bf16"), "cuda": ("bf16",)}
_PEAK_TFLOPS = {"H200": 989, "H100": 989, "A100": 312}  # dense bf16, from the makers' data sheets
_TARGET, _TARGET_TOKENS = 1.25, 256


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_KNOWN)
    device = device_of(_NAME, options)
    repeats, loop_steps = number(_NAME, options, "repeats", 5), number(_NAME, options, "loop_steps", 8)
    threads = number(_NAME, options, "threads", 1)
    clock = is_cpu_time(_NAME, options, threads, device)
    corpus = options.get("corpus", str(demo_dir() / "corpus" / "general.txt"))
    peak = _peak(options, device)
    precisions = some_of(_NAME, options, "dtypes", [precision.value for precision in FORMATS], _DTYPES[device])
    rows = number(_NAME, options, "rows", 1) if "rows" in options else None
    per_expert = number(_NAME, options, "tokens_per_expert", _TARGET_TOKENS)
    cases = [
        StepCase(
            name=name,
            model=model,
            precision=Precision(precision),
            tokens=per_expert * max(model.expert_counts()),
            rows=rows,
            device=device,
        )
        for name, model in ((name, _model(options, name)) for name in options.get("models", _MODELS[device]).split(","))
        for precision in precisions
    ]
    return [
        _row(case, in_child(as_a_rank(threads), threads, time_steps, case, repeats, loop_steps, corpus, clock), threads, peak)
        for case in cases
    ]


def _model(options: Mapping[str, str], name: str) -> GPTConfig:
    folder = conf_dir() / "model"
    known = [*_LARGER, *sorted(path.stem for path in folder.glob("*_moe*.yaml"))]
    if name not in known:
        raise ConfigError(
            f"bench {_NAME}: models={name}: no such sparse model{suggest(name, known)}; there are: {', '.join(known)}"
        )
    plain = _LARGER.get(name) or yaml.safe_load((folder / f"{name}.yaml").read_text(encoding="utf-8"))
    vocabulary = plain.get("vocab_size")
    own = vocabulary if isinstance(vocabulary, int) else number(_NAME, options, "vocab", 8000)
    model = from_plain(GPTConfig, {**plain, "vocab_size": own}, f"model {name}")
    model.validate()
    return model


def _peak(options: Mapping[str, str], device: str) -> float | None:
    """Return the peak in operations a second that utilisation is counted against, None where it is not known."""
    if "peak_tflops" in options:
        return number(_NAME, options, "peak_tflops", 1) * 1e12
    name = torch.cuda.get_device_name() if device == "cuda" else ""
    return next((tera * 1e12 for key, tera in _PEAK_TFLOPS.items() if key in name), None)


def _row(case: StepCase, times: StepTimes, threads: int, peak: float | None) -> dict[str, Any]:
    seconds, loop = times.seconds, times.loops.get(SPARSE)
    experts = max(GPT(case.model).expert_counts)
    per_expert = times.tokens / experts
    has_target = case.device == "cpu" and per_expert >= _TARGET_TOKENS
    data = times.data_tokens_per_s
    return {
        "model": case.name,
        "device": case.device,
        "threads": threads,
        "dtype": case.precision.value,
        "experts": experts,
        "rows": times.rows,
        "tokens": times.tokens,
        "tokens/expert": per_expert,
        "fullest/mean": times.max_load,
        "dense ms": 1000 * seconds[DENSE],
        "sparse ms": 1000 * seconds[SPARSE],
        "sparse/dense": seconds[SPARSE] / seconds[DENSE],
        "target": _TARGET if has_target else None,
        "dense optimizer ms": 1000 * times.optimizer[DENSE] if times.optimizer else None,
        "sparse optimizer ms": 1000 * times.optimizer[SPARSE] if times.optimizer else None,
        "training tokens/s": None if loop is None else loop.tokens_per_s,
        "outside %": None if loop is None else 100 * loop.outside,
        "dense outside %": 100 * times.loops[DENSE].outside if times.loops else None,
        "plain tokens/s": None if times.plain is None else times.plain.tokens_per_s,
        "plain is": None if times.plain is None else times.plain.how,
        "training/plain": None if times.plain is None or loop is None else loop.tokens_per_s / times.plain.tokens_per_s,
        "data tokens/s": data,
        "data/training": None if loop is None or data is None else data / loop.tokens_per_s,
        "TFLOP/s": times.flops / seconds[SPARSE] / 1e12,
        "MFU %": None if peak is None else 100 * times.flops / seconds[SPARSE] / peak,
    }


register(
    Benchmark(
        name=_NAME,
        title="Training step, forward + backward, of a sparse GPT; the optimizer step and the loop's own share apart",
        baseline="dense: the same model with an MLP for every routed layer, timed in turn on the same batch",
        run=_run,
    )
)
