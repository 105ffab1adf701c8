"""Moments lie where the optimizer that updates them wants them: at the start, after a resume, and taken from a base."""

from __future__ import annotations

from types import SimpleNamespace
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.model.buffers import named_state
from adapt.train.lamb import Lamb
from adapt.train.optimizer import MOMENTS, make_optimizer, moments_at
from adapt.train.optimizer_config import Algorithm, OptimizerConfig
from tests.support.stand_in_device import DEVICE, on_the_cpu, stand_in_device

BEGUN = (0, 7)
ADAMW = OptimizerConfig(lr=1e-2)


def layer() -> nn.Module:
    torch.manual_seed(1)
    return nn.Linear(3, 2)


def moments_of(model: nn.Module) -> dict[str, dict[str, Tensor]]:
    return {which: {name: torch.full_like(p, 0.25, device="cpu") for name, p in model.named_parameters()} for which in MOMENTS}


def engine_at_zero_0(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    from adapt.train.zero0_engine import WholeEngine  # imports DeepSpeed

    engine: Any = WholeEngine.__new__(WholeEngine)
    engine._model, engine._zero = model, optimizer
    return engine


def engine_at_zero_2(model: nn.Module, optimizer: torch.optim.Optimizer) -> Any:
    """Return an engine whose partitions are the parameters themselves."""
    from adapt.train.engine import Engine  # imports DeepSpeed

    engine: Any = Engine.__new__(Engine)
    flat = [parameter for group in optimizer.param_groups for parameter in group["params"]]
    groups = [{**group, "params": [parameter]} for group in optimizer.param_groups for parameter in group["params"]]
    engine._model = model
    engine._zero = SimpleNamespace(
        single_partition_of_fp32_groups=flat,
        param_groups=groups,
        optimizer=optimizer,
        _lazy_init_hp_params_optimizer_state=lambda: None,
    )
    return engine


@pytest.mark.parametrize("steps_done", BEGUN)
@pytest.mark.parametrize("engine_of", [engine_at_zero_0, engine_at_zero_2])
def test_moments_of_an_engine_are_where_fused_adamw_updates_them(engine_of: Any, steps_done: int) -> None:
    updated = []
    with stand_in_device() as device:
        for place in (torch.device("cpu"), device):
            model = layer().to(place)
            optimizer = make_optimizer(model, ADAMW)
            engine = engine_of(model, optimizer)
            engine._create_moments(steps_done)
            assert engine.updates_done == steps_done
            for parameter in model.parameters():
                step = optimizer.state[parameter]["step"]
                assert (step.device, step.dtype, step.dim()) == (parameter.device, torch.float32, 0)
                parameter.grad = torch.full_like(parameter, 0.5)
            optimizer.step()
            updated.append({name: on_the_cpu(tensor) for name, tensor in named_state(model)})
    for name, tensor in updated[0].items():
        assert torch.equal(tensor, updated[1][name]), name


def test_moments_that_are_set_are_where_the_weights_are() -> None:
    with stand_in_device() as device:
        model = layer().to(device)
        optimizer = make_optimizer(model, ADAMW)
        engine_at_zero_0(model, optimizer).set_moments(moments_of(model), 5)
        for parameter in model.parameters():
            parameter.grad = torch.full_like(parameter, 0.5)
        optimizer.step()
        for parameter in model.parameters():
            state = optimizer.state[parameter]
            assert {tensor.device for tensor in state.values()} == {DEVICE}
            assert state["step"].item() == 6


def test_lamb_counts_its_steps_on_the_host() -> None:
    with stand_in_device() as device:
        model = layer().to(device)
        lamb = make_optimizer(model, OptimizerConfig(algorithm=Algorithm.LAMB))
        assert isinstance(lamb, Lamb)
        engine_at_zero_0(model, lamb)._create_moments(3)
        for parameter in model.parameters():
            assert lamb.state[parameter]["step"].device.type == "cpu"
            parameter.grad = torch.full_like(parameter, 0.5)
        lamb.step()
        assert {state["step"].item() for state in lamb.state.values()} == {4}


def test_fresh_moments_are_those_that_adamw_makes_itself() -> None:
    model = layer()
    optimizer = make_optimizer(model, ADAMW)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for group in optimizer.param_groups:
        for parameter in group["params"]:
            for key, value in moments_at(parameter, group, 1).items():
                own = optimizer.state[parameter][key]
                assert (own.dtype, own.device, own.shape) == (value.dtype, value.device, value.shape)
                assert torch.equal(own, value)
