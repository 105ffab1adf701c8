"""Training with a paged optimizer is training with one in memory, bit for bit, across kills and from one to the other."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from tests.support.forked_ranks import launch_ranks
from tests.support.ranks.paged_cases import FEW, every_case

_BF16_LOSS = 2**-7  # relative: the step of bf16, by which every moment may be off


def assert_same_bits(one: dict[str, Any], other: dict[str, Any]) -> None:
    assert one["history"] == other["history"]
    assert [name for name, weight in other["weights"].items() if not torch.equal(one["weights"][name], weight)] == []


def assert_all(results: dict[str, Any], cases: tuple[Any, ...]) -> None:
    for case in cases:
        assert_same_bits(results[str(case)], results[f"{case}, undisturbed"])
    rounded = results["bf16 moments"]
    assert_same_bits(rounded, results["bf16 moments, undisturbed"])
    exact = results["fp32 moments"]
    assert rounded["history"] != exact["history"]
    for line, wanted in zip(rounded["history"], exact["history"], strict=True):
        assert abs(line["loss/total"] - wanted["loss/total"]) <= _BF16_LOSS * wanted["loss/total"]
    assert results["left"] == []


def test_a_paged_optimizer_trains_as_one_in_memory_across_a_kill(tmp_path: Path) -> None:
    assert_all(launch_ranks("paged_cases", tmp_path, 1, "few"), FEW)


@pytest.mark.slow
@pytest.mark.parametrize("world_size", [1, 2])
def test_every_engine_trains_the_same_with_a_paged_optimizer(tmp_path: Path, world_size: int) -> None:
    assert_all(launch_ranks("paged_cases", tmp_path, world_size, "all", timeout_s=1200), every_case(world_size))
