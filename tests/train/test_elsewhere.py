"""Whole training steps on a device that is not the CPU: masters, the fused optimizer, clipping and a loss scale, as on the CPU.

The pieces are those that a step under DeepSpeed is made of, put together by hand: DeepSpeed itself knows no stand-in.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.core.precision import Precision
from adapt.core.spans import LabelForm
from adapt.model.batches import Batch, collate
from adapt.model.gpt import GPT, materialize
from adapt.objective import Contribution, ObjectiveConfig, contribution, part_counts, part_weights, parts_of
from adapt.train.gradient_shares import gradient_shares
from adapt.train.model_preparation import router_parameters
from adapt.train.optimizer import OptimizerConfig, make_optimizer, moments_at, parameter_groups
from tests.support.inner_parts import gradient_of
from tests.support.ranks.rank_cases import BATCH_ROWS, MODELS, readings
from tests.support.stand_in_device import on_the_cpu, stand_in_device

STEPS = 3
SIZES = MODELS["sigmoid bias"]
SETTINGS = OptimizerConfig(lr=1e-2, clip=0.5, eps=1e-5)
TOO_LARGE = 2.0**30
OBJECTIVE = ObjectiveConfig()


@dataclass
class Trained:
    """What steps left: the masters, the norm of each step's gradient (None: it was skipped), and the last scale."""

    masters: dict[str, Tensor]
    norms: list[float | None]
    scale: float


def rounded_model(precision: Precision, place: torch.device) -> GPT:
    """Return a model whose weights are rounded, but for its routers', at its place."""
    model = materialize(GPT(SIZES), seed=3).train()
    routers = router_parameters(model)
    for name, parameter in model.named_parameters():
        if name not in routers:
            parameter.data = parameter.data.to(precision.dtype)
    return model.to(place)


def trained(precision: Precision, place: torch.device) -> Trained:
    """Take steps with fp32 masters; in fp16 the loss is scaled, at first too much."""
    from deepspeed.runtime.utils import has_inf_or_nan
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    model = rounded_model(precision, place)
    weights = dict(model.named_parameters())
    masters = {name: nn.Parameter(weight.detach().float().clone()) for name, weight in weights.items()}
    optimizer = make_optimizer(model, SETTINGS, parameter_groups(Masters(masters), SETTINGS))
    for group in optimizer.param_groups:
        for master in group["params"]:
            optimizer.state[master] = moments_at(master, group, 0)
    scale = TOO_LARGE if precision is Precision.FP16 else 1.0
    norms: list[float | None] = []
    rows = [[reading] for reading in readings(LabelForm.CLM)]
    shares = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    while len([norm for norm in norms if norm is not None]) < STEPS:
        batch = collate(rows[:BATCH_ROWS], 1, len(norms), range(BATCH_ROWS)).to(place)
        part = contribution(model, batch, part_counts(model, batch), shares, OBJECTIVE, world_size=1)
        (part.loss * scale).backward()
        for name, weight in weights.items():
            assert weight.grad is not None, name
            masters[name].grad, weight.grad = weight.grad.float(), None
        gradients = [gradient_of(master) for master in masters.values()]
        has_overflown = any(bool(has_inf_or_nan(gradient)) for gradient in gradients)
        if has_overflown:
            norms.append(None)
            scale /= 2
        else:
            norm = torch.nn.utils.get_total_norm(gradients)
            norms.append(norm.item() / scale)
            clipping: Any = SimpleNamespace(clip_grad=SETTINGS.clip, loss_scale=scale, device=place)
            DeepSpeedZeroOptimizer.unscale_and_clip_grads(clipping, gradients, norm)
            optimizer.step()
            model.after_step([layer.counts_E for layer in part.layers])
            with torch.no_grad():
                for name, weight in weights.items():
                    weight.copy_(masters[name])
    return Trained(masters={name: on_the_cpu(m) for name, m in masters.items()}, norms=norms, scale=scale)


class Masters(nn.Module):
    """Parameters under the names of others."""

    def __init__(self, masters: dict[str, nn.Parameter]) -> None:
        super().__init__()
        self.masters = masters

    def named_parameters(self, *arguments: Any, **options: Any) -> Any:
        return iter(self.masters.items())


@pytest.mark.parametrize("precision", [Precision.FP32, Precision.BF16, pytest.param(Precision.FP16, marks=pytest.mark.slow)])
def test_steps_elsewhere_are_those_of_the_cpu(precision: Precision) -> None:
    wanted = trained(precision, torch.device("cpu"))
    with stand_in_device() as device:
        found = trained(precision, device)
    assert [norm is None for norm in found.norms] == [norm is None for norm in wanted.norms]
    assert (None in wanted.norms) is (precision is Precision.FP16)
    assert found.scale == wanted.scale
    tolerance = 1e-4 if precision is Precision.FP32 else 0.02
    for got, want in zip(found.norms, wanted.norms, strict=True):
        assert got == (None if want is None else pytest.approx(want, rel=tolerance))
    start = dict(materialize(GPT(SIZES), seed=3).named_parameters())
    for name, master in wanted.masters.items():  # where a gradient is all rounding, Adam makes whole steps of it
        moved = (master - start[name].detach()).abs().mean()
        assert moved > 0, name
        assert (found.masters[name] - master).abs().mean() <= max(10 * tolerance, 1e-2) * moved, name


def shares_at(place: torch.device) -> dict[str, float]:
    """Measure the parts' shares in the gradient of a model at its place."""
    model = materialize(GPT(MODELS["noisy"]), seed=3).train().to(place)
    batch = collate([[reading] for reading in readings(LabelForm.CLM)[:5]], 1, 0, range(5)).to(place)
    even = [torch.full((n,), 1.0 / n, dtype=torch.float64) for n in model.expert_counts]
    counts = part_counts(model, batch)

    def contribute(some: Batch) -> Contribution:
        return contribution(model, some, counts, even, OBJECTIVE, world_size=1)

    def norm(gradients: Mapping[str, Tensor]) -> float:
        return float(sum(gradient.double().square().sum() for gradient in gradients.values())) ** 0.5

    return gradient_shares(model, parts_of(model), part_weights(model, OBJECTIVE), [batch], contribute, norm, 1, scale=8.0)


def test_shares_in_the_gradient_elsewhere_are_those_of_the_cpu() -> None:
    wanted = shares_at(torch.device("cpu"))
    with stand_in_device() as device:
        assert shares_at(device) == pytest.approx(wanted, rel=1e-4, abs=1e-6)
