"""What each router promises beyond the contract: even loads, fixed maps, margins that anneal, noise that is keyed, refusals."""

from __future__ import annotations

import math
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.core.typed import from_plain
from adapt.model.gpt import GPT, GPTConfig, materialize
from adapt.model.hashing import mixed, uniform
from adapt.model.inputs import ModelInputs, RouterInputs
from adapt.model.routers.contract import Router, RouterConfig, all_routers, build_router
from adapt.model.routers.expert_choice import ExpertChoiceConfig
from adapt.model.routers.hash import HashConfig
from adapt.model.routers.large_margin import LargeMarginConfig, LargeMarginRouter, MarginEffect
from adapt.model.routers.margin import MarginTarget, _psi
from adapt.model.routers.random_groups import RandomGroupsConfig
from adapt.model.routers.s_base import SBaseConfig
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top1 import Top1Config
from tests.support.inner_parts import buffer_of, moe_layers, parameter_of
from tests.support.tiny_models import tiny_config

HIDDEN, EXPERTS = 8, 6


def made(config: RouterConfig) -> Router:
    """Return a router in training whose gate much prefers two experts."""
    router = build_router(config, HIDDEN, EXPERTS).train()
    generator = torch.Generator().manual_seed(4)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(0.0, 0.3, generator=generator)
        if hasattr(router, "weight"):
            parameter_of(router)[:2] += 0.5
    return router


