"""Routers' own losses as parts of the ledger, and that with any router nothing depends on how a step was cut."""

from __future__ import annotations

import itertools
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import pytest
import torch

from adapt.core.errors import TrainingError
from adapt.core.spans import LabelLoss, Reading
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.expert_choice import ExpertChoiceConfig
from adapt.model.routers.top1 import Top1Config, Top1Router
from adapt.objective import check_balance_gradient, ledger_total, part_counts, parts_of
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from tests.support.every_case import for_every
from tests.support.inner_parts import moe_blocks, moe_layers, parameter_of
from tests.support.router_variants import VARIANTS
from tests.support.tiny_models import tiny_config
from tests.support.training_steps import SMALL, ledger_of, readings, stepped

OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.3))
STEP = 2
Keyed = list[tuple[Reading, int]]


def laid_out(keyed: Keyed, pad_multiple: int = 1) -> Batch:
    return collate([[reading] for reading, _ in keyed], pad_multiple, STEP, [key for _, key in keyed])


CUTS: dict[str, Callable[[Keyed], list[Batch]]] = {
    "one row a batch": lambda rows: [laid_out([row]) for row in rows],
    "padded and backwards": lambda rows: [laid_out(rows[::-1], 64)],
    "uneven batches, one empty": lambda rows: [laid_out(rows[:3]), laid_out([]), laid_out(rows[3:], 8)],
}


def made(config: Any, **changes: object) -> GPT:
    return materialize(GPT(tiny_config([4, 6], vocab_size=SMALL, router=config, **changes)), seed=3)


def dropless_or_dropping() -> list[Any]:
    """Return parameters: every router without dropping tokens, and some with, are fast."""
    found = []
    for variant, capacity_factor in itertools.product(VARIANTS, (None, 0.8)):
        is_fast = capacity_factor is None or variant in ("top1", "top2", "expert_choice")
        name = f"{variant}-{'dropless' if capacity_factor is None else 'dropping'}"
        found.append(pytest.param(variant, capacity_factor, id=name, marks=[] if is_fast else [pytest.mark.slow]))
    return found


@pytest.mark.parametrize(("variant", "capacity_factor"), dropless_or_dropping())
def test_nothing_depends_on_how_a_step_is_cut(variant: str, capacity_factor: float | None) -> None:
    model = made(VARIANTS[variant], capacity_factor=capacity_factor)
    rows = [(reading, 1000 + key) for key, reading in enumerate(readings(LabelLoss.CLM))]
    whole_batches = [laid_out(rows)]
    whole = stepped(model, whole_batches, OBJECTIVE)
    one = ledger_of(model, whole, whole_batches, OBJECTIVE)
    assert tuple(one) == parts_of(model)

    @for_every(cut=CUTS)
    def assert_same(cut: str) -> None:
        cut_batches = CUTS[cut](rows)
        parts = stepped(model, cut_batches, OBJECTIVE)
        assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
        for name, gradient in whole.gradients.items():
            torch.testing.assert_close(parts.gradients[name], gradient, atol=1e-5, rtol=1e-5)
        other = ledger_of(model, parts, cut_batches, OBJECTIVE)
        assert tuple(other) == tuple(one)
        for part, value in one.items():
            assert other[part].count == value.count
            assert other[part].value == pytest.approx(value.value, abs=1e-5)
        for layer, again in zip(whole.layers, parts.layers, strict=True):
            assert again.health() == pytest.approx(layer.health(), abs=1e-5)

    assert_same()


