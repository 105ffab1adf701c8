"""Attention by plain products, which bf16 training on a CPU takes: near the fused kernel, blind to padding, taken nowhere else."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest
import torch
from torch import Tensor
from torch.nn import functional

from adapt.core.spans import LabelLoss, Span, join_parts, read_for_training
from adapt.model import attention
from adapt.model.attention import attention_mask
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import ModelInputs
from adapt.objective import contribution, part_counts
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from tests.support.tiny_models import tiny_config

ROWS, HEADS, LENGTH, SIZE = 3, 2, 19, 8
MASK = 59
BF16 = 2e-2  # a few roundings to 8 bits
DOCUMENTS = torch.tensor([[1] * 7 + [2] * 9 + [0] * 3, [1] * LENGTH, [1] * 4 + [0] * 15])


def drawn(length: int = LENGTH, dtype: torch.dtype = torch.bfloat16, seed: int = 0) -> tuple[Tensor, Tensor, Tensor]:
    """Return queries, keys and values that want gradients."""
    generator = torch.Generator().manual_seed(seed)
    shape = (ROWS, HEADS, length, SIZE)
    q, k, v = (torch.randn(shape, generator=generator).to(dtype).requires_grad_() for _ in range(3))
    return q, k, v


def packed_mask() -> Tensor:
    inputs = ModelInputs(ids_BT=torch.zeros_like(DOCUMENTS), positions_BT=torch.zeros_like(DOCUMENTS), documents_BT=DOCUMENTS)
    mask = attention_mask(inputs)
    assert mask is not None
    return mask


def real_weights(documents_BT: Tensor) -> Tensor:
    """Return numbers to weigh outputs with: seeded at real positions, 0 at padding."""
    numbers = torch.randn(ROWS, HEADS, LENGTH, SIZE, generator=torch.Generator().manual_seed(9))
    return numbers * (documents_BT > 0)[:, None, :, None]


def outputs_and_gradients(
    how: Callable[..., Tensor], parts: tuple[Tensor, ...], mask: Tensor | None, weights: Tensor
) -> tuple[Tensor, ...]:
    out = how(*parts, mask)
    return (out.detach(), *torch.autograd.grad((out.float() * weights).sum(), parts))


def fused(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
    return functional.scaled_dot_product_attention(q, k, v, attn_mask=mask, is_causal=mask is None)


@pytest.mark.parametrize("is_packed", [True, False])
def test_products_lie_near_the_fused_kernel_in_fp32(is_packed: bool) -> None:
    mask = packed_mask() if is_packed else None
    weights = real_weights(DOCUMENTS if is_packed else torch.ones_like(DOCUMENTS))
    parts = drawn()
    exact = tuple(part.detach().float().requires_grad_() for part in parts)
    found = outputs_and_gradients(attention._attend, parts, mask, weights)
    wanted = outputs_and_gradients(fused, exact, mask, weights)
    for one, other in zip(found, wanted, strict=True):
        assert one.dtype == torch.bfloat16
        torch.testing.assert_close(one.float(), other, atol=BF16 * float(other.abs().max()), rtol=BF16)


@pytest.mark.parametrize("is_packed", [True, False])
def test_products_in_fp32_are_the_fused_kernel(is_packed: bool) -> None:
    mask = packed_mask() if is_packed else None
    weights = real_weights(DOCUMENTS if is_packed else torch.ones_like(DOCUMENTS))
    parts = drawn(dtype=torch.float32)
    found = outputs_and_gradients(attention._attend_by_products, parts, mask, weights)
    for one, other in zip(found, outputs_and_gradients(fused, parts, mask, weights), strict=True):
        torch.testing.assert_close(one, other, atol=1e-5, rtol=1e-5)


def test_a_position_that_sees_nothing_gives_finite_outputs_and_gradients() -> None:
    mask = packed_mask() & (DOCUMENTS > 0)[:, None, None, :]
    assert not mask[0, 0, -1].any()
    parts = drawn()
    out = attention._attend(*parts, mask)
    assert out.isfinite().all()
    for gradient in torch.autograd.grad(out.float().square().sum(), parts):
        assert gradient.isfinite().all()


@pytest.mark.parametrize("is_packed", [True, False])
def test_padding_changes_no_bit_of_a_real_position(is_packed: bool) -> None:
    documents = DOCUMENTS if is_packed else torch.where(DOCUMENTS > 0, 1, 0)
    mask = packed_mask() if is_packed else None
    is_padding = (documents == 0)[:, None, :, None]
    weights = real_weights(documents)
    parts = drawn()
    others = tuple(
        torch.where(is_padding, 50 * other, part).detach().requires_grad_()
        for part, other in zip(parts, drawn(seed=1), strict=True)
    )
    before = outputs_and_gradients(attention._attend, parts, mask, weights)
    after = outputs_and_gradients(attention._attend, others, mask, weights)
    for one, other in zip(before, after, strict=True):
        assert one.isfinite().all()
        assert other.isfinite().all()
        assert torch.equal(one.masked_fill(is_padding, 0), other.masked_fill(is_padding, 0))
    for one in after[1:]:
        assert not one.masked_select(is_padding).any()


@pytest.fixture
def taken(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Return a list that grows by the length of every call that goes by products."""
    calls: list[int] = []
    original = attention._attend_by_products

    def recorded(q: Tensor, k: Tensor, v: Tensor, mask: Tensor | None) -> Tensor:
        calls.append(q.shape[2])
        return original(q, k, v, mask)

    monkeypatch.setattr(attention, "_attend_by_products", recorded)
    return calls


