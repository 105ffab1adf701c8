"""Experts without a gradient are left as they are, the others are updated as by AdamW, and settings that do not go together."""

from __future__ import annotations

from pathlib import Path
from types import SimpleNamespace

import pytest
import torch
from torch import Tensor, nn

from adapt.checkpoint.offload import OffloadConfig, OptimizerIn
from adapt.core.errors import ConfigError
from adapt.train import scratch_file
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.idle_experts import busy_parts, idle_of, runs_in_partitions
from adapt.train.optimizer import MOMENTS, create_moments, make_optimizer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import PagedAdamW, Paging

_SHAPE = (4, 5, 7)
_STEPS = 5


class OneStack(nn.Module):
    def __init__(self) -> None:
        super().__init__()
        generator = torch.Generator().manual_seed(1)
        self.up = nn.Parameter(torch.randn(_SHAPE, generator=generator))
        self.dense = nn.Parameter(torch.randn(3, 3, generator=generator))


class Model(nn.Module):
    """A model whose parameters have the names that stacks of experts have."""

    def __init__(self) -> None:
        super().__init__()
        stack = OneStack()
        self.layer = nn.ModuleDict({"experts": stack})
        self.stack = stack


def stepped(paging: Paging | None, skips: bool) -> dict[str, Tensor]:
    """Update with gradients of which that of expert `step` modulo 4 is 0, and all of expert 2's; return weights and moments."""
    model = Model()
    config = OptimizerConfig(lr=1e-2, skip_idle_experts=skips)
    optimizer = make_optimizer(model, config, None, paging)
    if isinstance(optimizer, PagedAdamW):
        optimizer.lay_out(pages_weights=False)
    create_moments(optimizer, optimizer.param_groups, 0)
    for step in range(_STEPS):
        generator = torch.Generator().manual_seed(step)
        for parameter in model.parameters():
            parameter.grad = torch.randn(parameter.shape, generator=generator)
        gradient = model.stack.up.grad
        assert gradient is not None
        gradient[[step % 4, 2]] = 0.0
        optimizer.step()
    found = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{name} {which}": optimizer.state[parameter][which].clone() for which in MOMENTS}
    return found


def test_an_idle_expert_keeps_weights_and_moments_and_others_get_adamws_update(tmp_path: Path) -> None:
    paging = Paging(place=tmp_path / "scratch", block=64)
    skipped, whole, in_memory = stepped(paging, True), stepped(paging, False), stepped(None, False)
    name, start = "layer.experts.up", OneStack().up
    assert torch.equal(skipped[name][2], start[2]) and not torch.equal(whole[name][2], start[2])
    assert not skipped[f"{name} exp_avg"][2].any()
    for other in in_memory:
        assert torch.equal(whole[other], in_memory[other])
    assert torch.equal(skipped["layer.experts.dense"], whole["layer.experts.dense"])  # a stack too, of which none is idle
    wanted = by_hand(start.detach())
    assert torch.allclose(skipped[name], wanted, rtol=1e-6, atol=1e-7)


def by_hand(weights: Tensor) -> Tensor:
    """AdamW, expert by expert, for those with a gradient only; bias corrections by the step."""
    weights, first, second = weights.double(), torch.zeros(_SHAPE).double(), torch.zeros(_SHAPE).double()
    config = OptimizerConfig(lr=1e-2)
    for step in range(_STEPS):
        gradient = torch.randn(_SHAPE, generator=torch.Generator().manual_seed(step)).double()
        for expert in range(_SHAPE[0]):
            if expert in (step % 4, 2):
                continue
            first[expert] = config.beta1 * first[expert] + (1 - config.beta1) * gradient[expert]
            second[expert] = config.beta2 * second[expert] + (1 - config.beta2) * gradient[expert] ** 2
            mean = first[expert] / (1 - config.beta1 ** (step + 1))
            root = (second[expert] / (1 - config.beta2 ** (step + 1))).sqrt()
            weights[expert] *= 1 - config.largest_lr * config.weight_decay
            weights[expert] -= config.largest_lr * mean / (root + config.eps)
    return weights.float()


def test_blocks_of_idle_experts_are_neither_read_nor_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    places: list[int] = []
    works = scratch_file.os.preadv

    def counted(handle: int, buffers: list[memoryview], offset: int) -> int:
        places.append(offset)
        return int(works(handle, buffers, offset))

    monkeypatch.setattr(scratch_file.os, "preadv", counted)
    stepped(Paging(place=tmp_path / "scratch", block=16), False)
    all_of_them = len(places)
    places.clear()
    stepped(Paging(place=tmp_path / "scratch", block=16), True)
    assert 0 < len(places) < 0.75 * all_of_them


@pytest.mark.parametrize("rank", [0, 1])
def test_runs_in_a_ranks_partition_are_those_of_the_flat_group(rank: int, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.distributed, "get_rank", lambda group: rank)
    dense, stack = nn.Parameter(torch.zeros(3)), nn.Parameter(torch.zeros(4, 2, 2))
    partition = torch.zeros(10)
    zero = SimpleNamespace(
        single_partition_of_fp32_groups=[partition],
        real_dp_process_group=[None],
        round_robin_bit16_groups=[[dense, stack]],
        round_robin_bit16_offsets=[[0, 3]],
    )
    wanted = {0: [(3, 7), (7, 10)], 1: [(0, 1), (1, 5), (5, 9)]}[rank]
    assert runs_in_partitions(zero, {id(stack)})[partition] == wanted


def test_what_is_left_of_a_piece_has_no_idle_elements() -> None:
    assert list(busy_parts(2, 9, [(0, 3), (4, 5), (8, 12)])) == [(3, 4), (5, 8)]
    assert list(busy_parts(2, 9, [])) == [(2, 9)]
    assert list(busy_parts(2, 9, [(0, 20)])) == []
    assert list(busy_parts(2, 9, [(9, 20)])) == [(2, 9)]
    assert idle_of(torch.tensor([0.0, 0.0, 1.0, -0.0]), [(0, 2), (2, 3), (3, 4)]) == [(0, 2), (3, 4)]


def test_skipping_without_files_is_refused() -> None:
    skips = OptimizerConfig(skip_idle_experts=True)
    with pytest.raises(ConfigError, match="optimizer.skip_idle_experts: is for an optimizer in files; set offload.optimizer=paged"):
        check_optimizer(EngineConfig(), skips, OffloadConfig())
    check_optimizer(EngineConfig(), skips, OffloadConfig(optimizer=OptimizerIn.PAGED))
