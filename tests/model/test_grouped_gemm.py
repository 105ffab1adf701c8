"""Which product multiplies all experts' rows, by device and sizes; a product that is brought computes what the loop does."""

from __future__ import annotations

from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.model import grouped_gemm
from adapt.model.experts import Experts
from adapt.model.grouped_gemm import gemm_for, torch_gemm, wants_brought

BF16 = torch.bfloat16
CPU = torch.device("cpu")


def one_by_one(x_KI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Stand in for the Triton kernel, and hold the caller to what it demands."""
    assert ends_E.dtype is torch.int32
    assert weight_EOI.is_contiguous()
    assert int(ends_E[-1]) == len(x_KI)
    starts = [0, *ends_E.tolist()]
    return torch.cat([x_KI[a:b] @ w.t() for a, b, w in zip(starts, starts[1:], weight_EOI, strict=False)])


def on(generation: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(grouped_gemm, "_generation", lambda device: generation)


@pytest.mark.parametrize(("generation", "wanted"), [(0, None), (7, None), (8, one_by_one), (9, torch_gemm), (10, torch_gemm)])
def test_the_product_is_that_of_the_device(generation: int, wanted: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    on(generation, monkeypatch)
    x_KH, up_EFH = torch.zeros(3, 8, dtype=BF16), torch.zeros(2, 16, 8, dtype=BF16)
    assert gemm_for(x_KH, up_EFH, one_by_one) is wanted
    assert wants_brought(CPU) == (generation == 8)
    assert gemm_for(x_KH.float(), up_EFH.float(), one_by_one) is None
    assert gemm_for(torch.zeros(3, 12, dtype=BF16), torch.zeros(2, 16, 12, dtype=BF16), one_by_one) is None
    assert gemm_for(x_KH, torch.zeros(2, 12, 8, dtype=BF16), one_by_one) is None


def test_without_an_engine_nothing_is_brought(monkeypatch: pytest.MonkeyPatch) -> None:
    on(8, monkeypatch)
    assert gemm_for(torch.zeros(3, 8, dtype=BF16), torch.zeros(2, 16, 8, dtype=BF16), None) is None


def test_what_32_bits_cannot_count_goes_one_by_one(monkeypatch: pytest.MonkeyPatch) -> None:
    on(8, monkeypatch)
    meta: dict[str, Any] = {"dtype": BF16, "device": "meta"}
    assert gemm_for(torch.zeros(4, 4096, **meta), torch.zeros(32, 16384, 4096, **meta), one_by_one) is None
    assert gemm_for(torch.zeros(4, 4096, **meta), torch.zeros(31, 16384, 4096, **meta), one_by_one) is one_by_one
    assert gemm_for(torch.zeros(1 << 17, 4096, **meta), torch.zeros(8, 16384, 4096, **meta), one_by_one) is None


def test_on_a_cpu_experts_go_one_by_one() -> None:
    assert gemm_for(torch.zeros(3, 8, dtype=BF16), torch.zeros(2, 16, 8, dtype=BF16), one_by_one) is None


def test_a_product_that_is_brought_computes_what_the_loop_does(monkeypatch: pytest.MonkeyPatch) -> None:
    source = torch.Generator().manual_seed(4)
    experts = Experts(5, 8, 16)
    for parameter in experts.parameters():
        parameter.data.normal_(0.0, 0.5, generator=source)
    experts = experts.to(BF16)
    x_NH = torch.randn(40, 8, generator=source).to(BF16).requires_grad_()
    expert_K = torch.randint(0, 4, (40,), generator=source)  # the last one gets nothing
    weight_K = torch.rand(40, generator=source).requires_grad_()
    grad_NH = torch.randn(40, 8, generator=source).to(BF16)
    called: list[int] = []

    def brought(*args: Tensor) -> Tensor:
        called.append(len(args[0]))
        return one_by_one(*args)

    def results() -> list[Tensor]:
        out_NH, _ = experts(x_NH, torch.arange(40), expert_K, weight_K)
        return [out_NH, *torch.autograd.grad(out_NH, [x_NH, weight_K, *experts.parameters()], grad_NH)]

    experts.brought_gemm = brought
    wanted = results()
    assert not called
    on(8, monkeypatch)
    found = results()
    assert called == [40, 40]
    for one, other in zip(found, wanted, strict=True):
        assert (one - other).abs().max() <= 0.02 * other.abs().max()
    assert not found[3][4].any()


def test_biases_get_gradients_that_many_rows_do_not_round_away(monkeypatch: pytest.MonkeyPatch) -> None:
    on(8, monkeypatch)
    experts = Experts(2, 8, 8)
    for parameter in experts.parameters():
        parameter.data.zero_()
    experts = experts.to(BF16)
    experts.brought_gemm = one_by_one
    n_rows = 2000  # one by one, bf16 would stop counting at 256
    x_NH, expert_K = torch.zeros(n_rows, 8, dtype=BF16), torch.zeros(n_rows, dtype=torch.int64)
    out_NH, _ = experts(x_NH, torch.arange(n_rows), expert_K, torch.ones(n_rows))
    out_NH.backward(torch.ones_like(out_NH))
    assert experts.down_bias.grad is not None
    assert experts.down_bias.grad[0].tolist() == [2000.0] * 8
    assert not experts.down_bias.grad[1].any()
