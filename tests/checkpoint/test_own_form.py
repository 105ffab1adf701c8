"""Models of this project as Hugging Face directories: transformers, without this package, computes what our model computes."""

from __future__ import annotations

import functools
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from adapt.checkpoint.own_form import write_own_form
from adapt.checkpoint.own_in_transformers.experts_moe_adapt import RULES
from adapt.checkpoint.weights import is_bare_checkpoint, load_model, rounded, save_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.precision import Precision
from adapt.model.buffers import named_state
from adapt.model.config import Gelu, GPTConfig
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import ModelInputs
from adapt.model.routers.contract import all_routers
from adapt.model.routers.settings import RouterConfig
from adapt.text.tokenizer import Tokenizer
from tests.support.forked_ranks import slow_unless
from tests.support.made_once import made_once
from tests.support.router_variants import VARIANTS
from tests.support.tiny_models import ROOT, tiny_config

SCRIPT = ROOT / "tests" / "support" / "plain_transformers.py"
N_ROWS, STEPS = 3, 6
LENGTHS = (11, 4, 19)
DOMAINS = (0, 5, 2)
OPTIONS: dict[str, dict[str, Any]] = {
    "dense": {"experts": [0]},
    "pyramid": {"experts": [2, 4], "router": VARIANTS["top2"]},
    "one dense of two": {"experts": [0, 3]},
    "no residual": {"is_residual": False},
    "expert residual": {"expert_residual_layers": 2, "router": VARIANTS["sigmoid_bias"]},
    "expert residual twice": {"expert_residual_layers": 2, "router": VARIANTS["expert_choice"]},
    "exact gelu, odd width": {"gelu": Gelu.ERF, "ffn_hidden_size": 52},
    "even routing": {"even_routing": True, "router": VARIANTS["top2"]},
    "capacity": {"capacity_factor": 1.0},
    "large norm eps": {"norm_eps": 1e-2},
}
WRITTEN_AGAIN = {
    "sparse, written again": tiny_config(router=VARIANTS["sigmoid_bias"]), "dense, written again": tiny_config(experts=[0]),
}  # fmt: skip
ROUNDED, ROUNDED_CONFIG = "bf16", tiny_config(router=VARIANTS["expert_choice"])
FAST = {"option dense", "option pyramid", "option expert residual", "option capacity", *WRITTEN_AGAIN, ROUNDED}


def made_model(config: GPTConfig, seed: int = 3) -> GPT:
    """Return a model in which nothing is at its first value, buffers included."""
    model = materialize(GPT(config), seed=seed).eval()
    generator = torch.Generator().manual_seed(seed)
    with torch.no_grad():
        for _, tensor in named_state(model):
            tensor.add_(torch.empty_like(tensor).normal_(0.0, 0.15, generator=generator))
    return model


def rows_of(config: GPTConfig) -> list[list[int]]:
    generator = torch.Generator().manual_seed(1)
    return [torch.randint(4, config.vocab_size, (length,), generator=generator).tolist() for length in LENGTHS]


def write_case(place: Path, model: GPT, tokenizer: Tokenizer, dtype: str = "float32", *, again: bool = False) -> None:
    source = place / "source"
    source.mkdir(parents=True)
    precision = Precision.BF16 if dtype == "bfloat16" else Precision.FP32
    save_model(source, model.config, rounded(named_state(model), precision), tokenizer)
    (place / "model").mkdir()
    write_own_form(place / "model", source)
    rows: dict[str, Any] = {f"row_{at}": np.asarray(row) for at, row in enumerate(rows_of(model.config))}
    np.savez(place / "rows.npz", n_rows=N_ROWS, steps=STEPS, domains=np.asarray(DOMAINS), dtype=dtype, again=again, **rows)


@torch.no_grad()
def own_logits(model: GPT, row: list[int], domain: int) -> Tensor:
    ids_BT = torch.tensor([row])
    inputs = ModelInputs(
        ids_BT=ids_BT,
        positions_BT=torch.arange(len(row)).unsqueeze(0),
        documents_BT=torch.ones_like(ids_BT),
        domains_BT=torch.full_like(ids_BT, domain),
        is_packed=False,
    )
    return model.logits(model(inputs).hidden_BTH[0])


def own_greedy(model: GPT, row: list[int], domain: int) -> list[int]:
    found = list(row)
    for _ in range(STEPS):
        found.append(int(own_logits(model, found, domain)[-1].argmax()))
    return found[len(row) :]


