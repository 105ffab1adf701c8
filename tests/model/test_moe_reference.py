"""The MoE layer against `naive_moe` for every router, with and without dropping: outputs, losses and every gradient."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.model.buffers import named_state
from adapt.model.inputs import ModelInputs
from adapt.model.moe import MoELayer
from adapt.model.routers.contract import all_routers
from adapt.model.routers.top1 import Top1Config
from tests.support.every_case import for_every
from tests.support.inner_parts import parameter_of
from tests.support.naive_moe import RULES, naive_layer
from tests.support.router_variants import VARIANTS

CLOSE: dict[str, Any] = {"atol": 1e-5, "rtol": 1e-5}
STEP = 3


@dataclass(frozen=True, kw_only=True)
class Case:
    """Lengths of the documents of each row, and sizes; `is_collapsed`: one expert is everyone's favourite."""

    rows: list[list[int]]
    width: int
    hidden: int = 7
    inner: int = 11
    experts: int = 5
    is_residual: bool = False
    is_collapsed: bool = False


CASES = {
    "odd sizes and padding": Case(rows=[[5], [7], [3]], width=9, is_residual=True),
    "packed rows": Case(rows=[[3, 4, 1], [2, 5]], width=11, hidden=5, experts=4),
    "empty experts": Case(rows=[[2], [1]], width=2, experts=7),
    "one token": Case(rows=[[1]], width=1, experts=3),
    "no token": Case(rows=[[], []], width=3),
    "all tokens on one expert": Case(rows=[[6], [4]], width=6, is_collapsed=True),
}


def made(case: Case, config: Any, capacity_factor: float | None) -> MoELayer:
    layer = MoELayer(case.hidden, case.inner, case.experts, config, case.is_residual, layer=3, capacity_factor=capacity_factor)
    generator = torch.Generator().manual_seed(7)
    with torch.no_grad():
        for name, tensor in named_state(layer):
            tensor.normal_(0.0, 0.1 if name.endswith("selection_bias") else 0.4, generator=generator)
        if case.is_collapsed and hasattr(layer.router, "weight"):
            parameter_of(layer.router)[2] = 0.5
    return layer


def inputs_of(case: Case) -> tuple[Tensor, ModelInputs]:
    generator = torch.Generator().manual_seed(8)
    shape = (len(case.rows), case.width)
    ids = torch.randint(0, 50, shape, generator=generator)
    documents, positions, domains = (torch.zeros(shape, dtype=torch.int64) for _ in range(3))
    for row, lengths in enumerate(case.rows):
        start = 0
        for number, length in enumerate(lengths, start=1):
            place = slice(start, start + length)
            documents[row, place], positions[row, place], domains[row, place] = number, torch.arange(length), 2 * row + number
            start += length
    x_BTH = torch.randn(*shape, case.hidden, generator=generator)
    if case.is_collapsed:
        ids.fill_(9)
        domains.fill_(1)
        x_BTH = x_BTH.abs()
    keys = torch.tensor([(1 << 62) + 12345 * row for row in range(len(case.rows))])
    return x_BTH, ModelInputs(
        ids_BT=ids, positions_BT=positions, documents_BT=documents, domains_BT=domains, step=STEP, row_keys_B=keys
    )


def curved(out: Tensor, gates: Tensor, losses: dict[str, Tensor]) -> Tensor:
    """Return a loss that is curved in the output and reads the gates and the router's own losses."""
    torch.manual_seed(9)
    total = (out * torch.rand(out.shape).to(out)).sum() + out.pow(2).sum() + sum(losses.values())
    return total + (gates * torch.rand(gates.shape).to(gates)).sum()


def gradients(loss: Tensor, wanted: dict[str, Tensor]) -> dict[str, Tensor]:
    found = torch.autograd.grad(loss, list(wanted.values()), allow_unused=True) if loss.requires_grad else [None] * len(wanted)
    return {name: torch.zeros_like(wanted[name]) if g is None else g for name, g in zip(wanted, found, strict=True)}


@dataclass(frozen=True, kw_only=True)
class Mode:
    """Whether the layer trains, and the capacity of its experts; at inference capacity changes nothing (see below)."""

    is_training: bool
    capacity_factor: float | None


MODES = {
    "training, dropless": Mode(is_training=True, capacity_factor=None),
    "training, dropping": Mode(is_training=True, capacity_factor=0.8),
    "inference": Mode(is_training=False, capacity_factor=None),
}


@pytest.mark.parametrize("mode_name", MODES)
@pytest.mark.parametrize("variant", VARIANTS)
@for_every(case_name=CASES)
def test_outputs_losses_and_gradients_equal_the_naive_layer(variant: str, mode_name: str, case_name: str) -> None:
    case, config, mode = CASES[case_name], VARIANTS[variant], MODES[mode_name]
    layer = made(case, config, mode.capacity_factor).train(mode.is_training)
    x_BTH, inputs = inputs_of(case)
    x_BTH.requires_grad_()
    out, report = layer(x_BTH, inputs)
    x_64 = x_BTH.detach().double().requires_grad_()
    weights = {name: tensor.detach().double().requires_grad_() for name, tensor in named_state(layer)}
    naive, gates, losses, n_dropped = naive_layer(layer, config, x_64, inputs, weights)
    naive_gates = torch.stack(gates) if gates else torch.zeros(0, case.experts, dtype=torch.float64)

    torch.testing.assert_close(out.double(), naive, **CLOSE)
    torch.testing.assert_close(report.probs_NE.double(), naive_gates, **CLOSE)
    assert int(report.dropped) == n_dropped
    assert set(report.losses) == (set(layer.router.traits.loss_weights) if mode.is_training else set())
    for name in losses:
        torch.testing.assert_close(report.losses[name].double(), losses[name], **CLOSE)
    found = gradients(curved(out, report.probs_NE, dict(report.losses)), {"x": x_BTH, **dict(layer.named_parameters())})
    wanted = gradients(curved(naive, naive_gates, losses), {"x": x_64, **{name: weights[name] for name in found if name != "x"}})
    for name, gradient in wanted.items():
        torch.testing.assert_close(found[name].double(), gradient, **CLOSE, msg=f"{name}: {{}}".format)


@for_every(case_name=CASES, variant=VARIANTS)
def test_at_inference_capacity_changes_no_bit(variant: str, case_name: str) -> None:
    case, config = CASES[case_name], VARIANTS[variant]
    x_BTH, inputs = inputs_of(case)
    with torch.no_grad():
        (one, report), (other, bounded) = (made(case, config, factor).eval()(x_BTH, inputs) for factor in (None, 0.8))
    assert torch.equal(one, other)
    assert torch.equal(report.probs_NE, bounded.probs_NE)
    assert report.counts_E.tolist() == bounded.counts_E.tolist()
    assert int(bounded.dropped) == 0


def test_dropping_drops_in_training_alone() -> None:
    case = CASES["all tokens on one expert"]
    x_BTH, inputs = inputs_of(case)
    layer = made(case, Top1Config(), 1.0)
    _, report = layer.train()(x_BTH, inputs)
    assert int(report.dropped) == (6 - 2) + (4 - 1)
    assert report.counts_E.tolist() == [0, 0, 10, 0, 0]
    assert int(layer.eval()(x_BTH, inputs)[1].dropped) == 0


def test_every_router_of_this_package_has_a_naive_rule() -> None:
    assert set(RULES) == set(all_routers())
