"""The stacked experts against a reference that runs one token at a time, outputs and every gradient."""

from __future__ import annotations

from dataclasses import dataclass, replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import adapt.model.experts
import adapt.model.per_expert_mlp
from adapt.model.experts import Experts
from adapt.model.grouped_gemm import torch_gemm

PARAMETERS = ("up_weight", "up_bias", "down_weight", "down_bias")


@dataclass(frozen=True, kw_only=True)
class Case:
    """Sizes, and the (token, expert) pairs in the order the router gave them."""

    n_tokens: int
    n_experts: int
    hidden: int
    width: int
    pairs: tuple[tuple[int, int], ...]


CASES = {
    "odd sizes": Case(
        n_tokens=11, n_experts=5, hidden=7, width=13, pairs=tuple((t, e) for t, e in enumerate([3, 0, 4, 4, 1, 2, 0, 3, 3, 1, 2]))
    ),
    "empty experts": Case(n_tokens=5, n_experts=7, hidden=3, width=9, pairs=((0, 5), (1, 2), (2, 5), (3, 2), (4, 5))),
    "one token": Case(n_tokens=1, n_experts=3, hidden=5, width=11, pairs=((0, 1),)),
    "zero tokens": Case(n_tokens=0, n_experts=3, hidden=5, width=7, pairs=()),
    "all tokens on one expert": Case(n_tokens=9, n_experts=4, hidden=5, width=3, pairs=tuple((t, 2) for t in range(9))),
    "all tokens on the last expert": Case(n_tokens=3, n_experts=4, hidden=5, width=3, pairs=tuple((t, 3) for t in range(3))),
    "a token sent to two experts": Case(
        n_tokens=4, n_experts=3, hidden=5, width=7, pairs=((2, 1), (0, 0), (2, 0), (1, 1), (3, 2), (0, 2))
    ),
    "a token sent nowhere": Case(n_tokens=4, n_experts=3, hidden=5, width=7, pairs=((3, 1), (0, 2))),
}


def made(case: Case) -> Experts:
    experts = Experts(case.n_experts, case.hidden, case.width)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for parameter in experts.parameters():
            parameter.normal_(0.0, 0.5, generator=generator)
    return experts


def inputs(case: Case) -> tuple[Tensor, Tensor, Tensor, Tensor]:
    generator = torch.Generator().manual_seed(8)
    token_K = torch.tensor([t for t, _ in case.pairs], dtype=torch.int64)
    expert_K = torch.tensor([e for _, e in case.pairs], dtype=torch.int64)
    x_NH = torch.randn(case.n_tokens, case.hidden, generator=generator).requires_grad_()
    weight_K = torch.rand(len(case.pairs), generator=generator).requires_grad_()
    return x_NH, token_K, expert_K, weight_K


def one_token_at_a_time(experts: Experts, x_NH: Tensor, token_K: Tensor, expert_K: Tensor, weight_K: Tensor) -> Tensor:
    """Run each pair on its own, by indexing under autograd."""
    rows = [torch.zeros(x_NH.shape[1]) for _ in range(len(x_NH))]
    for k in range(len(token_K)):
        token, expert = int(token_K[k]), int(expert_K[k])
        inner = experts.up_weight[expert] @ x_NH[token] + experts.up_bias[expert]
        outer = experts.down_weight[expert] @ functional.gelu(inner, approximate="tanh") + experts.down_bias[expert]
        rows[token] = rows[token] + weight_K[k] * outer
    return torch.stack(rows) if rows else x_NH * 0.0


def gradients(out_NH: Tensor, experts: Experts, x_NH: Tensor, weight_K: Tensor) -> dict[str, Tensor]:
    """Return the gradients of a loss that is curved in the output; zeros for what a result does not depend on."""
    generator = torch.Generator().manual_seed(9)
    loss = (out_NH * torch.randn(out_NH.shape, generator=generator)).sum() + out_NH.pow(2).sum()
    wanted = {"x": x_NH, "weights": weight_K, **dict(experts.named_parameters())}
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True)
    return {name: torch.zeros_like(wanted[name]) if grad is None else grad for name, grad in zip(wanted, found, strict=True)}


