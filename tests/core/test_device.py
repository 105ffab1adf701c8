"""A rank takes its own device, and makes it the current one."""

from __future__ import annotations

import pytest
import torch

from adapt.core.device import take_device
from adapt.core.errors import ConfigError
from adapt.core.runtime import RankInfo


def rank(local_rank: int) -> RankInfo:
    return RankInfo(rank=8 + local_rank, world_size=16, local_rank=local_rank)


@pytest.fixture
def made_current(monkeypatch: pytest.MonkeyPatch) -> list[torch.device]:
    """Pretend that there are four GPUs; return what is made the current one."""
    found: list[torch.device] = []
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 4)
    monkeypatch.setattr(torch.cuda, "set_device", found.append)
    return found


@pytest.mark.parametrize("local_rank", range(4))
def test_a_rank_takes_the_gpu_of_its_place_on_the_machine(made_current: list[torch.device], local_rank: int) -> None:
    assert take_device(rank(local_rank)) == torch.device("cuda", local_rank)
    assert made_current == [torch.device("cuda", local_rank)]


def test_a_rank_beyond_the_gpus_is_told_so(made_current: list[torch.device]) -> None:
    with pytest.raises(ConfigError, match=r"rank 12 has no GPU: it is number 5 on its machine, where 4 can be seen"):
        take_device(rank(4))
    assert made_current == []


def test_without_a_gpu_a_rank_computes_on_the_cpu(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    assert take_device(rank(3)) == torch.device("cpu")
