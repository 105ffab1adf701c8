"""The objective: additive over micro-batches, normalised by global counts, and blind to how a step was cut."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch.nn import functional

import adapt.objective
from adapt.core.errors import ConfigError
from adapt.core.spans import NO_TARGET, LabelForm, LabelLoss, Reading, Span, join_parts, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.model.health import LayerSums
from adapt.objective import (
    PARTS,
    BalanceScope,
    ObjectiveConfig,
    PartValue,
    contribution,
    ledger_total,
    part_counts,
    part_weights,
)
from adapt.objective_config import BalanceConfig, PartSchedules, PartWeights, WeightSchedule
from tests.support.every_case import for_every
from tests.support.inner_parts import moe_blocks, moe_layers, parameter_of
from tests.support.tiny_models import tiny_config
from tests.support.training_steps import MASK, SMALL, UNEVEN, Step, ledger_of, readings, stepped

WEIGHTS = PartWeights(context=1.0, prompt=0.5, pseudo_label=2.0)
Cut = Callable[[list[Reading]], list[Batch]]


@pytest.fixture(scope="module")
def dense() -> GPT:
    return materialize(GPT(tiny_config([0], vocab_size=SMALL)), seed=3)


@pytest.fixture(scope="module")
def sparse() -> GPT:
    return materialize(GPT(tiny_config([4, 6], vocab_size=SMALL)), seed=3)


@pytest.fixture(params=["dense", "sparse"])
def model(request: pytest.FixtureRequest) -> GPT:
    found: GPT = request.getfixturevalue(request.param)
    return found


CUTS: dict[str, Cut] = {
    "one reading a batch": lambda r: [collate([[one]]) for one in r],
    "packed into one row": lambda r: [collate([r])],
    "packed and cut": lambda r: [collate([r[:2], r[2:3]]), collate([r[3:5], r[5:]], pad_multiple=8)],
    "padded": lambda r: [collate([[one] for one in r], pad_multiple=64)],
    "backwards": lambda r: [collate([[one] for one in r[::-1]])],
    "with empty rows and batches": lambda r: [collate([]), collate([[], *[[one] for one in r], []]), collate([[]], pad_multiple=4)],
}


@pytest.mark.parametrize("scope", [BalanceScope.STEP, BalanceScope.SEQUENCE])
@pytest.mark.parametrize("form", list(LabelLoss))
def test_gradient_and_ledger_do_not_depend_on_how_a_step_is_cut(model: GPT, form: LabelLoss, scope: BalanceScope) -> None:
    config = ObjectiveConfig(pseudo_label=form, weights=WEIGHTS, balance=BalanceConfig(weight=0.3, scope=scope))
    texts = readings(form)
    whole_batches = [collate([[one] for one in texts])]
    whole = stepped(model, whole_batches, config)
    one = ledger_of(model, whole, whole_batches, config)
    assert tuple(one) == PARTS

    @for_every(cut=CUTS)
    def assert_same(cut: str) -> None:
        cut_batches = CUTS[cut](texts)
        parts = stepped(model, cut_batches, config)
        assert parts.loss == pytest.approx(whole.loss, abs=1e-5)
        assert_same_gradients(parts, whole)
        other = ledger_of(model, parts, cut_batches, config)
        assert tuple(other) == PARTS
        for part in PARTS:
            assert other[part].count == one[part].count
            assert other[part].value == pytest.approx(one[part].value, abs=1e-5)

    assert_same()


def test_weighted_readings_count_by_their_weights_however_a_step_is_cut(model: GPT) -> None:
    """A reading of weight w is w of a reading: in sum and count, so that two halves are one whole."""
    config = ObjectiveConfig(weights=WEIGHTS, balance=BalanceConfig(weight=0.0))
    texts = readings(LabelLoss.CLM)
    halves = [replace(text, weight=weight) for text in texts for weight in (0.25, 0.75)]
    whole_batches = [collate([[one] for one in texts])]
    whole = stepped(model, whole_batches, config)
    one = ledger_of(model, whole, whole_batches, config)

    @for_every(cut=CUTS)
    def assert_same(cut: str) -> None:
        cut_batches = CUTS[cut](halves)
        parts = stepped(model, cut_batches, config)
        assert_same_gradients(parts, whole)
        other = ledger_of(model, parts, cut_batches, config)
        for part in ("context", "prompt", "pseudo_label"):
            assert other[part].count == pytest.approx(one[part].count)
            assert other[part].value == pytest.approx(one[part].value, abs=1e-5)

    assert_same()


def assert_same_gradients(found: Step, wanted: Step) -> None:
    for name, gradient in wanted.gradients.items():
        torch.testing.assert_close(found.gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_a_part_of_weighted_readings_is_a_weighted_mean(dense: GPT) -> None:
    texts, weights = readings(LabelLoss.CLM, 3), [0.2, 1.0, 0.6]
    config = ObjectiveConfig(balance=BalanceConfig(weight=0.0))
    single = []
    for text in texts:
        batches = [collate([[text]])]
        single.append(ledger_of(dense, stepped(dense, batches, config), batches, config)["context"])
    batches = [collate([[replace(text, weight=weight)] for text, weight in zip(texts, weights, strict=True)])]
    found = ledger_of(dense, stepped(dense, batches, config), batches, config)["context"]
    total = sum(w * part.sum for w, part in zip(weights, single, strict=True))
    assert found.value == pytest.approx(total / sum(w * part.count for w, part in zip(weights, single, strict=True)), abs=1e-5)


def test_a_schedule_is_a_factor_that_goes_linearly_between_two_shares_of_the_run() -> None:
    schedule = WeightSchedule(start=0.0, end=2.0, begins_at=0.25, ends_at=0.75)
    assert [schedule.at(done) for done in (0.0, 0.25, 0.375, 0.5, 0.75, 1.0)] == pytest.approx([0, 0, 0.5, 1, 2, 2])
    assert WeightSchedule(start=3.0, end=1.0, begins_at=0.5, ends_at=0.5).at(0.49) == 3.0
    assert [WeightSchedule().at(done) for done in (0.0, 0.3, 1.0)] == [1.0, 1.0, 1.0]
    for wrong in ({"start": -1.0}, {"begins_at": 0.6, "ends_at": 0.5}, {"ends_at": 1.5}):
        with pytest.raises(ConfigError):
            WeightSchedule(**wrong)


def test_scheduled_weights_are_those_of_the_moment(sparse: GPT) -> None:
    ramp = WeightSchedule(start=0.0, end=1.0)
    schedules = PartSchedules(pseudo_label=ramp, balance=WeightSchedule(start=1.0, end=3.0))
    config = ObjectiveConfig(weights=WEIGHTS, balance=BalanceConfig(weight=0.1), schedules=schedules)
    assert part_weights(sparse, config.at(0.5)).tolist() == pytest.approx([1.0, 0.5, 1.0, 0.2])
    assert config.at(0.5).at(0.9) == config.at(0.5)
    assert part_weights(sparse, config.at(0.0))[2] == 0.0


def test_the_parts_of_a_loss_add_up_to_it(sparse: GPT) -> None:
    batch = collate([[text] for text in readings(LabelLoss.CLM)])
    config = ObjectiveConfig(weights=WEIGHTS, balance=BalanceConfig(weight=0.3))
    part = contribution(sparse, batch, part_counts(sparse, batch), UNEVEN, config, 2)
    assert len(part.losses_P) == len(PARTS)
    assert float(part.losses_P.detach().sum()) == pytest.approx(float(part.loss.detach()))
    assert bool((part.losses_P.detach() > 0).all())


def test_ranks_that_average_get_the_gradient_of_one_process(model: GPT) -> None:
    config = ObjectiveConfig(weights=WEIGHTS, balance=BalanceConfig(weight=0.3))
    texts = readings(LabelLoss.CLM)
    one = stepped(model, [collate([[text] for text in texts])], config)
    three = stepped(model, [collate([texts[:1]]), collate([texts[1:]]), collate([])], config, world_size=3)
    for name, gradient in one.gradients.items():
        torch.testing.assert_close(three.gradients[name], gradient, atol=1e-5, rtol=1e-5)


def test_the_loss_is_the_weighted_total_of_its_ledger(dense: GPT) -> None:
    config = ObjectiveConfig(weights=WEIGHTS)
    batches = [collate([[text] for text in readings(LabelLoss.CLM)])]
    step = stepped(dense, batches, config)
    assert ledger_total(ledger_of(dense, step, batches, config)) == pytest.approx(step.loss, abs=1e-5)


def test_context_loss_is_plain_cross_entropy_on_shifted_tokens(model: GPT) -> None:
    ids = np.random.default_rng(4).integers(1, MASK, 30)
    text = join_parts([(ids.tolist(), Span.CONTEXT)])
    batches = [collate([[read_with_targets(text, LabelForm.CLM)]])]
    config = ObjectiveConfig(balance=BalanceConfig(weight=0.0))
    step = stepped(model, batches, config)
    with torch.no_grad():
        logits_TV = model.logits(model(batches[0].inputs).hidden_BTH[0])
    wanted = functional.cross_entropy(logits_TV[:-1], torch.from_numpy(ids)[1:])
    assert ledger_of(model, step, batches, config)["context"].value == pytest.approx(float(wanted), abs=1e-5)
    assert step.loss == pytest.approx(float(wanted), abs=1e-5)


def test_parts_without_targets_contribute_nothing(model: GPT) -> None:
    config = ObjectiveConfig(weights=WEIGHTS, balance=BalanceConfig(weight=0.0))
    text = join_parts([([3, 5, 8, 2], Span.CONTEXT)])
    batches = [collate([[read_with_targets(text, LabelForm.CLM)]])]
    step = stepped(model, batches, config)
    ledger = ledger_of(model, step, batches, config)
    assert ledger["prompt"] == PartValue(sum=0.0, count=0.0, weight=0.5)
    assert ledger["prompt"].value == ledger["pseudo_label"].value == 0.0
    assert step.loss == pytest.approx(ledger["context"].value, abs=1e-5)


def test_counts_are_the_targets_of_each_kind_and_the_real_tokens(model: GPT) -> None:
    texts = readings(LabelLoss.MLM)
    batch = collate([texts[:3], texts[3:], []], pad_multiple=16)
    counts = dict(zip(PARTS, part_counts(model, batch).tolist(), strict=True))
    for part, kind in zip(PARTS, Span, strict=False):
        assert counts[part] == sum(int(((t.targets_T != NO_TARGET) & (t.kinds_T == int(kind))).sum()) for t in texts)
    assert counts["balance"] == sum(len(text) for text in texts) * len(model.expert_counts)


def test_weights_scale_the_parts(sparse: GPT) -> None:
    batches = [collate([[text] for text in readings(LabelLoss.CLM)])]
    weights = {"context": 0.7, "prompt": 1.9, "pseudo_label": 3.0, "balance": 0.25}

    def loss(**chosen: float) -> float:
        given = {**dict.fromkeys(PARTS, 0.0), **chosen}
        balance = BalanceConfig(weight=given.pop("balance"))
        return stepped(sparse, batches, ObjectiveConfig(weights=PartWeights(**given), balance=balance)).loss

    alone = {part: loss(**{part: 1.0}) for part in PARTS}
    assert min(alone.values()) > 0
    assert loss(**weights) == pytest.approx(sum(weights[part] * alone[part] for part in PARTS), abs=1e-4)
    assert loss() == 0.0


def sums_of(probs_E: list[float], counts_E: list[float]) -> LayerSums:
    return LayerSums(torch.tensor([*probs_E, *counts_E, 0.0, 0.0, 0.0, 0.0], dtype=torch.float64))


def test_balance_is_1_for_even_routing_and_the_number_of_experts_for_full_collapse() -> None:
    assert sums_of([4.0] * 6, [4.0] * 6).balance() == pytest.approx(1.0)
    assert sums_of([0.0, 9.0, 0.0, 0.0], [0.0, 9.0, 0.0, 0.0]).balance() == pytest.approx(4.0)
    assert LayerSums.empty(4).balance() == 0.0


@pytest.mark.parametrize("scope", list(BalanceScope))
def test_the_balance_loss_of_a_collapsed_gate_is_the_number_of_experts(scope: BalanceScope) -> None:
    model = materialize(GPT(tiny_config([4], vocab_size=SMALL)), seed=3)
    with torch.no_grad():
        for block, layer in moe_blocks(model):
            block.mlp_norm.weight.zero_()
            block.mlp_norm.bias.fill_(1.0)
            parameter_of(layer.router).zero_()
            parameter_of(layer.router)[2] = 2.0
    collapsed = [torch.tensor([0.0, 0.0, 1.0, 0.0])] * 2
    config = ObjectiveConfig(
        weights=PartWeights(context=0, prompt=0, pseudo_label=0), balance=BalanceConfig(weight=1.0, scope=scope)
    )
    batch = collate([readings(LabelLoss.CLM)])
    part = contribution(model, batch, part_counts(model, batch), collapsed, config, 1)
    assert float(part.loss.detach()) == pytest.approx(4.0, abs=1e-4)


@pytest.mark.parametrize("scope", list(BalanceScope))
def test_the_balance_loss_moves_the_router_when_shares_are_uneven(sparse: GPT, scope: BalanceScope) -> None:
    config = ObjectiveConfig(
        weights=PartWeights(context=0, prompt=0, pseudo_label=0), balance=BalanceConfig(weight=1.0, scope=scope)
    )
    step = stepped(sparse, [collate([[text] for text in readings(LabelLoss.CLM)])], config)
    for name, gradient in step.gradients.items():
        if ".router." in name:
            assert float(gradient.abs().max()) > 1e-4


def test_the_step_balance_has_no_gradient_when_shares_are_even(sparse: GPT) -> None:
    even = [torch.full((count,), 1.0 / count) for count in sparse.expert_counts]
    config = ObjectiveConfig(weights=PartWeights(context=0, prompt=0, pseudo_label=0), balance=BalanceConfig(weight=1.0))
    batch = collate([readings(LabelLoss.CLM)])
    part = contribution(sparse, batch, part_counts(sparse, batch), even, config, 1)
    assert float(part.loss.detach()) == pytest.approx(1.0, abs=1e-5)
    for gradient in torch.autograd.grad(part.loss, [parameter_of(layer.router) for layer in moe_layers(sparse)]):
        torch.testing.assert_close(gradient, torch.zeros_like(gradient), atol=1e-6, rtol=0)


@pytest.mark.parametrize("scope", list(BalanceScope))
def test_logged_balance_comes_from_global_sums(sparse: GPT, scope: BalanceScope) -> None:
    config = ObjectiveConfig(balance=BalanceConfig(scope=scope))
    texts = readings(LabelLoss.CLM)
    batches = [collate([[text]]) for text in texts]
    logged = ledger_of(sparse, stepped(sparse, batches, config), batches, config)["balance"].value
    with torch.no_grad():
        reports = sparse(collate([texts]).inputs).routing
    by_hand = []
    for report in reports:
        fractions_E = torch.bincount(report.probs_NE.argmax(-1), minlength=report.probs_NE.shape[1]) / len(report.probs_NE)
        by_hand.append(float(report.probs_NE.shape[1] * (report.probs_NE.mean(0) * fractions_E).sum()))
    assert logged == pytest.approx(sum(by_hand) / len(by_hand), abs=1e-5)


@pytest.mark.parametrize("scope", list(BalanceScope))
@pytest.mark.parametrize("rows", [[], [[], []]])
def test_an_empty_batch_gives_a_zero_loss_and_zero_gradients(model: GPT, scope: BalanceScope, rows: list[list[Reading]]) -> None:
    batches = [collate(rows, pad_multiple=4)]
    config = ObjectiveConfig(balance=BalanceConfig(scope=scope))
    step = stepped(model, batches, config)
    assert step.loss == 0.0
    assert set(step.gradients) == {name for name, _ in model.named_parameters()}
    assert not any(bool(gradient.any()) for gradient in step.gradients.values())
    assert ledger_total(ledger_of(model, step, batches, config)) == 0.0


@pytest.mark.parametrize("rows_at_a_time", [1, 7, 1000])
def test_logits_in_chunks_equal_logits_at_once(model: GPT, monkeypatch: pytest.MonkeyPatch, rows_at_a_time: int) -> None:
    config = ObjectiveConfig(weights=WEIGHTS)
    batches = [collate([readings(LabelLoss.CLM)])]
    whole = stepped(model, batches, config)
    monkeypatch.setattr(adapt.objective, "LOGIT_ELEMENTS", SMALL * rows_at_a_time + SMALL - 1)
    chunked = stepped(model, batches, config)
    torch.testing.assert_close(chunked.sums_P, whole.sums_P, atol=1e-5, rtol=1e-5)
    for name, gradient in whole.gradients.items():
        torch.testing.assert_close(chunked.gradients[name], gradient, atol=1e-5, rtol=1e-5)


@pytest.mark.parametrize("value", [-1.0, float("nan"), float("inf")])
def test_weights_that_train_away_from_the_labels_are_refused_by_name(value: float) -> None:
    for part in ("context", "prompt", "pseudo_label"):
        with pytest.raises(ConfigError, match=f"^{part}: {value} .*a part of weight 0 is left out"):
            PartWeights(**{part: value})
    with pytest.raises(ConfigError, match=f"^weight: {value} "):
        BalanceConfig(weight=value)
