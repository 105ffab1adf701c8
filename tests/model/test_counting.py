"""Parameter totals of the shipped model sizes against those of the articles, with nothing allocated."""

from __future__ import annotations

from typing import Any

import pytest
import yaml

from adapt.model.counting import KINDS, ParameterCounts, count_parameters, kind_of
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from tests.support.tiny_models import ROOT, tiny_config

BILLIONS = {
    "125m_moe64": "1.910",
    "0.35b_moe64": "6.702",
    "0.35b_moe128": "13.149",
    "1.3b_dense": "1.315",
    "1.3b_moe32": "13.802",
    "1.3b_moe64": "26.692",
    "1.3b_moe128": "52.471",
    "2.7b_dense": "2.651",
    "2.7b_moe64": "55.515",
    "3.6b_dense": "3.558",
    "3.6b_moe64": "74.921",
    "6.7b_dense": "6.657",
    "13b_study": "13.149",
    "16b_pyramid": "16.353",
}


def shipped(name: str) -> GPTConfig:
    values: dict[str, Any] = yaml.safe_load((ROOT / "conf" / "model" / f"{name}.yaml").read_text(encoding="utf-8"))
    return GPTConfig(**values)


def billions(count: int, digits: int = 3) -> str:
    return f"{count / 1e9:.{digits}f}"


def layers_by_hand(config: GPTConfig) -> int:
    """Count from the sizes alone, without looking at the model."""
    h, f = config.hidden_size, config.ffn_multiple * config.hidden_size
    mlp = 2 * h * f + f + h
    total = (config.vocab_size + config.context_length) * h + 2 * h
    for n_experts in config.expert_counts():
        total += 4 * h * h + 4 * h + 2 * 2 * h
        total += n_experts * (mlp + h) if n_experts else mlp
        if n_experts and config.is_residual:
            total += mlp + 2 * h + 2
    return total


@pytest.mark.parametrize("name", BILLIONS)
def test_a_shipped_model_has_the_published_total(name: str) -> None:
    assert billions(count_parameters(shipped(name)).total) == BILLIONS[name]


def test_every_shipped_size_has_a_total_here() -> None:
    sized = {path.stem for path in (ROOT / "conf" / "model").glob("*.yaml")} - {
        "tiny",
        "small",
        "7m_dense",
        "7m_moe4",
        "7m_moe8",
        "hf",
    }
    assert sized - set(BILLIONS) == {"0.35b_dense"}


@pytest.mark.parametrize("name", ["16b_pyramid", "125m_moe64", "1.3b_dense"])
def test_totals_equal_a_count_by_hand_and_kinds_sum_to_them(name: str) -> None:
    counts = count_parameters(shipped(name))
    assert tuple(counts.by_kind) == KINDS
    assert sum(counts.by_kind.values()) == counts.total == layers_by_hand(shipped(name))
    assert all(count >= 0 for count in counts.by_kind.values())


def test_the_pyramid_has_its_published_active_and_dense_parts() -> None:
    counts = count_parameters(shipped("16b_pyramid"))
    assert billions(counts.active, 2) == "1.72"
    assert billions(counts.dense) == "1.315"
    assert counts.dense == count_parameters(shipped("1.3b_dense")).total
    assert counts.by_kind["experts"] // 448 == 33_564_672


def test_a_dense_model_is_active_and_dense_throughout() -> None:
    counts = count_parameters(shipped("1.3b_dense"))
    assert counts.total == counts.active == counts.dense
    assert counts.by_kind["experts"] == counts.by_kind["router"] == counts.by_kind["residual mix"] == 0


def test_active_grows_by_one_expert_a_layer_with_each_expert_a_token_uses() -> None:
    one, two = (count_parameters(tiny_config([4, 8], router=SigmoidBiasConfig(experts_per_token=k))) for k in (1, 2))
    per_expert = one.by_kind["experts"] // 12
    assert two.active - one.active == 2 * per_expert
    assert one.total == two.total


def test_counting_allocates_nothing() -> None:
    model = GPT(shipped("3.6b_moe64"))
    assert {parameter.device.type for parameter in model.parameters()} == {"meta"}
    assert list(model.buffers()) == []


def test_counts_are_those_of_a_model_in_memory() -> None:
    config = tiny_config([2, 3])
    model = materialize(GPT(config), seed=0)
    counts: ParameterCounts = count_parameters(config)
    assert counts.total == sum(parameter.numel() for parameter in model.parameters()) == layers_by_hand(config)


@pytest.mark.parametrize(
    ("name", "kind"),
    [
        ("embedding.weight", "embedding"),
        ("positions.weight", "embedding"),
        ("blocks.0.attention.qkv.weight", "attention"),
        ("blocks.0.attention_norm.bias", "norm"),
        ("blocks.0.mlp.up.weight", "mlp"),
        ("blocks.1.mlp_norm.weight", "norm"),
        ("blocks.1.mlp.router.weight", "router"),
        ("blocks.1.mlp.experts.up_weight", "experts"),
        ("blocks.1.mlp.residual_mlp.down.bias", "mlp"),
        ("blocks.1.mlp.residual_mix.weight", "residual mix"),
        ("final_norm.weight", "norm"),
    ],
)
def test_a_parameter_belongs_to_one_kind_by_its_name(name: str, kind: str) -> None:
    assert name in dict(GPT(tiny_config([4])).named_parameters())
    assert kind_of(name) == kind