@pytest.mark.parametrize("variant", VARIANTS)
def test_packing_rows_changes_nothing(variant: str) -> None:
    config = VARIANTS[variant]
    config = replace(config, jitter=0.0) if hasattr(config, "jitter") else config  # noise is keyed by row
    model, texts = made(config, capacity_factor=1.0), readings(LabelLoss.CLM)
    apart, packed = ([collate([[text] for text in texts], step=STEP)], [collate([texts[:4], texts[4:]], 8, STEP)])
    one, other = stepped(model, apart, OBJECTIVE), stepped(model, packed, OBJECTIVE)
    assert other.loss == pytest.approx(one.loss, abs=1e-5)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(other.gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("variant", VARIANTS)
def test_the_loss_is_the_ledgers_total_with_a_part_for_each_of_the_routers_losses(variant: str) -> None:
    model = made(VARIANTS[variant])
    objective = ObjectiveConfig(balance=BalanceConfig(weight=0.0))
    batches = [laid_out([(reading, key) for key, reading in enumerate(readings(LabelLoss.CLM))])]
    step = stepped(model, batches, objective)
    ledger = ledger_of(model, step, batches, objective)
    assert ledger_total(ledger) == pytest.approx(step.loss, abs=1e-5)
    tokens_times_layers = float((batches[0].inputs.documents_BT > 0).sum()) * 2
    for name, weight in model.router_traits.loss_weights.items():
        assert ledger[name].weight == weight
        assert ledger[name].count == tokens_times_layers
        assert ledger[name].value > 0
    assert ledger["balance"].count == (tokens_times_layers if model.router_traits.has_balance_loss else 0)
    assert (ledger["balance"].value > 0) is model.router_traits.has_balance_loss


def test_z_is_the_mean_squared_logsumexp_in_ledger_and_health() -> None:
    model = made(Top1Config(z_loss_weight=0.5))
    batches = [laid_out([(reading, key) for key, reading in enumerate(readings(LabelLoss.CLM))])]
    step = stepped(model, batches, OBJECTIVE)
    by_layer = [layer.health()["z"] for layer in step.layers]
    assert ledger_of(model, step, batches, OBJECTIVE)["z"].value == pytest.approx(sum(by_layer) / 2, abs=1e-5)


def test_health_says_what_a_gate_did() -> None:
    model = made(Top1Config(), capacity_factor=0.5)
    with torch.no_grad():
        parameter_of(moe_layers(model)[0].router).zero_()  # every gate is even, and the first expert takes all
    step = stepped(model, [laid_out([(reading, key) for key, reading in enumerate(readings(LabelLoss.CLM))])], OBJECTIVE)
    even = step.layers[0].health()
    assert even["entropy"] == pytest.approx(1.0)
    assert even["z"] == pytest.approx(torch.tensor(4.0).log().square().item())
    assert (even["max_load"], even["dead"]) == (4.0, 3.0)
    lengths = [len(reading) for reading in readings(LabelLoss.CLM)]
    assert even["dropped"] == pytest.approx(1 - sum(-(-length // 8) for length in lengths) / sum(lengths))
    assert 0 < step.layers[1].health()["entropy"] < 1
    assert stepped(made(Top1Config()), [collate([], step=STEP)], OBJECTIVE).layers[0].health()["dropped"] == 0.0


@pytest.mark.parametrize("variant", VARIANTS)
def test_every_router_with_a_balance_loss_gets_a_gradient_from_it(variant: str) -> None:
    batch = laid_out([(reading, key) for key, reading in enumerate(readings(LabelLoss.CLM))])
    check_balance_gradient(made(VARIANTS[variant]), batch, OBJECTIVE)


def test_a_balance_loss_that_cannot_move_a_router_is_named(monkeypatch: pytest.MonkeyPatch) -> None:
    def without_gradient(self: Top1Router, x_NH: torch.Tensor, inputs: RouterInputs) -> Routing:
        routing = route(self, x_NH, inputs)
        return replace(routing, probs_NE=routing.probs_NE.detach()) if len(self.weight) == 6 else routing

    route = Top1Router.route
    model = made(Top1Config())
    monkeypatch.setattr(Top1Router, "route", without_gradient)
    batch = laid_out([(reading, key) for key, reading in enumerate(readings(LabelLoss.CLM))])
    with pytest.raises(TrainingError, match=r"loss/balance: .* is 0\.3, but the router of MoE layer 1 gets no gradient"):
        check_balance_gradient(model, batch, OBJECTIVE)
    check_balance_gradient(model, batch, ObjectiveConfig(balance=BalanceConfig(weight=0.0)))
    check_balance_gradient(model, collate([]), OBJECTIVE)


def test_a_saturated_gate_is_named_too() -> None:
    model = made(Top1Config())
    block, layer = moe_blocks(model)[0]
    with torch.no_grad():
        block.mlp_norm.weight.zero_()
        block.mlp_norm.bias.fill_(1.0)
        parameter_of(layer.router).zero_()
        parameter_of(layer.router)[2] = 100.0
    with pytest.raises(TrainingError, match="MoE layer 0 gets no gradient"):
        check_balance_gradient(model, laid_out([(reading, 0) for reading in readings(LabelLoss.CLM)]), OBJECTIVE)


def test_look_ahead_and_losses_are_traits_of_the_model() -> None:
    assert made(ExpertChoiceConfig()).router_traits.looks_ahead
    assert not made(Top1Config()).router_traits.looks_ahead
    assert made(Top1Config(), capacity_factor=1.0).router_traits.looks_ahead
    counts = part_counts(made(ExpertChoiceConfig()), laid_out([(reading, 0) for reading in readings(LabelLoss.CLM)]))
    assert len(counts) == len(parts_of(made(ExpertChoiceConfig()))) == 5
