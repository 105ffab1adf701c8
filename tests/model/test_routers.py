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
        positions_N=torch.arange(n_tokens) % 9,
        domain_ids_N=sequences_N,
        step=0,
        noise_keys_N=torch.arange(n_tokens),
    )


def some_of(inputs: RouterInputs, chosen: Tensor) -> RouterInputs:
    return RouterInputs(
        token_ids_N=inputs.token_ids_N[chosen],
        sequence_ids_N=inputs.sequence_ids_N[chosen],
        positions_N=inputs.positions_N[chosen],
        domain_ids_N=inputs.domain_ids_N[chosen],
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
def test_a_decision_at_inference_is_the_same_bits_whatever_the_neighbours_are(name: str) -> None:
    router, x_NH, inputs, others = made(name), hidden_states(), described(), described(seed=77)
    routing = router.route(x_NH, inputs)
    for token in range(N_TOKENS):
        is_it = torch.arange(N_TOKENS) == token
        changed = RouterInputs(
            token_ids_N=torch.where(is_it, inputs.token_ids_N, others.token_ids_N),
            sequence_ids_N=inputs.sequence_ids_N,
            positions_N=inputs.positions_N,
            domain_ids_N=torch.where(is_it, inputs.domain_ids_N, inputs.domain_ids_N + 1),
        )
        found = router.route(torch.where(is_it.unsqueeze(-1), x_NH, 3.0 * hidden_states(seed=99)), changed)
        for part in ("expert_K", "weight_K"):
            assert torch.equal(getattr(found, part)[found.token_K == token], getattr(routing, part)[routing.token_K == token])


@every_router
def test_a_router_has_its_losses_in_training_and_none_at_inference(name: str) -> None:
    router, x_NH = made(name), hidden_states()
    assert router.route(x_NH, described()).losses == {}
    losses = router.train().route(x_NH, described()).losses
    assert set(losses) == set(router.traits.loss_weights)
    assert all(loss.shape == () and loss.dtype is torch.float32 for loss in losses.values())


@every_router
def test_only_a_router_that_says_so_looks_ahead_in_training(name: str) -> None:
    router, inputs, x_NH = made(name).train(), described(), hidden_states()
    changed_NH = torch.cat([x_NH[:14], 5.0 * hidden_states(seed=99)[14:]])
    before = decisions(router.route(x_NH, inputs), N_TOKENS)[:14]
    after = decisions(router.route(changed_NH, inputs), N_TOKENS)[:14]
    if router.traits.looks_ahead:
        assert [set(experts) for experts in before] != [set(experts) for experts in after]
    else:
        assert_same_decisions(after, before)
    assert_same_decisions(after[:9], before[:9])  # the first sequence is over before anything changes


@every_router
def test_casting_a_router_leaves_its_state_exact(name: str) -> None:
    router = made(name)
    before = {key: buffer.clone().fill_(1 / 3) for key, buffer in router.named_buffers()}
    for key, buffer in router.named_buffers():
        buffer.copy_(before[key])
    for key, buffer in router.bfloat16().named_buffers():
        assert torch.equal(buffer, before[key])


@every_router
def test_a_router_is_causal(name: str) -> None:
    router, inputs = made(name), described()
    x_NH = hidden_states()
    changed_NH = torch.cat([x_NH[:10], 5.0 * hidden_states(seed=99)[10:]])
    later = described(seed=77)
    changed_inputs = RouterInputs(
        token_ids_N=torch.cat([inputs.token_ids_N[:10], later.token_ids_N[10:]]),
        sequence_ids_N=inputs.sequence_ids_N,
        positions_N=inputs.positions_N,
        domain_ids_N=inputs.domain_ids_N,
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
