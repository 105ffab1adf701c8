"""Masters and moments in the host's memory: steps are those with everything in one place, on ranks and beside another device."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import torch
from torch import Tensor

from adapt.train.host_optimizer import hold_on_host
from adapt.train.optimizer import make_optimizer, moments_at
from adapt.train.optimizer_config import OptimizerConfig
from tests.support.forked_ranks import launch_ranks
from tests.support.ranks.host_cases import CASES
from tests.support.stand_in_device import on_the_cpu, stand_in_device

SETTINGS = OptimizerConfig(lr=1e-2, clip=0.5)
SIZE = 7


def test_training_with_the_optimizer_on_the_host_is_that_with_it_in_memory_across_a_kill(tmp_path: Path) -> None:
    results = launch_ranks("host_cases", tmp_path, 2)
    for case in CASES:
        found, wanted = results[str(case)], results[f"{case}, undisturbed"]
        assert found["history"] == wanted["history"], case
        assert [name for name in wanted["weights"] if not torch.equal(found["weights"][name], wanted["weights"][name])] == [], case


def one_group(place: torch.device, clip: Callable[..., None]) -> Any:
    """Return what a step of DeepSpeed's ZeRO-2 reads of it, with one group of rounded weights; all of it is at a place."""
    weights = torch.linspace(-1, 1, SIZE).bfloat16().to(place)
    master = weights.float().requires_grad_()
    zero = SimpleNamespace(
        single_partition_of_fp32_groups=[master],
        weights=weights,
        optimizer=make_optimizer(torch.nn.Module(), SETTINGS, [{"params": [master], "weight_decay": 0.1}]),
        _get_preflattened_grad_partition=lambda index: torch.linspace(3, -2, SIZE).to(place),
        clip_grad=SETTINGS.clip,
        loss_scale=1.0,
        device=place,
    )
    zero.unscale_and_clip_grads = lambda partitions, norm: clip(zero, partitions, norm)
    return zero


def steps(zero: Any) -> tuple[Tensor, Tensor]:
    """Take two steps in the order of DeepSpeed's; return the masters and the weights."""
    (master,), group = zero.single_partition_of_fp32_groups, zero.optimizer.param_groups[0]
    zero.optimizer.state[master] = moments_at(master, group, 0)
    for _ in range(2):
        gradient = zero._get_preflattened_grad_partition(0).to(master.dtype)
        norm = torch.linalg.vector_norm(torch.linspace(3, -2, SIZE).to(zero.weights.device))
        master.grad = gradient
        zero.unscale_and_clip_grads([gradient], norm)
        zero.optimizer.step()
        zero.weights.copy_(master.detach())
    return master.detach(), zero.weights


def test_a_step_on_the_host_is_that_beside_the_weights() -> None:
    from deepspeed.runtime.zero.stage_1_and_2 import DeepSpeedZeroOptimizer

    clip = DeepSpeedZeroOptimizer.unscale_and_clip_grads
    wanted = steps(one_group(torch.device("cpu"), clip))
    with stand_in_device() as device:
        zero = one_group(device, clip)
        hold_on_host(zero)
        masters, weights = steps(zero)
    assert masters.device.type == "cpu" and weights.device == device
    assert torch.equal(masters, wanted[0]) and torch.equal(on_the_cpu(weights), wanted[1])
    assert not torch.equal(masters, torch.linspace(-1, 1, SIZE).bfloat16().float())
