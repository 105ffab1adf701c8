"""Latency of greedy generation on a cache: against full passes without one, and transformers' `generate` on a dense model.

Options: models= (0.35b_dense,1.3b_dense; names of conf/model), input= (20), output= (128), rows= (1: prompts that grow together),
precision= (bf16, fp32), ways= (transformers,no_cache), passes= (4: full passes that `no_cache` is timed by), rounds= (3),
clock= (wall, cpu), device=.

`transformers` is a GPT-2 of transformers with the weights of a dense model of the same layers, heads, width and feed-forward part,
so that a token of a sparse model with one expert a token takes as much arithmetic there. Without a cache, a token costs a full pass
over all before it; passes at evenly spaced lengths are timed, and their mean stands for each token. Weights are random, and routing
is even. For dense models in fp32 both ways have to choose the same tokens before anything is timed.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import replace
from typing import Any

import torch
import yaml

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import generator_for
from adapt.core.typed import from_plain
from adapt.model.buffers import saved_buffers
from adapt.model.config import GPTConfig
from adapt.model.continuing import Growing, continue_rows
from adapt.model.gpt import GPT
from adapt.model.inputs import ModelInputs
from pipelines.bench.contract import Benchmark, Stopwatch, cpu_seconds, interleaved_medians, register, wall_seconds
from pipelines.bench.lm_eval_baseline import gpt2_twin
from pipelines.bench.options import device_of, is_cpu_time, number, one_of, only, some_of
from pipelines.config.locations import conf_dir

_NAME = "generate"
_OPTIONS = ("models", "input", "output", "rows", "precision", "ways", "passes", "rounds", "device", "clock")
_CACHE, _NO_CACHE, _TWIN = "cache", "no_cache", "transformers"
_DEFAULT = ("0.35b_dense", "1.3b_dense")
_DRAWN = 1 << 22  # random weights that are drawn; larger tensors repeat them
_VOCAB = 50_000

Tokens = list[list[int]]


def _run(options: Mapping[str, str]) -> list[dict[str, Any]]:
    only(_NAME, options, *_OPTIONS)
    sizes = {key: number(_NAME, options, key, n) for key, n in (("input", 20), ("output", 128), ("rows", 1), ("passes", 4))}
    rounds, device = number(_NAME, options, "rounds", 3), device_of(_NAME, options)
    precision = Precision(one_of(_NAME, options, "precision", (Precision.BF16.value, Precision.FP32.value)))
    ways = some_of(_NAME, options, "ways", (_TWIN, _NO_CACHE), (_TWIN, _NO_CACHE))
    stopwatch = cpu_seconds if is_cpu_time(_NAME, options, torch.get_num_threads(), device) else wall_seconds
    known = sorted(path.stem for path in (conf_dir() / "model").glob("*.yaml") if path.stem != "hf")
    names = some_of(_NAME, options, "models", known, _DEFAULT)
    return [measured(name, _config(name), sizes, ways, rounds, precision, device, stopwatch) for name in names]


def measured(
    name: str,
    config: GPTConfig,
    sizes: Mapping[str, int],
    ways: list[str],
    rounds: int,
    precision: Precision,
    device: str,
    stopwatch: Stopwatch = wall_seconds,
) -> dict[str, Any]:
    """Return the row of a model.

    Raises:
        ConfigError: its context is too short, or the ways choose different tokens in fp32.
    """
    if sizes["input"] + sizes["output"] > config.context_length:
        raise ConfigError(f"bench {_NAME}: {name} reads {config.context_length} tokens; give smaller input= and output=")
    model = random_model(config, precision.dtype, device)
    rows = generator_for(_NAME).integers(5, config.vocab_size, (sizes["rows"], sizes["input"])).tolist()
    timed: dict[str, Callable[[], Any]] = {_CACHE: lambda: on_cache(model, rows, sizes["output"], device)}
    if _TWIN in ways:
        dense = model if not model.expert_counts else random_model(replace(config, experts=[0]), precision.dtype, device)
        twin = gpt2_twin(dense).to(device=device, dtype=precision.dtype)
        timed[_TWIN] = lambda: by_transformers(twin, rows, sizes["output"], device)
        if precision is Precision.FP32 and dense is model and timed[_TWIN]() != timed[_CACHE]():
            raise ConfigError(f"bench {_NAME}: {name}: both ways choose different tokens; figures would mean nothing")
    if _NO_CACHE in ways:
        timed[_NO_CACHE] = lambda: full_passes(model, sizes, device)
    with torch.inference_mode():
        seconds = interleaved_medians(timed, rounds, stopwatch)
    if _NO_CACHE in ways:
        seconds[_NO_CACHE] *= sizes["output"] / sizes["passes"]
    n_bytes = sum(tensor.numel() * tensor.element_size() for tensor in model.parameters())
    return {
        "model": name,
        "weights MB": n_bytes / 1e6,
        "rows": sizes["rows"],
        "input": sizes["input"],
        "output": sizes["output"],
        "precision": precision.value,
        "threads": torch.get_num_threads(),
        **{f"{way} ms": 1000 * value for way, value in seconds.items()},
        "ms/token": 1000 * seconds[_CACHE] / sizes["output"],
        **{f"{way}/cache": value / seconds[_CACHE] for way, value in seconds.items() if way != _CACHE},
    }


def on_cache(model: GPT, rows: Tokens, n_tokens: int, device: str) -> Tokens:
    """Return the tokens that this project adds."""
    growing = Growing(beginnings=rows, most=[n_tokens] * len(rows), choose=lambda logits_BV, _: logits_BV.argmax(dim=-1))
    continue_rows(model, growing, device)
    return growing.added


def by_transformers(twin: Any, rows: Tokens, n_tokens: int, device: str) -> Tokens:
    """Return the tokens that transformers adds."""
    ids_BT = torch.tensor(rows, device=device)
    made = {"max_new_tokens": n_tokens, "min_new_tokens": n_tokens, "do_sample": False, "pad_token_id": 0, "eos_token_id": None}
    found = twin.generate(ids_BT, attention_mask=torch.ones_like(ids_BT), **made)
    added: Tokens = found[:, ids_BT.shape[1] :].tolist()
    return added


def full_passes(model: GPT, sizes: Mapping[str, int], device: str) -> None:
    """Choose a token by a full pass at each of some evenly spaced lengths."""
    for index in range(sizes["passes"]):
        length = sizes["input"] + round((index + 0.5) * sizes["output"] / sizes["passes"])
        ids_BT = torch.full((sizes["rows"], length), 7, device=device)
        inputs = ModelInputs(
            ids_BT=ids_BT, positions_BT=torch.arange(length, device=device).repeat(sizes["rows"], 1),
            documents_BT=torch.ones_like(ids_BT), domains_BT=torch.zeros_like(ids_BT), is_packed=False,
        )  # fmt: skip
        model.logits(model(inputs).hidden_BTH[:, -1]).argmax(dim=-1).tolist()


@torch.no_grad()
def random_model(config: GPTConfig, dtype: torch.dtype, device: str) -> GPT:
    """Return a model whose weights are random, but repeat."""
    model = GPT(config).to(dtype).to_empty(device=device)
    drawn = torch.randn(_DRAWN, generator=torch.Generator().manual_seed(0)).to(device=device, dtype=dtype)
    for name, parameter in model.named_parameters():
        if "norm" in name:
            parameter.fill_(1.0 if name.endswith("weight") else 0.0)
            continue
        flat = parameter.view(-1)
        for start in range(0, len(flat), _DRAWN):
            part = flat[start : start + _DRAWN]
            part.copy_(drawn[: len(part)]).mul_(config.init_std)
    for _, buffer in saved_buffers(model):
        buffer.zero_()
    return model.eval()


def _config(name: str) -> GPTConfig:
    """Return a preset of conf/model, with even routing."""
    plain = yaml.safe_load((conf_dir() / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    if not isinstance(plain["vocab_size"], int):
        plain["vocab_size"] = _VOCAB
    found: GPTConfig = from_plain(GPTConfig, {**plain, "even_routing": True}, name)
    return found


register(
    Benchmark(
        name=_NAME,
        title="Greedy generation on a cache, milliseconds for all tokens; random weights",
        baseline="transformers: its generate on a dense GPT-2 of equal active size; no_cache: a full pass for each token",
        run=_run,
    )
)
