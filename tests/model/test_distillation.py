"""The divergence from a teacher against its definition, gradients included, and as a part of the objective."""

from __future__ import annotations

from dataclasses import replace
from typing import cast

import pytest
import torch

import adapt.model.distillation
import adapt.objective
from adapt.core.spans import LabelLoss
from adapt.model.batches import collate
from adapt.model.distillation import Teacher
from adapt.model.gpt import GPT, materialize
from adapt.objective import PARTS, contribution, ledger_from, part_counts, parts_of
from adapt.objective_config import BASE_DIVERGENCE, DISTILLATION, ObjectiveConfig, PartWeights
from tests.support.tiny_models import tiny_config
from tests.support.training_steps import SMALL, readings

CONFIG = ObjectiveConfig(weights=PartWeights(context=0.0, prompt=0.0, pseudo_label=0.0))


@pytest.fixture(scope="module")
def student() -> GPT:
    return materialize(GPT(tiny_config([0], vocab_size=SMALL)), seed=3)


@pytest.fixture(scope="module")
def teacher() -> Teacher:
    model = materialize(GPT(tiny_config([4], vocab_size=SMALL)), seed=5).eval().requires_grad_(False)
    return Teacher(model=model, part=DISTILLATION, weight=0.5, temperature=2.0)


@pytest.mark.parametrize("at_once", [100, 3])
def test_divergence_is_its_definition(student: GPT, teacher: Teacher, at_once: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt.model.distillation, "_FP32_ELEMENTS", at_once * SMALL)
    generator = torch.Generator().manual_seed(1)
    logits = torch.empty(7, SMALL).normal_(0, 3, generator=generator).requires_grad_()
    hidden = torch.empty(7, 32).normal_(generator=generator)
    weights = torch.empty(7).normal_(generator=generator)
    found = teacher.divergence(logits, hidden)
    exact = logits.detach().double().requires_grad_()
    p = (teacher.model.logits(hidden).double() / 2).softmax(-1)
    expected = 4 * (p * (p.log() - (exact / 2).log_softmax(-1))).sum(-1)
    torch.testing.assert_close(found.double(), expected, rtol=1e-5, atol=1e-5)
    (found * weights).sum().backward()
    (expected * weights.double()).sum().backward()
    assert logits.grad is not None and exact.grad is not None
    torch.testing.assert_close(logits.grad.double(), exact.grad, rtol=1e-4, atol=1e-5)


def test_a_model_differs_in_nothing_from_itself(student: GPT) -> None:
    itself = Teacher(model=student, part=DISTILLATION)
    hidden = torch.empty(5, 32).normal_(generator=torch.Generator().manual_seed(1))
    assert float(itself.divergence(student.logits(hidden), hidden).abs().max().detach()) < 1e-5


def test_a_divergence_of_text_leaves_prompt_and_label_out(student: GPT, teacher: Teacher) -> None:
    of_text = replace(teacher, is_of_text=True, part=BASE_DIVERGENCE)
    batch = collate([[reading] for reading in readings(LabelLoss.CLM)], pad_multiple=8)
    counts = part_counts(student, batch, of_text)
    made = contribution(student, batch, counts, [], CONFIG, 1, of_text)
    ledger = ledger_from(student, made.sums_P, counts, [], CONFIG, of_text)
    assert parts_of(student, of_text) == (*PARTS, BASE_DIVERGENCE)
    assert ledger[BASE_DIVERGENCE].count == ledger["context"].count > 0
    places = batch.target_places()
    text_N = places.all_N[places.of_kind[0]]
    hidden_NH, taught_NH = (model(batch.inputs).hidden_BTH.flatten(0, 1)[text_N] for model in (student, teacher.model))
    expected = teacher.divergence(student.logits(hidden_NH), taught_NH).sum()
    assert ledger[BASE_DIVERGENCE].sum == pytest.approx(float(expected.detach()), rel=1e-5)


def test_the_divergence_is_a_part_of_the_loss_however_a_step_is_cut(
    student: GPT, teacher: Teacher, monkeypatch: pytest.MonkeyPatch
) -> None:
    texts = readings(LabelLoss.CLM)
    assert parts_of(student, teacher) == (*PARTS, DISTILLATION)
    assert parts_of(student) == PARTS

    def stepped(batches: list[list[int]]) -> tuple[float, dict[str, torch.Tensor]]:
        made = [collate([[texts[at]] for at in some], pad_multiple=8) for some in batches]
        counts = torch.stack([part_counts(student, batch, teacher) for batch in made]).sum(0)
        parts = [contribution(student, batch, counts, [], CONFIG, 1, teacher) for batch in made]
        ledger = ledger_from(student, torch.stack([part.sums_P for part in parts]).sum(0), counts, [], CONFIG, teacher)
        assert ledger[DISTILLATION].count == sum(ledger[name].count for name in PARTS[:3]) > 0
        assert ledger[DISTILLATION].weight == 0.5
        loss = torch.stack([part.loss for part in parts]).sum()
        assert float(loss.detach()) == pytest.approx(0.5 * ledger[DISTILLATION].value, abs=1e-5)
        names, parameters = zip(*student.named_parameters(), strict=True)
        gradients = torch.autograd.grad(loss, parameters, allow_unused=True)
        return float(loss.detach()), {name: g for name, g in zip(names, gradients, strict=True) if g is not None}

    whole, gradients = stepped([[0, 1, 2, 3, 4, 5, 6]])
    cut, others = stepped([[0, 1], [2], [3, 4, 5, 6]])
    monkeypatch.setattr(adapt.objective, "LOGIT_ELEMENTS", 5 * SMALL)  # logits a few positions at a time
    chunked, chunks = stepped([[0, 1, 2, 3, 4, 5, 6]])
    assert cut == pytest.approx(whole, abs=1e-5) and chunked == pytest.approx(whole, abs=1e-5)
    assert all(parameter.grad is None for parameter in cast(torch.nn.Module, teacher.model).parameters())
    for name, gradient in gradients.items():
        torch.testing.assert_close(others[name], gradient, rtol=1e-4, atol=1e-6)
        torch.testing.assert_close(chunks[name], gradient, rtol=1e-4, atol=1e-6)
