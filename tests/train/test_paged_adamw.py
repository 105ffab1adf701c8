"""AdamW over a scratch file against AdamW in memory, bit for bit; stochastic rounding; disks that are too small or fail."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor, nn

from adapt.checkpoint.offload import MomentFormat
from adapt.core.errors import ConfigError, TrainingError
from adapt.train import paged_adamw, scratch_file
from adapt.train.optimizer import MOMENTS, create_moments, make_optimizer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.paged_adamw import N_ROOMS, PagedAdamW, Paging, block_elements, stochastically_rounded

SIZES = [(7, 5), (3,), (200, 11), (1,), (64,), (3, 50, 3)]
BLOCK = 256
STEPS = 6


def model_of() -> nn.ParameterList:
    generator = torch.Generator().manual_seed(2)
    return nn.ParameterList([nn.Parameter(torch.randn(size, generator=generator)) for size in SIZES])


def optimizer_of(model: nn.Module, paging: Paging | None, *, pages_weights: bool = False) -> torch.optim.Optimizer:
    parameters = list(model.parameters())
    groups: list[dict[str, Any]] = [
        {"params": parameters[:3], "weight_decay": 0.1},
        {"params": parameters[3:], "weight_decay": 0.0},
    ]
    optimizer = make_optimizer(model, OptimizerConfig(lr=1e-2), groups, paging)
    if isinstance(optimizer, PagedAdamW):
        optimizer.lay_out(pages_weights=pages_weights)
    create_moments(optimizer, optimizer.param_groups, 0)
    return optimizer


def updated(model: nn.Module, optimizer: torch.optim.Optimizer, first: int = 0, steps: int = STEPS) -> dict[str, Tensor]:
    """Update with made-up gradients, one of which is absent at every third step; return weights, moments and steps."""
    for step in range(first, first + steps):
        generator = torch.Generator().manual_seed(step)
        for index, parameter in enumerate(model.parameters()):
            gradient = torch.randn(parameter.shape, generator=generator)
            parameter.grad = None if index == 4 and step % 3 == 0 else gradient
        for group in optimizer.param_groups:
            group["lr"] = 1e-2 / (step + 1)
        optimizer.step()
    found = {f"weight {name}": parameter.detach().clone() for name, parameter in model.named_parameters()}
    for name, parameter in model.named_parameters():
        found |= {f"{which} {name}": optimizer.state[parameter][which].clone() for which in (*MOMENTS, "step")}
    return found


def assert_same(one: dict[str, Tensor], other: dict[str, Tensor]) -> None:
    assert one.keys() == other.keys()
    assert [name for name in one if not torch.equal(one[name], other[name])] == []


@pytest.mark.parametrize("pages_weights", [False, True])
@pytest.mark.parametrize("threads", [1, 3])
def test_a_paged_update_is_that_in_memory_bit_for_bit(tmp_path: Path, pages_weights: bool, threads: int) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(threads)
    try:
        model, paged = model_of(), model_of()
        wanted = updated(model, optimizer_of(model, None))
        paging = Paging(place=tmp_path / "scratch", block=BLOCK)
        optimizer = optimizer_of(paged, paging, pages_weights=pages_weights)
        assert_same(updated(paged, optimizer), wanted)
    finally:
        torch.set_num_threads(before)


def test_moments_can_be_set_between_steps_and_are_gone_on_with(tmp_path: Path) -> None:
    model, paged = model_of(), model_of()
    optimizer = optimizer_of(model, None)
    half = updated(model, optimizer)
    wanted = updated(model, optimizer, STEPS)
    resumed = optimizer_of(paged, Paging(place=tmp_path / "scratch", block=BLOCK), pages_weights=True)
    for name, parameter in paged.named_parameters():
        with torch.no_grad():
            parameter.copy_(half[f"weight {name}"])
        for which in (*MOMENTS, "step"):
            resumed.state[parameter][which].copy_(half[f"{which} {name}"])
    assert_same(updated(paged, resumed, STEPS), wanted)


def test_the_scratch_file_has_no_name_and_takes_over_what_a_killed_run_left(tmp_path: Path) -> None:
    place = tmp_path / "work" / "scratch"
    place.parent.mkdir()
    place.write_bytes(b"left")
    model, again = model_of(), model_of()
    optimizer = optimizer_of(model, Paging(place=place, block=BLOCK))
    assert list(place.parent.iterdir()) == []
    assert_same(updated(model, optimizer), updated(again, optimizer_of(again, None)))


def test_a_disk_that_is_too_small_is_one_line_before_anything_is_trained(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def full(*_: int) -> None:
        raise OSError(28, os.strerror(28))

    monkeypatch.setattr(scratch_file.os, "posix_fallocate", full)
    with pytest.raises(ConfigError) as refusal:
        optimizer_of(model_of(), Paging(place=tmp_path / "scratch"))
    said = str(refusal.value)
    assert said.startswith(f"{tmp_path}: no 0.0 GB of scratch space for the optimizer's moments")
    assert "No space left on device" in said and "set offload.optimizer=none" in said and "\n" not in said
    assert list(tmp_path.iterdir()) == []


@pytest.mark.parametrize("call", ["preadv", "pwritev"])
def test_a_disk_that_fails_ends_the_step_with_one_line(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, call: str) -> None:
    model = model_of()
    optimizer = optimizer_of(model, Paging(place=tmp_path / "scratch", block=BLOCK))
    updated(model, optimizer, 0, 1)
    done, works = [], getattr(os, call)

    def failing(*arguments: Any) -> int:
        done.append(call)
        if len(done) > 5:
            raise OSError(5, os.strerror(5))
        return int(works(*arguments))

    monkeypatch.setattr(scratch_file.os, call, failing)
    with pytest.raises(TrainingError, match=r"scratch file cannot be (read|written) \(Input/output error\); the last saved state"):
        updated(model, optimizer, 1, 1)


def test_stochastic_rounding_takes_neighbours_keeps_the_mean_and_leaves_exact_values() -> None:
    values = torch.tensor([1.0 + 2**-10, -(1.0 + 3 * 2**-9), 3e-9, 0.0, 2.0, float("inf")]).repeat(40_000, 1)
    rounded = stochastically_rounded(values.flatten(), torch.Generator().manual_seed(1)).float().view_as(values)
    assert set(rounded[:, 0].tolist()) == {1.0, 1.0 + 2**-7}
    assert torch.equal(rounded[:, 3:], values[:, 3:])
    means, wanted = rounded[:, :3].double().mean(0), values[0, :3].double()
    assert torch.allclose(means, wanted, rtol=2**-7 * 4 / 40_000**0.5, atol=0)  # four standard errors


def test_bf16_moments_follow_from_the_seed_and_are_near_those_in_fp32(tmp_path: Path) -> None:
    def trained(seed: int, block: int = BLOCK) -> dict[str, Tensor]:
        model = model_of()
        paging = Paging(place=tmp_path / "scratch", moments=MomentFormat.BF16, seed=seed, block=block)
        return updated(model, optimizer_of(model, paging))

    one, again, other = trained(1), trained(1), trained(2)
    assert_same(one, again)
    assert any(not torch.equal(one[name], other[name]) for name in one)
    model = model_of()
    exact = updated(model, optimizer_of(model, None))
    for name, wanted in exact.items():
        if name.startswith("exp_avg"):
            assert one[name].dtype is torch.bfloat16
            # Each of the updates rounds by at most 2^-7 of the value before it, of which the last ones count most.
            largest = wanted.abs().max()
            assert (one[name].float() - wanted).abs().max() <= STEPS * 2**-7 * largest, name


def test_memory_holds_a_small_part_of_a_large_optimizer() -> None:
    for n_elements in (1 << 20, 10**8 + 7, 16 * 10**9):
        held = N_ROOMS * 12 * block_elements(n_elements)
        assert held <= 1.2 * n_elements
        assert block_elements(n_elements) % paged_adamw._LINE == 0
