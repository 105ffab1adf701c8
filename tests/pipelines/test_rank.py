"""A rank's own device is the current one before its job begins, whatever the job is; a rank without one tells its starter."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.core.runtime import RankInfo
from pipelines.ranks.launch import USER_ERROR_CODE
from pipelines.stages import rank_jobs as rank_module

JOBS = list(rank_module.JOBS)


@pytest.fixture
def happened(monkeypatch: pytest.MonkeyPatch) -> list[str]:
    """Pretend to be the second rank of a machine with two GPUs; return what happens, in order."""
    found: list[str] = []
    monkeypatch.setattr(rank_module, "set_up_logging", lambda rank: None)
    monkeypatch.setattr(rank_module.signal, "signal", lambda number, handler: None)
    monkeypatch.setattr(rank_module, "tell_starter", found.append)
    for name, value in {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "2", "OMP_NUM_THREADS": "1"}.items():
        monkeypatch.setenv(name, value)
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 2)
    monkeypatch.setattr(torch.cuda, "set_device", lambda device: found.append(f"current device {device}"))

    def job(content: dict[str, Any], rank: RankInfo) -> None:
        found.append(f"job of rank {rank.rank}")

    monkeypatch.setattr(rank_module, "JOBS", dict.fromkeys(JOBS, job))
    return found


@pytest.mark.parametrize("stage", JOBS)
def test_a_rank_takes_its_device_before_its_job_begins(stage: str, happened: list[str], tmp_path: Path) -> None:
    frozen = tmp_path / "job.yaml"
    frozen.write_text(f"stage: {stage}\n", encoding="utf-8")
    assert rank_module.run_rank(frozen) == 0
    assert happened == ["current device cuda:1", "job of rank 1"]


def test_a_rank_without_a_gpu_tells_its_starter(happened: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    frozen = tmp_path / "job.yaml"
    frozen.write_text(f"stage: {JOBS[0]}\n", encoding="utf-8")
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    assert rank_module.run_rank(frozen) == USER_ERROR_CODE
    assert len(happened) == 1
    assert "rank 1 has no GPU" in happened[0]
