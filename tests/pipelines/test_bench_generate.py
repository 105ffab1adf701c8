"""The benchmark of generation: options, refusals, and that the ways choose the same tokens; what it measures is never asserted."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch

from adapt.core.precision import Precision
from pipelines.bench import generate
from pipelines.bench.__main__ import main
from pipelines.bench.lm_eval_baseline import gpt2_twin
from tests.support.tiny_models import tiny_config

SIZES = {"rows": 2, "input": 5, "output": 7, "passes": 3}


@pytest.mark.parametrize(
    ("option", "words"),
    [
        ("models=9b", "models=9b: no '9b'; give none, or some of: 0.35b_dense"),
        ("output=0", "at least 1"),
        ("speed=9", "unknown"),
        ("precision=int8", "give one of: bf16, fp32"),
        ("output=5000", "0.35b_dense reads 2048 tokens"),
    ],
)
def test_a_wrong_call_is_one_line(option: str, words: str, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["generate", option]) == 2
    error = capsys.readouterr().err
    assert words in error
    assert error.count("\n") == 1


def test_both_ways_choose_the_same_tokens() -> None:
    model = generate.random_model(tiny_config(experts=[0]), torch.float32, "cpu")
    rows = [[5, 6, 7], [9, 8, 7]]
    found = generate.on_cache(model, rows, 9, "cpu")
    assert [len(added) for added in found] == [9, 9]
    assert found[0] != found[1]
    assert generate.by_transformers(gpt2_twin(model), rows, 9, "cpu") == found


@pytest.mark.parametrize("experts", [[0], [4]])
def test_a_model_becomes_a_row(experts: list[int]) -> None:
    config = replace(tiny_config(experts=experts, is_residual=False), even_routing=True)
    row = generate.measured("tiny", config, SIZES, ["transformers", "no_cache"], 1, Precision.FP32, "cpu")
    assert all(row[f"{way} ms"] > 0 for way in ("cache", "transformers", "no_cache"))
    assert {"transformers/cache", "no_cache/cache"} <= set(row)


def test_a_preset_reads_and_routes_evenly() -> None:
    config = generate._config("7m_moe8")
    assert config.even_routing
    assert config.vocab_size == 50_000
