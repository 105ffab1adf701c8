"""The contract that every registered router keeps: per token, in fp32, causal, differentiable."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import Router, RouterConfig, RouterEntry, all_routers, build_router

N_TOKENS, HIDDEN, EXPERTS = 23, 12, 5
every_router = pytest.mark.parametrize("name", list(all_routers()))


def made(name: str) -> Router:
    router = build_router(all_routers().get(name).config(name=name), HIDDEN, EXPERTS)
    generator = torch.Generator().manual_seed(11)
    with torch.no_grad():
        for parameter in router.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return router.eval()


def hidden_states(n_tokens: int = N_TOKENS, seed: int = 12) -> Tensor:
    return torch.randn(n_tokens, HIDDEN, generator=torch.Generator().manual_seed(seed))


def described(n_tokens: int = N_TOKENS, seed: int = 13) -> RouterInputs:
    """Return ids for tokens of three sequences, one domain each."""
    generator = torch.Generator().manual_seed(seed)
    sequences_N = torch.arange(n_tokens) // 9
    return RouterInputs(
        token_ids_N=torch.randint(0, 50, (n_tokens,), generator=generator),
        sequence_ids_N=sequences_N,
        domain_ids_N=sequences_N,
        step=0,
    )


def some_of(inputs: RouterInputs, chosen: Tensor) -> RouterInputs:
    assert inputs.domain_ids_N is not None
    return RouterInputs(
        token_ids_N=inputs.token_ids_N[chosen],
        sequence_ids_N=inputs.sequence_ids_N[chosen],
        domain_ids_N=inputs.domain_ids_N[chosen],
        step=inputs.step,
    )


def decisions(routing: Routing, n_tokens: int) -> list[dict[int, float]]:
    """Return, for each token, the experts it goes to and their weights."""
    found: list[dict[int, float]] = [{} for _ in range(n_tokens)]
    for token, expert, weight in zip(routing.token_K.tolist(), routing.expert_K.tolist(), routing.weight_K.tolist(), strict=True):
        found[token][expert] = weight
    return found


def assert_same_decisions(found: list[dict[int, float]], wanted: list[dict[int, float]]) -> None:
    assert [set(experts) for experts in found] == [set(experts) for experts in wanted]
    for one, other in zip(found, wanted, strict=True):
        for expert in one:
            assert one[expert] == pytest.approx(other[expert], abs=1e-6)


@every_router
def test_a_decision_at_inference_is_unchanged_by_neighbours(name: str) -> None:
    router, x_NH, inputs = made(name), hidden_states(), described()
    together = decisions(router.route(x_NH, inputs), N_TOKENS)
    alone = []
    for token in range(N_TOKENS):
        here = torch.tensor([token])
        alone += decisions(router.route(x_NH[here], some_of(inputs, here)), 1)
    assert_same_decisions(together, alone)


@every_router
def test_a_router_is_causal(name: str) -> None:
    router, inputs = made(name), described()
    x_NH = hidden_states()
    changed_NH = torch.cat([x_NH[:10], 5.0 * hidden_states(seed=99)[10:]])
    later = described(seed=77)
    changed_inputs = RouterInputs(
        token_ids_N=torch.cat([inputs.token_ids_N[:10], later.token_ids_N[10:]]),
        sequence_ids_N=inputs.sequence_ids_N,
        domain_ids_N=inputs.domain_ids_N,
        step=inputs.step,
    )
    before = decisions(router.route(x_NH, inputs), N_TOKENS)
    after = decisions(router.route(changed_NH, changed_inputs), N_TOKENS)
    assert_same_decisions(after[:10], before[:10])


@every_router
def test_the_order_of_tokens_changes_no_decision(name: str) -> None:
    router, x_NH, inputs = made(name), hidden_states(), described()
    order = torch.randperm(N_TOKENS, generator=torch.Generator().manual_seed(5))
    straight = decisions(router.route(x_NH, inputs), N_TOKENS)
    shuffled = decisions(router.route(x_NH[order], some_of(inputs, order)), N_TOKENS)
    assert_same_decisions(shuffled, [straight[int(token)] for token in order])


@every_router
def test_weights_lie_between_0_and_1_and_probabilities_sum_to_1_in_fp32(name: str) -> None:
    routing = made(name).route(hidden_states(), described())
    assert bool(((routing.weight_K > 0) & (routing.weight_K <= 1)).all())
    assert routing.probs_NE.dtype is torch.float32
    assert routing.probs_NE.shape == (N_TOKENS, EXPERTS)
    torch.testing.assert_close(routing.probs_NE.sum(-1), torch.ones(N_TOKENS))


@every_router
def test_pairs_name_tokens_and_experts_that_exist(name: str) -> None:
    routing = made(name).route(hidden_states(), described())
    assert routing.token_K.shape == routing.expert_K.shape == routing.weight_K.shape
    assert set(routing.token_K.tolist()) <= set(range(N_TOKENS))
    assert set(routing.expert_K.tolist()) <= set(range(EXPERTS))
    pairs = list(zip(routing.token_K.tolist(), routing.expert_K.tolist(), strict=True))
    assert len(pairs) == len(set(pairs))


@every_router
def test_zero_tokens_make_an_empty_routing(name: str) -> None:
    routing = made(name).route(hidden_states(0), described(0))
    assert len(routing.token_K) == len(routing.expert_K) == len(routing.weight_K) == 0
    assert routing.probs_NE.shape == (0, EXPERTS)


@every_router
def test_bf16_hidden_states_still_give_fp32_probabilities(name: str) -> None:
    router = made(name)
    x_NH = hidden_states().bfloat16()
    routing = router.route(x_NH, described())
    in_fp32 = router.route(x_NH.float(), described())
    assert routing.probs_NE.dtype is torch.float32
    assert routing.weight_K.dtype is torch.float32
    assert_same_decisions(decisions(routing, N_TOKENS), decisions(in_fp32, N_TOKENS))
    torch.testing.assert_close(routing.probs_NE, in_fp32.probs_NE)


@every_router
def test_a_gradient_reaches_the_router_and_its_input(name: str) -> None:
    router, x_NH = made(name).train(), hidden_states().requires_grad_()
    parameters = list(router.parameters())
    if not parameters:
        pytest.skip("a fixed map has nothing to learn")
    routing = router.route(x_NH, described())
    torch.manual_seed(6)
    (routing.weight_K * torch.rand(routing.weight_K.shape)).sum().backward()
    assert any(p.grad is not None and bool((p.grad != 0).any()) for p in parameters)
    assert x_NH.grad is not None
    assert bool((x_NH.grad != 0).any())


@every_router
def test_a_router_is_made_from_its_own_settings(name: str) -> None:
    assert RouterConfig.choices()[name] is all_routers().get(name).config
    assert all_routers().get(name).config().name == name


def test_top1_router_takes_the_expert_with_the_largest_gate_probability() -> None:
    routing = made("top1").route(hidden_states(), described())
    assert routing.token_K.tolist() == list(range(N_TOKENS))
    torch.testing.assert_close(routing.expert_K, routing.probs_NE.argmax(-1))
    torch.testing.assert_close(routing.weight_K, routing.probs_NE.amax(-1))


def test_a_duplicate_registration_is_refused() -> None:
    taken = all_routers().get("top1")
    with pytest.raises(ConfigError, match="router 'top1' is registered twice"):
        all_routers().register("top1")(RouterEntry(config=taken.config, build=taken.build))
    assert all_routers().get("top1") is taken


def test_an_unknown_router_gets_a_suggestion() -> None:
    with pytest.raises(ConfigError, match="did you mean 'top1'"):
        build_router(RouterConfig(name="top-1"), HIDDEN, EXPERTS)
