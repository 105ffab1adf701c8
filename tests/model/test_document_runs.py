"""Attention within runs of documents is attention under the block mask: outputs, padding and every gradient."""

from __future__ import annotations

import inspect
from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.nn import functional
from torch.nn.attention.varlen import varlen_attn

from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Span, SpannedText, read_with_targets
from adapt.model import attention
from adapt.model.attention import Attention, attention_mask, seen_by, takes_runs
from adapt.model.batches import Batch, collate
from adapt.model.config import Recompute
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import Past
from adapt.model.token_positions import TokenPlaces
from adapt.objective import contribution, part_counts
from adapt.objective_config import ObjectiveConfig
from tests.support.tiny_models import tiny_config

ROWS = ((20, 30), (41,), (9, 11, 13), (1, 1, 2))


def batch(changed: tuple[int, int] | None = None) -> Batch:
    """Return packed rows with padding; the document `changed` (row, number from 0) has other tokens."""
    rows = []
    for row, lengths in enumerate(ROWS):
        documents = []
        for number, length in enumerate(lengths):
            ids_T = generator_for("runs", row, number, (row, number) == changed).integers(5, 120, length)
            documents.append(read_with_targets(SpannedText(ids_T=ids_T, kinds_T=ids_T % len(Span)), LabelForm.CLM, 4))
        rows.append(documents)
    return collate(rows, pad_multiple=8, step=1, row_keys=range(len(rows)))


def model(experts: int = 4, recompute: Recompute = Recompute.NONE) -> GPT:
    made = materialize(GPT(tiny_config([experts], vocab_size=120, context_length=64)), seed=1).train()
    made.set_recompute(recompute)
    return made


def trained(some: GPT, one: Batch) -> dict[str, Tensor]:
    even = [torch.full((n,), 1.0 / n) for n in some.expert_counts]
    part = contribution(some, one, part_counts(some, one), even, ObjectiveConfig(), world_size=1)
    part.loss.backward()
    return {"sums": part.sums_P, **{name: p.grad for name, p in some.named_parameters() if p.grad is not None}}


def by_sequence(
    q_NAD: Tensor, k_NAD: Tensor, v_NAD: Tensor, starts: Tensor, k_starts: Tensor, longest: int, k_longest: int, **options: Any
) -> Tensor:
    """Stand in for the kernel, which is CUDA's alone, and hold the caller to what it demands."""
    assert options == {"window_size": (-1, 0)}
    assert starts is k_starts
    assert starts.dtype is torch.int32
    lengths = starts.long().diff().tolist()
    assert sum(lengths) == len(q_NAD)
    assert max(lengths) == longest == k_longest
    found = []
    for q, k, v in zip(*(tensor.split(lengths) for tensor in (q_NAD, k_NAD, v_NAD)), strict=True):
        query, key, value = (part.transpose(0, 1).unsqueeze(0) for part in (q, k, v))
        found.append(functional.scaled_dot_product_attention(query, key, value, is_causal=True).squeeze(0).transpose(0, 1))
    return torch.cat(found)


@pytest.fixture
def in_runs(monkeypatch: pytest.MonkeyPatch) -> list[int]:
    """Let attention go by runs on the CPU, in fp32 too; return a list that grows at every call."""
    calls: list[int] = []

    def counted(*args: Any, **options: Any) -> Tensor:
        calls.append(len(args[0]))
        return by_sequence(*args, **options)

    monkeypatch.setattr(attention, "takes_runs", lambda inputs, dtype, head_size: inputs.is_packed)
    monkeypatch.setattr("torch.nn.attention.varlen.varlen_attn", counted)
    return calls


@pytest.mark.parametrize("recompute", [Recompute.NONE, Recompute.FULL])
def test_a_training_step_is_the_one_under_the_mask(
    recompute: Recompute, monkeypatch: pytest.MonkeyPatch, in_runs: list[int]
) -> None:
    found = trained(model(recompute=recompute), batch())
    n_calls = len(in_runs)
    monkeypatch.undo()
    wanted = trained(model(recompute=recompute), batch())
    assert n_calls == (4 if recompute is Recompute.NONE else 8)
    assert set(found) == set(wanted)
    for name, value in wanted.items():
        torch.testing.assert_close(found[name], value, atol=2e-5, rtol=1e-4, msg=f"{name}: {{}}".format)


