"""The environment that ranks are started in, and what is said of those that fail."""

from __future__ import annotations

import os
import subprocess
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import AdaptError
from adapt.train.engine_config import EngineConfig
from pipelines.ranks.launch import _reason, launch
from pipelines.ranks.local import LOOPBACK, Death, Meeting, _peak_bytes, rank_environment

KEPT = ("MALLOC_MMAP_THRESHOLD_", "MALLOC_TRIM_THRESHOLD_")


def meeting_of(world_size: int) -> Meeting:
    return Meeting(address=LOOPBACK, port=1234, world_size=world_size)


def test_ranks_keep_freed_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    environment = rank_environment(0, 0, meeting_of(1), threads=1)
    for name in KEPT:
        assert int(environment[name]) >= 1 << 30
        assert name not in os.environ, "only ranks are told, not this process"


@pytest.mark.parametrize("own", KEPT)
@pytest.mark.parametrize("value", ["131072", ""])
def test_what_the_user_has_set_of_the_allocator_stays(own: str, value: str, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in KEPT:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv(own, value)
    environment = rank_environment(0, 0, meeting_of(1), threads=1)
    (other,) = set(KEPT) - {own}
    assert environment[own] == value
    assert int(environment[other]) >= 1 << 30


def test_a_rank_is_told_its_place_whatever_the_user_has_set(monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_PORT", "OMP_NUM_THREADS"):
        monkeypatch.setenv(name, "77")
    monkeypatch.setenv("SOMETHING_ELSE", "stays")
    environment = rank_environment(1, 1, meeting_of(3), threads=2)
    wanted = {"RANK": "1", "LOCAL_RANK": "1", "WORLD_SIZE": "3", "MASTER_PORT": "1234", "OMP_NUM_THREADS": "2"}
    assert {name: environment[name] for name in wanted} == wanted
    assert environment["MOE_ADAPT_PARENT"] == str(os.getpid())
    assert environment["SOMETHING_ELSE"] == "stays"


def test_a_rank_knows_nothing_of_an_agent_whose_port_is_not_its_job_s(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("TORCHELASTIC_USE_AGENT_STORE", "True")
    monkeypatch.setenv("TORCH_SHOW_CPP_STACKTRACES", "1")
    environment = rank_environment(0, 0, meeting_of(2), threads=1)
    assert not [name for name in environment if name.startswith("TORCHELASTIC_")]
    assert environment["TORCH_SHOW_CPP_STACKTRACES"] == "1"


def test_a_process_starts_with_that_environment() -> None:
    done = subprocess.run(["/bin/sh", "-c", "exit $RANK"], env=rank_environment(5, 5, meeting_of(6), threads=1), timeout=60)
    assert done.returncode == 5


@pytest.mark.parametrize(
    ("job", "words"),
    [
        ({"stage": "pretrain", "job": {}}, "^job.yaml: .*engine"),
        ({"stage": "none"}, r"^rank 0 died \(exit code 1\); the same command goes on"),
    ],
)
def test_what_a_rank_says_is_raised_where_it_was_started_and_else_how_it_died(
    tmp_path: Path, job: dict[str, Any], words: str
) -> None:
    with pytest.raises(AdaptError, match=words):
        launch(job, tmp_path, EngineConfig(world_size=1))
    assert not list(tmp_path.glob("rank-*")), "what is said takes no disk"


def test_the_cause_is_told_from_what_followed_from_it() -> None:
    lost_a_peer, killed, refused = Death(rank=0, code=1), Death(rank=2, code=-9), Death(rank=1, code=2, said="no such file")
    assert min([lost_a_peer, killed], key=lambda death: death.urgency) is killed
    assert min([lost_a_peer, killed, refused], key=lambda death: death.urgency) is refused


@pytest.mark.parametrize(
    ("engine", "smaller"),
    [
        (EngineConfig(micro_batch=4), "engine.micro_batch=2"),
        (EngineConfig(micro_batch=1), "engine.activation_checkpointing=full"),
    ],
)
def test_a_killed_rank_is_named_with_its_peak_and_the_nearest_smaller_setting(
    engine: EngineConfig, smaller: str, tmp_path: Path
) -> None:
    said = str(_reason(Death(rank=1, code=-9, peak_bytes=3_210_000_000), tmp_path, engine))
    assert said.startswith("rank 1 was killed (signal 9) when it held up to 3.21 GB; see ")
    assert f"if memory ran out, the nearest smaller setting is {smaller} " in said
    assert said.endswith("the same command goes on from the last saved state")


def test_a_rank_s_peak_is_seen_while_it_runs() -> None:
    assert _peak_bytes(os.getpid()) > 1 << 20
    assert _peak_bytes(1 << 30) == 0
