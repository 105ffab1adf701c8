"""The blockwise negative log-likelihood against torch's cross entropy: values, gradients, and what it keeps in between."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor
from torch.nn import functional

import adapt.model.nll
from adapt.model.nll import nll_of_logits
from tests.support.every_case import for_every

VOCAB = 53
BLOCKS = pytest.mark.parametrize("elements", [1, VOCAB, 3 * VOCAB - 1, 3 * VOCAB, 1 << 19])


def drawn(n_rows: int, dtype: torch.dtype = torch.float32, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return logits that want a gradient, targets, and upstream gradients of all sizes and signs, some of them zero."""
    generator = torch.Generator().manual_seed(seed)
    logits_NV = (3 * torch.randn(n_rows, VOCAB, generator=generator)).to(dtype).requires_grad_()
    targets_N = torch.randint(VOCAB, (n_rows,), generator=generator)
    upstream_N = torch.randn(n_rows, generator=generator) * 10.0 ** torch.randint(-3, 2, (n_rows,), generator=generator)
    upstream_N[::3] = 0.0
    return logits_NV, targets_N, upstream_N


def by_torch(logits_NV: Tensor, targets_N: Tensor, upstream_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return torch's values and gradient in fp64."""
    exact_NV = logits_NV.detach().double().requires_grad_()
    nll_N = functional.cross_entropy(exact_NV, targets_N, reduction="none")
    return nll_N.detach(), torch.autograd.grad(nll_N, exact_NV, upstream_N.double())[0]


@BLOCKS
@pytest.mark.parametrize("n_rows", [1, 2, 3, 7, 9])
def test_fp32_values_and_gradients_are_those_of_cross_entropy(monkeypatch: pytest.MonkeyPatch, elements: int, n_rows: int) -> None:
    monkeypatch.setattr(adapt.model.nll, "_CPU_ELEMENTS", elements)
    logits_NV, targets_N, upstream_N = drawn(n_rows, seed=n_rows)
    wanted_N, wanted_NV = by_torch(logits_NV, targets_N, upstream_N)
    torchs_N = functional.cross_entropy(logits_NV.detach(), targets_N, reduction="none")
    nll_N = nll_of_logits(logits_NV, targets_N)
    (gradient_NV,) = torch.autograd.grad(nll_N, logits_NV, upstream_N)
    assert nll_N.dtype == gradient_NV.dtype == torch.float32
    torch.testing.assert_close(nll_N.detach(), torchs_N, atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(nll_N.detach(), wanted_N.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient_NV, wanted_NV.float(), atol=1e-6, rtol=1e-6)


@BLOCKS
def test_bf16_logits_are_taken_at_their_word(monkeypatch: pytest.MonkeyPatch, elements: int) -> None:
    monkeypatch.setattr(adapt.model.nll, "_CPU_ELEMENTS", elements)
    logits_NV, targets_N, upstream_N = drawn(8, torch.bfloat16)
    wanted_N, wanted_NV = by_torch(logits_NV, targets_N, upstream_N)
    nll_N = nll_of_logits(logits_NV, targets_N)
    (gradient_NV,) = torch.autograd.grad(nll_N, logits_NV, upstream_N)
    assert nll_N.dtype == torch.float32
    torch.testing.assert_close(nll_N.detach(), wanted_N.float(), atol=1e-6, rtol=1e-6)
    assert gradient_NV.dtype == torch.bfloat16
    torch.testing.assert_close(gradient_NV.double(), wanted_NV, atol=1e-8, rtol=2**-8)  # rounded once, at the end


def test_a_row_whose_loss_counts_nothing_gets_a_gradient_of_zero() -> None:
    logits_NV, targets_N, upstream_N = drawn(7)
    (gradient_NV,) = torch.autograd.grad(nll_of_logits(logits_NV, targets_N), logits_NV, upstream_N)
    assert not gradient_NV[::3].any()
    assert gradient_NV[1::3].abs().amax(dim=1).min() > 0


def test_a_gradient_that_is_one_number_for_all_rows_is_spread() -> None:
    logits_NV, targets_N, _ = drawn(5)
    _, wanted_NV = by_torch(logits_NV, targets_N, torch.full((5,), 0.2))
    nll_of_logits(logits_NV, targets_N).mean().backward()
    torch.testing.assert_close(logits_NV.grad, wanted_NV.float(), atol=1e-6, rtol=1e-6)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_no_rows_have_no_loss_and_an_empty_gradient(dtype: torch.dtype) -> None:
    logits_NV, targets_N, _ = drawn(0, dtype)
    nll_N = nll_of_logits(logits_NV, targets_N)
    assert nll_N.shape == (0,)
    assert nll_N.dtype == torch.float32
    nll_N.sum().backward()
    assert logits_NV.grad is not None
    assert logits_NV.grad.shape == (0, VOCAB)


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_extreme_logits_stay_finite_and_right(dtype: torch.dtype) -> None:
    large = float(torch.tensor(1e4).to(dtype))
    rows = [[large, -large, 0.0], [large, large, large], [-large, -large, -large], [-large, large, -large]]
    logits_NV = torch.tensor(rows, dtype=dtype, requires_grad=True)
    nll_N = nll_of_logits(logits_NV, torch.tensor([1, 0, 2, 1]))
    (gradient_NV,) = torch.autograd.grad(nll_N, logits_NV, torch.ones(4))
    third = float(torch.log(torch.tensor(3.0)))
    torch.testing.assert_close(nll_N.detach(), torch.tensor([2 * large, third, third, 0.0]), atol=1e-3, rtol=1e-6)
    assert (nll_N >= 0).all()
    wanted = torch.tensor([[1.0, -1.0, 0.0], [-2 / 3, 1 / 3, 1 / 3], [1 / 3, 1 / 3, -2 / 3], [0.0, 0.0, 0.0]])
    torch.testing.assert_close(gradient_NV.float(), wanted, atol=2e-3, rtol=2**-8)


@for_every(seed=range(5))
def test_a_loss_is_never_negative(seed: int) -> None:
    logits_NV, _, _ = drawn(50, seed=seed)
    sure_NV = 20 * logits_NV.detach()
    assert (nll_of_logits(sure_NV, sure_NV.argmax(dim=1)) >= 0).all()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_the_logits_stay_as_they_were(dtype: torch.dtype) -> None:
    logits_NV, targets_N, upstream_N = drawn(5, dtype)
    before = logits_NV.detach().clone()
    nll_N = nll_of_logits(logits_NV, targets_N)
    (first,) = torch.autograd.grad(nll_N, logits_NV, upstream_N, retain_graph=True)
    assert torch.equal(logits_NV.detach(), before)
    (again,) = torch.autograd.grad(nll_N, logits_NV, upstream_N)
    assert torch.equal(first, again)


def test_nothing_as_large_as_fp32_logits_is_kept_for_the_backward_pass() -> None:
    logits_NV, targets_N, _ = drawn(6, torch.bfloat16)
    kept: list[Tensor] = []

    def remember(tensor: Tensor) -> Tensor:
        kept.append(tensor)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(remember, lambda tensor: tensor):
        nll_of_logits(logits_NV, targets_N)
    assert kept
    for tensor in kept:
        assert tensor.dtype == torch.bfloat16 or tensor.numel() <= len(targets_N)


def test_logits_that_lie_transposed_give_the_same() -> None:
    logits_NV, targets_N, upstream_N = drawn(6)
    turned_NV = logits_NV.detach().t().contiguous().t().requires_grad_()
    assert not turned_NV.is_contiguous()
    wanted_N, wanted_NV = by_torch(logits_NV, targets_N, upstream_N)
    nll_N = nll_of_logits(turned_NV, targets_N)
    (gradient_NV,) = torch.autograd.grad(nll_N, turned_NV, upstream_N)
    torch.testing.assert_close(nll_N.detach(), wanted_N.float(), atol=1e-6, rtol=1e-6)
    torch.testing.assert_close(gradient_NV, wanted_NV.float(), atol=1e-6, rtol=1e-6)
