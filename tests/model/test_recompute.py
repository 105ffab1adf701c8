"""Activation checkpointing: the same bits, and no decision made twice."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.core.runtime import generator_for
from adapt.core.spans import LabelForm, Span, SpannedText, read_with_targets
from adapt.model.batches import Batch, collate
from adapt.model.config import Recompute
from adapt.model.experts import Experts
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel
from adapt.model.hf_families import FAMILIES, check_recompute
from adapt.model.lora_config import LoraConfig
from adapt.model.routers.contract import all_routers
from adapt.objective import Contribution, contribution, part_counts
from adapt.objective_config import BalanceConfig, BalanceScope, ObjectiveConfig
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only
from tests.support.hf_checkpoints import make_model
from tests.support.inner_parts import gradient_of, moe_layers, parameter_of
from tests.support.lora_cases import ALL_GROUPS
from tests.support.router_variants import VARIANTS
from tests.support.tiny_models import tiny_config

AGAIN = [Recompute.SELECTIVE, Recompute.FULL]
OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.1, scope=BalanceScope.MICROBATCH))


def made(recompute: Recompute, **changes: Any) -> GPT:
    model = materialize(GPT(tiny_config([3, 6], vocab_size=120, context_length=64, **changes)), seed=1).train()
    model.set_recompute(recompute)
    return model


def batch(lengths: tuple[int, ...] = (29, 7, 40, 13), documents_per_row: int = 1) -> Batch:
    readings = []
    for row, length in enumerate(lengths):
        ids_T = generator_for("recompute", row).integers(5, 120, length)
        kinds_T = generator_for("kinds", row).integers(0, len(Span), length)
        readings.append(read_with_targets(SpannedText(ids_T=ids_T, kinds_T=kinds_T), LabelForm.CLM, 4))
    rows = [readings[start : start + documents_per_row] for start in range(0, len(readings), documents_per_row)]
    return collate(rows, step=3, row_keys=range(len(rows)))


def contributed(model: GPT, some: Batch) -> Contribution:
    even = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    return contribution(model, some, part_counts(model, some), even, OBJECTIVE, world_size=1)


def gradients(model: GPT, some: Batch) -> tuple[dict[str, Tensor], Contribution]:
    part = contributed(model, some)
    part.loss.backward()
    return {name: p.grad for name, p in model.named_parameters() if p.grad is not None}, part


CASES = [*((variant, None) for variant in all_routers()), ("top2", 0.8), ("s_base", 0.8)]


@pytest.mark.parametrize(("variant", "capacity_factor"), CASES)
def test_gradients_and_ledger_are_the_same_bits(variant: str, capacity_factor: float | None) -> None:
    changes = {"router": VARIANTS[variant], "capacity_factor": capacity_factor}
    wanted, kept = gradients(made(Recompute.NONE, **changes), batch())
    for recompute in AGAIN:
        found, part = gradients(made(recompute, **changes), batch())
        assert torch.equal(part.sums_P, kept.sums_P)
        assert torch.equal(part.losses_P, kept.losses_P)
        assert all(torch.equal(a.values_S, b.values_S) for a, b in zip(part.layers, kept.layers, strict=True))
        assert set(found) == set(wanted)
        for name, gradient in wanted.items():
            assert torch.equal(found[name], gradient), name


def foreign_gradients(base: Path, trains: Trained, lora: LoraConfig, recompute: Recompute) -> tuple[Tensor, dict[str, Tensor]]:
    """Return the loss of a Hugging Face base, and the gradients of what is trained of it or beside it."""
    model = load_model(base).train()
    assert isinstance(model, HFModel)
    train_only(model, trains, lora)
    model.set_recompute(recompute)
    even, some = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts], batch()
    part = contribution(model, some, part_counts(model, some), even, OBJECTIVE if even else ObjectiveConfig(), world_size=1)
    part.loss.backward()
    return part.loss.detach(), {name: p.grad for name, p in model.named_parameters() if p.grad is not None}


FAST_FAMILIES = ("llama", "qwen3_moe")


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in FAST_FAMILIES else pytest.mark.slow) for family in FAMILIES if family != "mixtral"],
)
def test_layers_of_a_hugging_face_base_give_the_same_bits(family: str, tmp_path: Path) -> None:
    base = make_model(tmp_path / "base", family, 120)
    for trains in (Trained.ALL, *([Trained.LORA] if family in ALL_GROUPS else [])):
        lora = LoraConfig(rank=3, targets=ALL_GROUPS.get(family))
        loss, wanted = foreign_gradients(base, trains, lora, Recompute.NONE)
        for recompute in AGAIN:
            found_loss, found = foreign_gradients(base, trains, lora, recompute)
            assert torch.equal(found_loss, loss) and set(found) == set(wanted)
            assert all(torch.equal(found[name], gradient) for name, gradient in wanted.items())


def test_a_family_that_overwrites_its_decisions_is_refused() -> None:
    with pytest.raises(ConfigError, match="activation_checkpointing: full: routers of model_type 'mixtral' .*; set it to none"):
        check_recompute("mixtral", Recompute.FULL)
    check_recompute("mixtral", Recompute.NONE)


LOOK_AHEAD = [name for name in all_routers() if made(Recompute.NONE, router=VARIANTS[name]).router_traits.looks_ahead]


def test_routers_that_look_ahead_are_known() -> None:
    assert set(LOOK_AHEAD) == {"s_base", "expert_choice"}


@pytest.mark.parametrize("recompute", AGAIN)
@pytest.mark.parametrize("variant", LOOK_AHEAD)
def test_a_look_ahead_over_packed_sequences_gives_the_same_bits_again(variant: str, recompute: Recompute) -> None:
    some = batch(documents_per_row=2)
    wanted, kept = gradients(made(Recompute.NONE, router=VARIANTS[variant]), some)
    found, part = gradients(made(recompute, router=VARIANTS[variant]), some)
    assert torch.equal(part.loss, kept.loss)
    assert set(found) == set(wanted)
    for name, gradient in wanted.items():
        assert torch.equal(found[name], gradient), name


@pytest.mark.parametrize("recompute", AGAIN)
@pytest.mark.parametrize("variant", LOOK_AHEAD)
def test_a_look_ahead_is_never_taken_again(variant: str, recompute: Recompute, monkeypatch: pytest.MonkeyPatch) -> None:
    sent: dict[Experts, list[tuple[Tensor, Tensor]]] = {}
    original = Experts.forward

    def recorded(experts: Experts, x_NH: Tensor, token_K: Tensor, expert_K: Tensor, weight_K: Tensor) -> tuple[Tensor, Tensor]:
        sent.setdefault(experts, []).append((token_K, expert_K))
        return original(experts, x_NH, token_K, expert_K, weight_K)

    monkeypatch.setattr(Experts, "forward", recorded)
    model, some = made(recompute, router=VARIANTS[variant]), batch()
    part = contributed(model, some)
    for layer in moe_layers(model):
        parameter_of(layer.router).data.neg_()  # a second look would send every token elsewhere
    contributed(model, some)
    part.loss.backward()
    assert len(sent) == 2
    for first, other, again in sent.values():
        assert len(first[0]) != len(other[0]) or not all(map(torch.equal, first, other)), "the weights decide"
        assert all(map(torch.equal, first, again))


@pytest.mark.parametrize("recompute", AGAIN)
@pytest.mark.parametrize("variant", ["top1", "top2", "sigmoid_bias", "large_margin"])
def test_a_decision_is_never_made_again(variant: str, recompute: Recompute) -> None:
    model, some = made(recompute, router=VARIANTS[variant]), batch()
    part = contributed(model, some)
    for layer in moe_layers(model):
        parameter_of(layer.router).data.neg_()  # a second decision would send every token elsewhere
    part.loss.backward()
    for layer, sums in zip(moe_layers(model), part.layers, strict=True):
        has_gradient_E = gradient_of(layer.experts.up_bias).any(-1)
        assert torch.equal(has_gradient_E, sums.counts_E > 0)