def test_products_are_for_bf16_in_training_only(taken: list[int]) -> None:
    attention._attend(*drawn(), None)
    assert taken == [LENGTH]
    attention._attend(*drawn(dtype=torch.float32), None)
    with torch.no_grad():
        attention._attend(*drawn(), None)
    with torch.inference_mode():
        attention._attend(*drawn(), None)
    q, k, v = drawn()
    attention._attend(q.detach(), k.detach(), v.detach(), None)
    assert taken == [LENGTH]


def test_products_are_for_short_rows_only(taken: list[int], monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(attention, "SHORT", 8)
    for length in (8, 9, 7, 64):
        attention._attend(*drawn(length), None)
    assert taken == [8, 7]


def bf16_model(experts: list[int]) -> GPT:
    """Return a model as bf16 training has it: routers in fp32."""
    model = materialize(GPT(tiny_config(experts, vocab_size=60)), seed=3)
    for name, weight in model.named_parameters():
        if ".router." not in name:
            weight.data = weight.data.to(torch.bfloat16)
    return model


def trained_once(model: GPT, batch: Batch) -> list[Tensor]:
    shares = [torch.full((n,), 1.0 / n) for n in model.expert_counts]
    objective = ObjectiveConfig(balance=BalanceConfig(weight=0.1))
    part = contribution(model, batch, part_counts(model, batch), shares, objective, 1)
    return [part.sums_P, *torch.autograd.grad(part.loss, list(model.parameters()))]


@pytest.mark.parametrize("experts", [[0], [4]])
@pytest.mark.parametrize("loss", list(LabelLoss))
@pytest.mark.parametrize("packed", [True, False])
def test_what_stands_in_padding_changes_no_bit_of_a_training_step(
    experts: list[int], loss: LabelLoss, packed: bool, taken: list[int]
) -> None:
    ids = torch.randint(1, MASK, (20,), generator=torch.Generator().manual_seed(0)).tolist()
    parts = [(ids[:8], Span.CONTEXT), (ids[8:10], Span.PROMPT), (ids[10:12], Span.LABEL), (ids[12:13], Span.CONTEXT)]
    one, other = read_for_training(join_parts(parts), loss, MASK), read_for_training(join_parts(parts[1:]), loss, MASK)
    batch = collate([[one, other], [other]] if packed else [[one], [other]], pad_multiple=32)
    assert batch.inputs.is_packed is packed
    ids_BT = torch.where(batch.inputs.documents_BT == 0, 17, batch.inputs.ids_BT)
    changed = replace(batch, inputs=replace(batch.inputs, ids_BT=ids_BT))
    assert not torch.equal(ids_BT, batch.inputs.ids_BT)
    model = bf16_model(experts)
    for before, after in zip(trained_once(model, batch), trained_once(model, changed), strict=True):
        assert before.isfinite().all()
        assert torch.equal(before, after)
    assert taken == [32] * 2 * model.config.n_layers


@pytest.mark.parametrize("experts", [[0], [4]])
def test_a_step_in_bf16_lies_near_the_one_in_fp32(experts: list[int]) -> None:
    ids = torch.randint(1, MASK, (40,), generator=torch.Generator().manual_seed(1)).tolist()
    texts = [join_parts([(ids[:9], Span.CONTEXT), (ids[9:20], Span.LABEL)]), join_parts([(ids[20:], Span.CONTEXT)])]
    batch = collate([[read_for_training(text, LabelLoss.BOTH, MASK) for text in texts]], pad_multiple=8)
    model = bf16_model(experts)
    exact = materialize(GPT(tiny_config(experts, vocab_size=60)), seed=3)
    exact.load_state_dict({name: weight.float() for name, weight in model.state_dict().items()})
    torch.testing.assert_close(trained_once(model, batch)[0], trained_once(exact, batch)[0], rtol=BF16, atol=BF16)


@pytest.mark.parametrize("queries", [1, 2, 3, 4, 7])
@pytest.mark.parametrize("width", [16, 21, 39, 64])
def test_masked_attention_has_the_same_bits_on_one_thread_and_two(queries: int, width: int) -> None:
    generator = torch.Generator().manual_seed(queries * width)
    q, k, v = (torch.randn(30, 4, size, 16, generator=generator) for size in (queries, width, width))
    mask = torch.rand(30, 1, queries, width, generator=generator) > 0.2
    mask[..., 0] = True
    before = torch.get_num_threads()
    try:
        found = []
        for threads in (1, 2):
            torch.set_num_threads(threads)
            found.append(attention._attend(q, k, v, mask))
    finally:
        torch.set_num_threads(before)
    assert torch.equal(*found)
    torch.testing.assert_close(found[0], torch.nn.functional.scaled_dot_product_attention(q, k, v, attn_mask=mask))