def test_every_position_is_the_one_under_the_mask_padding_too(monkeypatch: pytest.MonkeyPatch, in_runs: list[int]) -> None:
    found_BTH = model()(batch().inputs).hidden_BTH
    monkeypatch.undo()
    torch.testing.assert_close(found_BTH, model()(batch().inputs).hidden_BTH, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("changed", [(0, 0), (0, 1), (2, 1)])
def test_documents_do_not_see_each_other(changed: tuple[int, int], in_runs: list[int]) -> None:
    before, after = batch().inputs, batch(changed).inputs
    is_changed_BT = torch.zeros_like(before.documents_BT, dtype=torch.bool)
    is_changed_BT[changed[0]] = before.documents_BT[changed[0]] == changed[1] + 1
    dense = model(experts=0)
    one_BTH, other_BTH = dense(before).hidden_BTH, dense(after).hidden_BTH
    assert torch.equal(one_BTH[~is_changed_BT], other_BTH[~is_changed_BT])
    assert not torch.equal(one_BTH[is_changed_BT], other_BTH[is_changed_BT])
    assert in_runs


def test_runs_are_for_packed_rows_on_a_gpu_that_has_the_kernel(monkeypatch: pytest.MonkeyPatch) -> None:
    inputs, bf16 = batch().inputs, torch.bfloat16
    assert not takes_runs(inputs, bf16, 64)  # on a CPU
    assert isinstance(seen_by(inputs, bf16, 64), Tensor)
    monkeypatch.setattr(attention, "_has_kernel", lambda device: True)
    for dtype in (bf16, torch.float16):
        for head_size in (8, 64, 128, 256):
            assert takes_runs(inputs, dtype, head_size)
    assert isinstance(seen_by(inputs, bf16, 64), TokenPlaces)
    assert not takes_runs(inputs, torch.float32, 64)
    assert not takes_runs(inputs, bf16, 60)
    assert not takes_runs(inputs, bf16, 264)
    assert not takes_runs(replace(inputs, is_packed=False), bf16, 64)
    assert not takes_runs(replace(inputs, keeps_past=True), bf16, 64)
    mask_BSW = torch.ones(1, 1, 1, dtype=torch.bool)
    assert not takes_runs(replace(inputs, mask_BSW=mask_BSW), bf16, 64)
    some = torch.zeros(1, 1, 1, 1)
    assert not takes_runs(replace(inputs, past=Past(layers=((some, some),))), bf16, 64)
    assert seen_by(replace(inputs, is_packed=False), bf16, 64) is None


def test_the_kernel_takes_what_it_is_given() -> None:
    names = list(inspect.signature(varlen_attn).parameters)
    assert names[:7] == ["query", "key", "value", "cu_seq_q", "cu_seq_k", "max_q", "max_k"]
    assert "window_size" in names


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
def test_the_kernel_computes_what_the_mask_does() -> None:
    device = torch.device("cuda")
    inputs = batch().inputs.to(device)
    layer = Attention(128, 2).to(device, torch.bfloat16)
    source = torch.Generator().manual_seed(2)
    x_BTH = torch.randn(*inputs.ids_BT.shape, 128, generator=source).to(device, torch.bfloat16)
    weights_BTH = torch.randn(x_BTH.shape, generator=source).to(device)
    found = []
    for seen in (seen_by(inputs, torch.bfloat16, 64), attention_mask(inputs)):
        x = x_BTH.clone().requires_grad_()
        out_BTH, _ = layer(x, seen)
        found.append([out_BTH, *torch.autograd.grad((out_BTH * weights_BTH).sum(), [x, *layer.parameters()])])
    assert isinstance(seen_by(inputs, torch.bfloat16, 64), TokenPlaces)
    for one, other in zip(*found, strict=True):
        assert (one - other).abs().max() <= 0.03 * other.abs().max()
