"""Sparse checkpoints from dense ones: the same logits for every router and layout, and experts that training tells apart."""

from __future__ import annotations

import json
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.checkpoint.upcycling.own import gate_start, write_sparse
from adapt.checkpoint.weights import load_config, load_model
from adapt.core.errors import CheckpointError, ConfigError
from adapt.model.batches import collate
from adapt.model.compared_logits import compared, logits_of
from adapt.model.config import GPTConfig
from adapt.model.gpt import GPT
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, Router, RouterEntry, all_routers
from adapt.model.routers.settings import RouterConfig, SigmoidBiasConfig, Top1Config, Top2Config
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig
from tests.support.dense_checkpoints import make_dense
from tests.support.inner_parts import moe_layers, parameter_of
from tests.support.tiny_models import tiny_config
from tests.support.training_steps import LabelLoss, readings

ROWS = [[3, 50, 7, 9, 11, 2, 30], [5], [17, 4, 8, 15, 16, 23, 42, 8, 4]]


@pytest.fixture(scope="module")
def dense(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return make_dense(tmp_path_factory.mktemp("dense"), ffn_hidden_size=52)


def upcycled(source: Path, place: Path, **options: Any) -> GPT:
    place.mkdir(parents=True)
    write_sparse(place, source, UpcycleOptions(**options))
    model = load_model(place)
    assert isinstance(model, GPT)
    return model


def router_settings() -> dict[str, RouterConfig]:
    """Return the settings of every router, and of the one that can send a token to a single expert with a weight of its own."""
    found = {name: all_routers().get(name).config() for name in all_routers().names()}
    return {**found, "sigmoid_bias with one": SigmoidBiasConfig(experts_per_token=1)}


@pytest.mark.parametrize("name", router_settings())
def test_every_router_answers_as_the_dense_model_did(name: str, dense: Path, tmp_path: Path) -> None:
    expected = logits_of(load_model(dense), ROWS)
    for is_residual, depth, experts in ((False, 0, [4, 6]), (True, 2, [3])):
        model = upcycled(
            dense,
            tmp_path / str(depth),
            experts=experts,
            router=router_settings()[name],
            is_residual=is_residual,
            expert_residual_layers=depth,
        )
        found = compared(expected, logits_of(model, ROWS))
        assert found.relative < 3e-6, found
        assert len({layer.experts.n_experts for layer in moe_layers(model)}) == len(experts)


def test_tokens_go_to_all_experts_of_an_even_gate(dense: Path, tmp_path: Path) -> None:
    model = upcycled(dense, tmp_path / "sparse", experts=[4], router=Top1Config())
    batch = collate([[reading] for reading in readings(LabelLoss.CLM, 40)])
    for report in model(batch.inputs).routing:
        assert int(report.counts_E.min()) > 0
        assert float((report.probs_NE.detach() * 4 - 1).abs().max()) < 2e-5


def test_a_gate_of_random_weights_is_only_left_to_routers_that_normalise() -> None:
    config = tiny_config([4])
    assert not gate_start(_with(config, Top2Config()), 4).is_even
    top1 = gate_start(_with(config, Top1Config()), 6)
    assert top1.is_even and top1.output_factor == 6
    assert gate_start(_with(config, SigmoidBiasConfig(experts_per_token=1)), 4).output_factor == 2


class _Uneven(Router):
    """Gives each token a weight of its own, whatever the gate says."""

    def route(self, x_NH: torch.Tensor, inputs: RouterInputs) -> Routing:
        zeros_N = torch.zeros(len(x_NH), dtype=torch.int64)
        weight_N = 1 + inputs.positions_N.float()
        return Routing(token_K=torch.arange(len(x_NH)), expert_K=zeros_N, weight_K=weight_N, probs_NE=weight_N.unsqueeze(-1))


def test_a_router_whose_weights_add_up_to_nothing_certain_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    entry = RouterEntry(config=Top1Config, build=lambda *_: _Uneven())
    monkeypatch.setitem(ROUTERS._entries, "top1", entry)
    with pytest.raises(ConfigError, match="add up to other sums"):
        gate_start(_with(tiny_config([4]), Top1Config()), 4)


def _with(config: GPTConfig, router: RouterConfig) -> GPTConfig:
    return replace(config, router=router)


@pytest.mark.parametrize("router", [Top1Config(), Top2Config()])
def test_training_tells_experts_apart_and_reaches_the_gates(router: RouterConfig, dense: Path, tmp_path: Path) -> None:
    model = upcycled(dense, tmp_path / "sparse", experts=[4], router=router).train()
    layers = moe_layers(model)
    assert all(torch.equal(expert, layer.experts.up_weight[0]) for layer in layers for expert in layer.experts.up_weight)
    optimizer = torch.optim.AdamW(model.parameters(), lr=1e-3)
    batch = collate([[reading] for reading in readings(LabelLoss.CLM, 24)], step=1, row_keys=list(range(24)))
    gates: list[float] = []
    even = [torch.full((4,), 0.25) for _ in layers]
    weights = ObjectiveConfig()
    for _ in range(3):
        optimizer.zero_grad()
        found = contribution(model, batch, part_counts(model, batch), even, weights, 1)
        text = found.losses_P[:3].sum()  # without the balance loss
        [gradient] = torch.autograd.grad(text, [parameter_of(layers[0].router)], retain_graph=True)
        gates.append(float(gradient.abs().max()))
        found.loss.backward()
        optimizer.step()
    # With weights that sum to 1 equal experts leave a gate without a gradient from text, until the first step.
    assert (gates[0] < 1e-6) is isinstance(router, Top2Config)
    assert min(gates[1:]) > 1e-6
    for layer in layers:
        up_weight = layer.experts.up_weight.detach()
        others = up_weight[1:] - up_weight[0]
        assert float(others.flatten(1).norm(dim=1).min()) > 1e-3


def test_noise_makes_copies_differ_by_what_was_asked_for_and_the_seed_decides(dense: Path, tmp_path: Path) -> None:
    def expert_weights(place: str, **options: Any) -> torch.Tensor:
        model = upcycled(dense, tmp_path / place, experts=[3], **options)
        return moe_layers(model)[0].experts.up_weight.detach()

    plain, noisy = expert_weights("plain"), expert_weights("noisy", noise=0.05)
    share = (noisy - plain).square().mean().sqrt() / plain.square().mean().sqrt()
    assert abs(float(share) - 0.05) < 0.005
    assert not torch.equal(noisy[0], noisy[1])
    assert torch.equal(noisy, expert_weights("again", noise=0.05))
    assert not torch.equal(noisy, expert_weights("other", noise=0.05, seed=1))


def test_weights_of_16_bits_stay_exact_or_are_refused(tmp_path: Path) -> None:
    source = make_dense(tmp_path / "dense", torch.bfloat16)
    expected = logits_of(load_model(source), ROWS)
    model = upcycled(source, tmp_path / "four", experts=[4], router=Top1Config(), is_residual=True)
    assert compared(expected, logits_of(model, ROWS)).relative < 3e-6
    with pytest.raises(ConfigError, match=r"6 experts, router 'top1': weights in torch.bfloat16 times 6 would be rounded"):
        upcycled(source, tmp_path / "six", experts=[6], router=Top1Config())
    upcycled(source, tmp_path / "six, top2", experts=[6], router=Top2Config())


Refused = tuple[dict[str, Any], type[Exception], str]
REFUSALS: dict[str, Refused] = {
    "layers are of Hugging Face models": ({"layers": [1]}, ConfigError, "layers: is for Hugging Face models"),
    "too few counts": ({"experts": [4, 4, 4]}, ConfigError, "has 3 entries"),
    "one expert": ({"experts": [1]}, ConfigError, "neither 0"),
    "no sparse layer": ({"experts": [0]}, ConfigError, "makes no layer sparse"),
    "more experts of a token than there are": (
        {"experts": [2], "router": SigmoidBiasConfig(experts_per_token=3)}, ConfigError, "experts_per_token: 3",
    ),
    "negative noise": ({"noise": -1.0}, ConfigError, "noise: -1.0"),
}  # fmt: skip


@pytest.mark.parametrize("case", REFUSALS)
def test_what_makes_no_model_is_refused_before_anything_is_written(case: str, dense: Path, tmp_path: Path) -> None:
    options, kind, words = REFUSALS[case]
    with pytest.raises(kind, match=words):
        upcycled(dense, tmp_path / "sparse", **options)
    assert not list((tmp_path / "sparse").glob("*.safetensors"))


def test_a_sparse_source_is_refused(dense: Path, tmp_path: Path) -> None:
    upcycled(dense, tmp_path / "sparse", experts=[0, 4])
    assert load_config(tmp_path / "sparse").expert_counts() == (0, 0, 0, 4)
    with pytest.raises(CheckpointError, match="is sparse already"):
        upcycled(tmp_path / "sparse", tmp_path / "again")


def test_the_settings_are_the_dense_ones_but_for_the_experts(dense: Path, tmp_path: Path) -> None:
    upcycled(dense, tmp_path / "sparse", experts=[4])
    before, after = (json.loads((place / "config.json").read_text()) for place in (dense, tmp_path / "sparse"))
    assert {key for key in before if before[key] != after[key]} == {"experts", "router"}