def tokens(n_tokens: int = 90, n_sequences: int = 2, step: int = 0, domain: int = 0) -> tuple[Tensor, RouterInputs]:
    x_NH = torch.randn(n_tokens, HIDDEN, generator=torch.Generator().manual_seed(5)) + 0.4
    order = torch.arange(n_tokens)
    return x_NH, RouterInputs(
        token_ids_N=order % 40,
        sequence_ids_N=order * n_sequences // n_tokens,
        positions_N=order % (n_tokens // n_sequences),
        domain_ids_N=torch.full_like(order, domain),
        step=step,
        noise_keys_N=mixed(order, salt=3),
    )


def laid_out(ids_BT: Tensor, row_keys_B: Tensor | None = None) -> ModelInputs:
    """Return full rows, each one document."""
    ones = torch.ones_like(ids_BT)
    positions = torch.arange(ids_BT.shape[1]).expand_as(ids_BT)
    return ModelInputs(ids_BT=ids_BT, positions_BT=positions, documents_BT=ones, domains_BT=ones, row_keys_B=row_keys_B)


def max_load(expert_K: Tensor) -> float:
    counts_E = torch.bincount(expert_K, minlength=EXPERTS)
    return float(counts_E.max() / counts_E.double().mean())


@pytest.mark.parametrize("k", [1, 2])
def test_biases_even_out_a_lopsided_gate(k: int) -> None:
    router = made(SigmoidBiasConfig(experts_per_token=k, rate=0.01))
    x_NH, inputs = tokens(600)
    assert max_load(router.route(x_NH, inputs).expert_K) > 2
    for _ in range(200):
        router.after_step(torch.bincount(router.route(x_NH, inputs).expert_K, minlength=EXPERTS).double())
    routing = router.route(x_NH, inputs)
    assert max_load(routing.expert_K) < 1.15
    unbiased = made(SigmoidBiasConfig(experts_per_token=k)).route(x_NH, inputs)
    torch.testing.assert_close(routing.probs_NE, unbiased.probs_NE)  # a bias selects, and changes no weight


def test_a_step_without_tokens_moves_no_bias() -> None:
    router = made(SigmoidBiasConfig())
    router.after_step(torch.zeros(EXPERTS, dtype=torch.float64))
    assert not buffer_of(router, "selection_bias").any()


def test_sinkhorn_spreads_every_sequence_evenly_where_the_arg_max_does_not() -> None:
    router = made(SBaseConfig())
    x_NH, inputs = tokens()
    training = router.route(x_NH, inputs)
    for sequence in range(2):
        assert max_load(training.expert_K[inputs.sequence_ids_N == sequence]) < 1.4
    assert max_load(router.eval().route(x_NH, inputs).expert_K) > 2


@pytest.mark.parametrize(("picks", "per_expert"), [(2.0, 15), (1.0, 8), (0.01, 1), (100.0, 45)])
def test_every_expert_picks_the_same_number_of_tokens_of_every_sequence(picks: float, per_expert: int) -> None:
    x_NH, inputs = tokens()
    routing = made(ExpertChoiceConfig(picks_per_token=picks)).route(x_NH, inputs)
    for sequence in range(2):
        picked = routing.expert_K[inputs.sequence_ids_N[routing.token_K] == sequence]
        assert torch.bincount(picked, minlength=EXPERTS).tolist() == [per_expert] * EXPERTS


def test_hash_sends_an_id_to_one_expert_and_ids_to_all_evenly() -> None:
    x_NH, inputs = tokens()
    expert_N = made(HashConfig()).route(x_NH, inputs).expert_K
    for token_id in range(40):
        assert len(expert_N[inputs.token_ids_N == token_id].unique()) == 1
    other_N = made(HashConfig(seed=1)).route(x_NH, inputs).expert_K
    assert 0.5 < float((expert_N != other_N).double().mean()) < 1
    counts_E = torch.bincount(mixed(torch.arange(60_000), 0) % EXPERTS)
    assert float((counts_E - 10_000).abs().max()) < 400


def test_random_groups_keep_a_domain_within_its_group() -> None:
    router = made(RandomGroupsConfig(groups=2))
    seen = [set(router.route(*tokens(domain=domain)).expert_K.tolist()) for domain in range(3)]
    assert seen == [{0, 1, 2}, {3, 4, 5}, {0, 1, 2}]


@pytest.mark.parametrize("margin", [1, 2, 3, 4, 5])
def test_the_margin_form_falls_with_the_angle_without_a_jump(margin: int) -> None:
    theta = torch.linspace(0.0, torch.pi, 2001, dtype=torch.float64)
    psi = _psi(theta.cos(), margin)
    falls = psi[:-1] - psi[1:]
    assert float(falls.min()) >= -1e-9
    assert float(falls.max()) < 2 * margin * torch.pi / 2000
    assert float(psi[0]) == pytest.approx(1.0)
    assert float(psi[-1]) == pytest.approx(1 - 2 * margin)
    assert bool((psi <= theta.cos() + 1e-9).all())


def test_the_margin_is_annealed_by_the_step_and_changes_no_route() -> None:
    plain = made(Top1Config()).route(*tokens())
    early, late = (made(LargeMarginConfig(margin=4)).route(*tokens(step=step)) for step in (0, 2000))
    for routing in (early, late):
        assert torch.equal(routing.expert_K, plain.expert_K)
        torch.testing.assert_close(routing.probs_NE, plain.probs_NE)
    near, far = ((plain.weight_K - routing.weight_K).mean().item() for routing in (early, late))
    assert 0 < near < 0.05 < far
    assert early.losses["margin"].item() < late.losses["margin"].item()


@pytest.mark.parametrize(
    ("effect", "has_loss", "changes_weights"),
    [(MarginEffect.GATE, False, True), (MarginEffect.LOSS, True, False), (MarginEffect.BOTH, True, True)],
)
def test_the_margin_has_the_effect_that_was_asked_for(effect: MarginEffect, has_loss: bool, changes_weights: bool) -> None:
    router = made(LargeMarginConfig(beta_start=0.0, effect=effect, loss_weight=0.3))
    routing, plain = router.route(*tokens()), made(Top1Config()).route(*tokens())
    assert router.traits.loss_weights == ({"margin": 0.3} if has_loss else {})
    assert ("margin" in routing.losses) is has_loss
    assert torch.equal(routing.weight_K, plain.weight_K) is not changes_weights


def test_round_robin_targets_follow_the_position_in_the_sequence() -> None:
    router = made(LargeMarginConfig(target=MarginTarget.ROUND_ROBIN))
    x_NH, inputs = tokens()
    assert isinstance(router, LargeMarginRouter)
    _, target_N = router.margin_logits(x_NH, router.logits(x_NH), inputs)
    assert target_N.tolist() == [n % 45 % EXPERTS for n in range(90)]


def test_noise_follows_its_key_and_is_even_between_0_and_1() -> None:
    keys_N = mixed(torch.arange(500), salt=1)
    draws = uniform(keys_N, 40)
    assert torch.equal(draws[7:9], uniform(keys_N[7:9], 40))
    assert float(draws.min()) >= 0
    assert float(draws.max()) < 1
    assert abs(float(draws.mean()) - 0.5) < 0.01
    assert abs(float(draws.var()) - 1 / 12) < 0.002
    assert len(draws.flatten().unique()) > 0.99 * draws.numel()


def test_jitter_acts_in_training_alone_and_differs_by_layer_row_and_position() -> None:
    model = materialize(GPT(tiny_config([4], router=Top1Config(jitter=0.5))), seed=1)
    inputs = laid_out(torch.full((2, 5), 7), torch.tensor([3, 4]))
    described_by = [layer._router_inputs(inputs, torch.arange(10)) for layer in moe_layers(model)]
    keys = [found.noise_keys_N for found in described_by if found.noise_keys_N is not None]
    assert len(torch.cat(keys).unique()) == 2 * 2 * 5
    router, (x_NH, described) = made(Top1Config(jitter=0.5)), tokens()
    noisy, again, plain = router.route(x_NH, described), router.route(x_NH, described), router.eval().route(x_NH, described)
    assert torch.equal(noisy.probs_NE, again.probs_NE)
    assert not torch.equal(noisy.probs_NE, plain.probs_NE)


@pytest.mark.parametrize(
    ("router", "message"),
    [
        ({"name": "top1", "jitter": 1.0}, "jitter"),
        ({"name": "top2", "z_loss_weight": -1.0}, "z_loss_weight"),
        ({"name": "large_margin", "margin": 0}, "margin: .* out of range; give 1 to 16"),
        ({"name": "large_margin", "margin": 10**9}, "margin: .* out of range; give 1 to 16"),
        ({"name": "large_margin", "target": "first"}, "routed, round_robin"),
        ({"name": "expert_choice", "picks_per_token": 0}, "picks_per_token"),
        ({"name": "s_base", "temperature": 0}, "temperature"),
        ({"name": "sigmoid_bias", "rate": -0.1}, "rate"),
        ({"name": "top1", "z_loss_weight": math.nan}, "z_loss_weight"),
        ({"name": "large_margin", "beta_start": math.inf}, "beta_start: inf"),
        ({"name": "large_margin", "loss_weight": math.nan}, "loss_weight: nan"),
        ({"name": "expert_choice", "picks_per_token": math.nan}, "picks_per_token: nan"),
        ({"name": "s_base", "temperature": math.nan}, "temperature"),
        ({"name": "sigmoid_bias", "rate": math.nan}, "rate: nan"),
        ({"name": "sigmoid_bias", "experts_per_token": 5}, "not from 1 to the 4 experts"),
        ({"name": "random_groups", "groups": 5}, "not from 1 to the 4 experts"),
        ({"name": "hard", "seed": 1}, "seed: unknown key"),
    ],
)
def test_settings_that_cannot_work_are_refused(router: dict[str, Any], message: str) -> None:
    plain = {"n_layers": 2, "hidden_size": 8, "n_heads": 2, "context_length": 8, "vocab_size": 9, "experts": [4], "router": router}
    with pytest.raises(ConfigError, match=message):
        GPT(from_plain(GPTConfig, plain, "model"))


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf])
@pytest.mark.parametrize("setting", ["capacity_factor", "norm_eps"])
def test_what_must_be_above_0_is_refused_otherwise(setting: str, value: float) -> None:
    changes: dict[str, Any] = {setting: value}
    with pytest.raises(ConfigError, match=rf"model\.{setting}: {value} is out of range; give .*more than 0"):
        GPT(tiny_config(**changes))


def test_a_negative_spread_of_the_first_weights_is_refused() -> None:
    with pytest.raises(ConfigError, match=r"model\.init_std: -1\.0"):
        GPT(tiny_config(init_std=-1.0))


@pytest.mark.parametrize("name", list(all_routers()))
def test_a_model_scores_the_same_bits_whatever_follows_and_stands_beside(name: str) -> None:
    config = tiny_config([4], router=all_routers().get(name).config(), capacity_factor=0.5, vocab_size=50)
    model = materialize(GPT(config), seed=2).eval()
    generator = torch.Generator().manual_seed(3)
    ids_BT = torch.randint(0, 50, (3, 12), generator=generator)
    others_BT = ids_BT.clone()
    others_BT[0, 5:], others_BT[1:] = (ids_BT[0, 5:] + 1) % 50, (ids_BT[1:] + 7) % 50

    def hidden(ids: Tensor) -> Tensor:
        with torch.no_grad():
            return model(laid_out(ids)).hidden_BTH

    assert torch.equal(hidden(ids_BT)[0, :5], hidden(others_BT)[0, :5])