@pytest.mark.parametrize("kept_share", [0.0, 1e9], ids=["computed again", "kept"])
@pytest.mark.parametrize("group_share", [0.0, 0.05, 1e9], ids=["one by one", "in groups", "all at once"])
@pytest.mark.parametrize("name", CASES)
def test_experts_equal_a_per_token_reference_in_outputs_and_every_gradient(
    name: str, group_share: float, kept_share: float, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(adapt.model.per_expert_mlp, "_GROUP_SHARE", group_share)
    monkeypatch.setattr(adapt.model.per_expert_mlp, "_KEPT_SHARE", kept_share)
    case = CASES[name]
    experts = made(case)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    out_NH, counts_E = experts(x_NH, token_K, expert_K, weight_K)
    reference_NH = one_token_at_a_time(experts, x_NH, token_K, expert_K, weight_K)
    torch.testing.assert_close(out_NH, reference_NH, atol=1e-5, rtol=1e-5)
    assert counts_E.tolist() == [sum(e == expert for _, e in case.pairs) for expert in range(case.n_experts)]
    found, wanted = gradients(out_NH, experts, x_NH, weight_K), gradients(reference_NH, experts, x_NH, weight_K)
    assert set(found) == {"x", "weights", *PARAMETERS}
    for key in wanted:
        torch.testing.assert_close(found[key], wanted[key], atol=1e-5, rtol=1e-5, msg=f"{key}: {{}}".format)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize("name", CASES)
def test_one_kernel_for_all_experts_computes_what_the_loop_does(
    name: str, dtype: torch.dtype, monkeypatch: pytest.MonkeyPatch
) -> None:
    case = replace(CASES[name], hidden=8, width=16)  # rows of 16 bytes and more
    experts = made(case).to(dtype)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    x_NH = x_NH.detach().to(dtype).requires_grad_()
    share = 1e-5 if dtype is torch.float32 else 0.02  # of the largest value
    wanted_NH, _ = experts(x_NH, token_K, expert_K, weight_K)
    monkeypatch.setattr(adapt.model.experts, "gemm_for", lambda x, up, brought: torch_gemm)
    out_NH, counts_E = experts(x_NH, token_K, expert_K, weight_K)
    found = {"out": out_NH, **gradients(out_NH, experts, x_NH, weight_K)}
    wanted = {"out": wanted_NH, **gradients(wanted_NH, experts, x_NH, weight_K)}
    for key, value in wanted.items():
        largest = value.abs().max().item() if value.numel() else 0.0
        assert ((found[key] - value).abs() <= share * largest).all(), key
    for key in PARAMETERS:
        assert not found[key][counts_E == 0].any(), key


@pytest.mark.parametrize("name", CASES)
def test_every_expert_gets_a_gradient_and_it_is_zero_without_tokens(name: str) -> None:
    case = CASES[name]
    experts = made(case)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    out_NH, counts_E = experts(x_NH, token_K, expert_K, weight_K)
    out_NH.sum().backward()
    for parameter in experts.parameters():
        assert parameter.grad is not None
        assert parameter.grad.shape == parameter.shape
        per_expert_E = parameter.grad.flatten(1).abs().sum(-1)
        assert bool(torch.isfinite(per_expert_E).all())
        assert bool((per_expert_E[counts_E == 0] == 0).all())
        assert bool((per_expert_E[counts_E > 0] > 0).all())


@pytest.mark.parametrize("name", CASES)
def test_renaming_the_experts_changes_no_output(name: str) -> None:
    case = CASES[name]
    experts, renamed = made(case), made(case)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    old_of_new = torch.randperm(case.n_experts, generator=torch.Generator().manual_seed(3))
    with torch.no_grad():
        for source, target in zip(experts.parameters(), renamed.parameters(), strict=True):
            target.copy_(source[old_of_new])
    out_NH, counts_E = experts(x_NH, token_K, expert_K, weight_K)
    again_NH, counts_again_E = renamed(x_NH, token_K, old_of_new.argsort()[expert_K], weight_K)
    torch.testing.assert_close(again_NH, out_NH, atol=1e-5, rtol=1e-5)
    assert counts_again_E.tolist() == counts_E[old_of_new].tolist()


def test_the_order_of_routed_pairs_changes_no_output() -> None:
    case = CASES["a token sent to two experts"]
    experts = made(case)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    order = torch.randperm(len(case.pairs), generator=torch.Generator().manual_seed(4))
    out_NH, _ = experts(x_NH, token_K, expert_K, weight_K)
    again_NH, _ = experts(x_NH, token_K[order], expert_K[order], weight_K[order])
    torch.testing.assert_close(again_NH, out_NH, atol=1e-5, rtol=1e-5)


def test_a_weight_scales_the_output_of_its_token_alone() -> None:
    case = CASES["odd sizes"]
    experts = made(case)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    doubled_K = weight_K * (1.0 + (token_K == 4).float())
    out_NH, _ = experts(x_NH, token_K, expert_K, weight_K)
    again_NH, _ = experts(x_NH, token_K, expert_K, doubled_K)
    factor_N1 = 1.0 + (torch.arange(case.n_tokens) == 4).float().unsqueeze(-1)
    torch.testing.assert_close(again_NH, out_NH * factor_N1, atol=1e-5, rtol=1e-5)


def test_experts_keep_the_dtype_of_their_input() -> None:
    case = CASES["odd sizes"]
    experts = made(case).to(torch.bfloat16)
    x_NH, token_K, expert_K, weight_K = inputs(case)
    out_NH, _ = experts(x_NH.bfloat16(), token_K, expert_K, weight_K)
    out_NH.float().sum().backward()
    assert out_NH.dtype is torch.bfloat16
    assert all(p.grad is not None and p.grad.dtype is torch.bfloat16 for p in experts.parameters())
    assert weight_K.grad is not None
    assert weight_K.grad.dtype is torch.float32
