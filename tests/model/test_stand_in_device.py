"""A model trains on a device that is not the CPU as it does on the CPU: nothing of it is left behind, with any router.

Also what makes the stand-in a device: it computes what the CPU computes, and tensors of both are not mixed.
"""

from __future__ import annotations

from dataclasses import replace
from typing import Any

import pytest
import torch
from torch import Tensor

import adapt.model.experts
from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.config import Recompute
from adapt.model.gpt import GPT, materialize
from adapt.model.grouped_gemm import torch_gemm
from adapt.model.routers.contract import all_routers
from adapt.objective import (
    Contribution,
    check_balance_gradient,
    contribution,
    part_counts,
)
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig
from tests.support.router_variants import VARIANTS
from tests.support.stand_in_device import DEVICE, Elsewhere, MixedDevices, on_the_cpu, stand_in_device
from tests.support.tiny_models import tiny_config

ROUNDING = 1e-5


def batch() -> Batch:
    """Return packed rows with padding, and soft labels."""
    rows = []
    for row, lengths in enumerate(((20, 30), (41,), (9, 11, 13))):
        ids = [generator_for("elsewhere", row, length).integers(5, 120, length) for length in lengths]
        rows.append([read_with_targets(SpannedText(ids_T=i, kinds_T=i % len(Span)), LabelForm.CLM, 4) for i in ids])
    rows[0][0] = replace(rows[0][0], weight=0.3)
    return collate(rows, pad_multiple=8, step=3, row_keys=range(len(rows)))


def made(variant: str, recompute: Recompute, **changes: Any) -> GPT:
    config = tiny_config([3, 6], vocab_size=120, context_length=64, router=VARIANTS[variant], **changes)
    model = materialize(GPT(config), seed=1).train()
    model.set_recompute(recompute)
    return model


def step(model: GPT, some: Batch, scope: BalanceScope) -> Contribution:
    even = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    objective = ObjectiveConfig(balance=BalanceConfig(weight=0.1, scope=scope))
    check_balance_gradient(model, some, objective)
    part = contribution(model, some, part_counts(model, some), even, objective, world_size=1)
    part.loss.backward()
    return part


def assert_same_step(
    variant: str, recompute: Recompute = Recompute.NONE, scope: BalanceScope = BalanceScope.STEP, **changes: Any
) -> None:
    here, there = (made(variant, recompute, **changes) for _ in range(2))
    wanted = step(here, batch(), scope)
    with stand_in_device() as device:
        there = there.to(device)
        found = step(there, batch().to(device), scope)
        there.after_step([layer.counts_E for layer in found.layers])
    here.after_step([layer.counts_E for layer in wanted.layers])
    assert isinstance(found.losses_P, Elsewhere)
    assert_near(found.losses_P, wanted.losses_P)
    for layer, wanted_layer in zip(found.layers, wanted.layers, strict=True):
        assert_near(layer.values_S, wanted_layer.values_S)
    for (name, weight), (_, moved) in zip(here.named_parameters(), there.named_parameters(), strict=True):
        assert isinstance(moved.grad, Elsewhere), name
        assert_near(moved.grad, weight.grad)
    for (_, state), (_, moved_state) in zip(here.named_buffers(), there.named_buffers(), strict=True):
        assert_near(moved_state, state)


def assert_near(found: Tensor, wanted: Tensor | None) -> None:
    assert wanted is not None
    torch.testing.assert_close(on_the_cpu(found), wanted.detach(), rtol=ROUNDING, atol=ROUNDING)


@pytest.mark.parametrize("variant", VARIANTS)
def test_a_step_elsewhere_is_that_of_the_cpu(variant: str) -> None:
    assert_same_step(variant)


@pytest.mark.parametrize("recompute", [what for what in Recompute if what is not Recompute.NONE])
@pytest.mark.parametrize(
    "router", [pytest.param(name, marks=[] if name in ("top2", "expert_choice") else [pytest.mark.slow]) for name in all_routers()]
)
def test_what_is_computed_again_is_computed_elsewhere(router: str, recompute: Recompute) -> None:
    assert_same_step(router, recompute)


@pytest.mark.parametrize("variant", ["top2", "s_base", "expert_choice"])
def test_capacity_and_the_network_behind_experts_are_elsewhere_too(variant: str) -> None:
    assert_same_step(variant, capacity_factor=0.7, expert_residual_layers=2)


@pytest.mark.parametrize("scope", list(BalanceScope))
def test_balance_of_every_scope_is_elsewhere_too(scope: BalanceScope) -> None:
    assert_same_step("top2", scope=scope)


@pytest.mark.parametrize("recompute", list(Recompute))
def test_one_kernel_for_all_experts_is_elsewhere_too(recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt.model.experts, "gemm_for", lambda x, up, brought: torch_gemm)
    assert_same_step("top2", recompute)


def test_a_model_of_which_a_part_was_left_behind_is_found() -> None:
    model = made("top1", Recompute.NONE)
    with stand_in_device() as device:
        for block in model.blocks:
            block.to(device)
        with pytest.raises(MixedDevices):
            step(model, batch().to(device), BalanceScope.STEP)


def test_what_cuda_refuses_to_mix_is_refused() -> None:
    with stand_in_device() as device:
        there, here = torch.ones(3, device=device), torch.ones(3)
        assert there.device == DEVICE
        number = torch.tensor(2.0)
        assert on_the_cpu(there * number).tolist() == [2.0, 2.0, 2.0]
        for mixed in (lambda: there + here, lambda: torch.cat([there, here]), lambda: torch.stack([there[0], number]),
                      lambda: there.index_add(0, torch.tensor([0]), there[:1]), lambda: there.add_(here)):  # fmt: skip
            with pytest.raises(MixedDevices):
                mixed()
        with pytest.raises(TypeError):
            there.numpy()


def test_copies_cross_and_share_no_memory() -> None:
    with stand_in_device() as device:
        here = torch.zeros(2)
        there = here.to(device)
        there += 1
        back = there.cpu()
        there.copy_(torch.full((2,), 5.0))
        assert not isinstance(back, Elsewhere)
    assert (here.tolist(), back.tolist(), there.tolist()) == ([0.0, 0.0], [1.0, 1.0], [5.0, 5.0])


def test_views_are_of_the_same_memory() -> None:
    with stand_in_device() as device:
        whole = torch.zeros(4, 2, device=device)
        whole[2:].add_(1.0)
        torch.mm(whole[2:], torch.ones(2, 2, device=device), out=whole[:2])
    assert whole.tolist() == [[2.0, 2.0], [2.0, 2.0], [1.0, 1.0], [1.0, 1.0]]