def opened_by_transformers(cases: Path) -> None:
    """Open the cases in a process that cannot import this project."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1", "HF_HOME": str(cases.parent / "hf_home"), "HF_HUB_OFFLINE": "1"}
    environment.pop("PYTHONPATH", None)
    done = subprocess.run(
        [sys.executable, str(SCRIPT), str(cases)], cwd=cases.parent, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr[-3000:]


def configurations() -> dict[str, GPTConfig]:
    routers = {f"router {name}": tiny_config(router=settings) for name, settings in VARIANTS.items()}
    return {**routers, **{f"option {name}": tiny_config(**changes) for name, changes in OPTIONS.items()}}


def is_fast(name: str) -> bool:
    return name.startswith("router ") or name in FAST


@pytest.fixture(scope="module")
def opened(tmp_path_factory: pytest.TempPathFactory, tokenizer: Tokenizer) -> Callable[[str], Path]:
    """Return a function that gives where transformers opened a case: the fast ones in one process, the others in another."""

    @functools.cache
    def of_group(fast: bool) -> Path:
        def make(place: Path) -> None:
            for name, config in configurations().items():
                if is_fast(name) is fast:
                    write_case(place / "cases" / name, made_model(config), tokenizer)
            if fast:
                for name, config in WRITTEN_AGAIN.items():
                    write_case(place / "cases" / name, made_model(config), tokenizer, again=True)
                write_case(place / "cases" / ROUNDED, made_model(ROUNDED_CONFIG), tokenizer, "bfloat16")
            opened_by_transformers(place / "cases")

        return made_once(tmp_path_factory, f"own_form_{fast}", make) / "cases"

    return lambda name: of_group(is_fast(name)) / name


def test_every_router_has_its_rule() -> None:
    assert set(RULES) == set(all_routers())


@pytest.mark.parametrize("name", [pytest.param(name, marks=slow_unless(is_fast(name))) for name in configurations()])
def test_transformers_computes_the_same_logits_and_text(name: str, opened: Callable[[str], Path]) -> None:
    model = made_model(configurations()[name])
    found = np.load(opened(name) / "found.npz")
    for at, (row, domain) in enumerate(zip(rows_of(model.config), DOMAINS, strict=True)):
        expected = own_logits(model, row, domain).numpy()
        assert np.abs(expected).max() > 0.5
        for way in ("right", "left", "stepwise"):
            np.testing.assert_allclose(found[f"{way}_{at}"], expected, atol=1e-5, rtol=1e-5, err_msg=f"{way}, row {at}")
        greedy = own_greedy(model, row, domain)
        assert found["greedy_True"][at].tolist() == greedy
        assert found["greedy_False"][at].tolist() == greedy


def test_domains_are_looked_at() -> None:
    """Without its domain a text would get other experts: the comparison above sees that."""
    for name in ("router hard", "router random_groups"):
        model = made_model(configurations()[name])
        row = rows_of(model.config)[1]
        assert (own_logits(model, row, DOMAINS[1]) - own_logits(model, row, 0)).abs().max() > 1e-2


@pytest.mark.parametrize("name", list(WRITTEN_AGAIN))
def test_written_again_by_transformers_it_computes_the_same_and_opens_here(
    name: str, opened: Callable[[str], Path], tokenizer: Tokenizer, tmp_path: Path
) -> None:
    model, case = made_model(WRITTEN_AGAIN[name]), opened(name)
    found = np.load(case / "found.npz")
    for at, row in enumerate(rows_of(model.config)):
        np.testing.assert_allclose(found[f"left_{at}"], own_logits(model, row, DOMAINS[at]).numpy(), atol=1e-5, rtol=1e-5)
    written = {path.name for path in (case / "again").iterdir()}
    assert {"configuration_moe_adapt.py", "experts_moe_adapt.py", "modeling_moe_adapt.py"} <= written
    place = Path(shutil.copytree(case / "again", tmp_path / "again"))
    tokenizer.save(place)
    assert is_bare_checkpoint(place)
    again = load_model(place)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named_state(again), named_state(model), strict=True))


def test_rounded_weights_stay_rounded_and_routers_fp32(opened: Callable[[str], Path]) -> None:
    case = opened(ROUNDED)
    model = load_model(case / "source", dtype=torch.bfloat16)
    assert isinstance(model, GPT)
    found = np.load(case / "found.npz")
    for at, row in enumerate(rows_of(ROUNDED_CONFIG)):
        expected = own_logits(model, row, 0).float().numpy()
        assert np.abs(found[f"right_{at}"] - expected).max() < 2e-2 * np.abs(expected).max()


def test_our_own_commands_open_it_with_the_same_bits(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = made_model(tiny_config())
    write_case(tmp_path / "case", model, tokenizer)
    place = tmp_path / "case" / "model"
    assert is_bare_checkpoint(place)
    assert all(torch.equal(a, b) for (_, a), (_, b) in zip(named_state(load_model(place)), named_state(model), strict=True))


def test_a_router_that_transformers_would_not_know_is_refused(
    tmp_path: Path, tokenizer: Tokenizer, monkeypatch: pytest.MonkeyPatch
) -> None:
    model = made_model(tiny_config())
    save_model(tmp_path, model.config, named_state(model), tokenizer)
    monkeypatch.delitem(RULES, "top1")
    (tmp_path / "result").mkdir()
    with pytest.raises(ConfigError, match=r"export.form=hugging_face: the router 'top1' has no rule .*take export.form=merged"):
        write_own_form(tmp_path / "result", tmp_path)
    assert not list((tmp_path / "result").iterdir())
    assert isinstance(model.config.router, RouterConfig)


def test_weights_of_two_formats_are_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = made_model(tiny_config())
    changed = {**dict(named_state(model))}
    changed["final_norm.weight"] = changed["final_norm.weight"].bfloat16()
    save_model(tmp_path, model.config, changed.items(), tokenizer)
    (tmp_path / "result").mkdir()
    with pytest.raises(CheckpointError, match="all are float32, bfloat16 or float16"):
        write_own_form(tmp_path / "result", tmp_path)
