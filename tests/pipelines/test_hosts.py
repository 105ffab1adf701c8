"""Hostfiles, which ranks go where, and what is said of hosts that cannot be used."""

from __future__ import annotations

import json
import stat
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import AdaptError, ConfigError
from adapt.train.engine_config import EngineConfig
from pipelines.ranks.hosts import Host, HostRanks, check_hosts, read_hosts, spread
from pipelines.ranks.launch import launch
from pipelines.ranks.remote import passed_on
from tests.support.command_line import ROOT, refused


def hostfile(place: Path, text: str) -> Path:
    path = place / "hosts"
    path.write_text(text, encoding="utf-8")
    return path


def shell_script(place: Path, text: str) -> str:
    path = place / "shell"
    path.write_text(f"#!/bin/sh\n{text}\n", encoding="utf-8")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return str(path)


def test_a_hostfile_has_a_host_a_line_and_comments(tmp_path: Path) -> None:
    path = hostfile(tmp_path, "# two nodes\nnode-1 slots=8\n\n  10.0.0.2   slots=4  # half of it\n")
    assert read_hosts(path) == [Host(name="node-1", slots=8), Host(name="10.0.0.2", slots=4)]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("a slots=2\nb\n", r"hosts:2: 'b' is not `host slots=n`"),
        ("a slots=0\n", r"hosts:1: 'a slots=0' is not"),
        ("a slots=two\n", r"hosts:1: "),
        ("a slots=2 b slots=2\n", r"hosts:1: "),
        ("a slots=2\na slots=2\n", r"hosts:2: host a stands twice; add its slots up"),
        ("# nothing\n", r"names no host; give lines `host slots=n`"),
    ],
)
def test_a_hostfile_that_says_something_else_is_refused_by_its_line(tmp_path: Path, text: str, words: str) -> None:
    with pytest.raises(ConfigError, match=words):
        read_hosts(hostfile(tmp_path, text))


def test_a_hostfile_that_is_not_there_is_refused(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"engine\.hostfile: .*none cannot be read"):
        read_hosts(tmp_path / "none")


def test_ranks_fill_hosts_in_order() -> None:
    hosts = [Host(name="a", slots=2), Host(name="b", slots=3), Host(name="c", slots=1)]
    assert spread(hosts, 6) == [
        HostRanks(host="a", first=0, count=2), HostRanks(host="b", first=2, count=3), HostRanks(host="c", first=5, count=1),
    ]  # fmt: skip
    assert spread(hosts, 3) == [HostRanks(host="a", first=0, count=2), HostRanks(host="b", first=2, count=1)]


def test_as_many_slots_as_ranks_are_demanded(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    path = hostfile(tmp_path, "a slots=2\nb slots=2\n")
    check_hosts(EngineConfig(world_size=4, hostfile=str(path)))
    check_hosts(EngineConfig(world_size=3))
    words = ["has 4 slots, and engine.world_size is 2", "set engine.world_size=4"]
    refused("run", ["experiment=demo", f"engine.hostfile={path}", "engine.world_size=2"], words, monkeypatch, capsys)


def test_variables_of_communication_are_passed_on_and_a_hosts_own_are_not() -> None:
    given = {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0", "CUDA_VISIBLE_DEVICES": "1", "HOME": "/root", "RANK": "3"}
    assert passed_on(given) == {"NCCL_SOCKET_IFNAME": "eth0", "GLOO_SOCKET_IFNAME": "eth0"}


def launched(place: Path, shell: str, job: dict[str, Any] | None = None) -> str:
    """Launch a job (of no stage) on two hosts and return what ended it."""
    engine = EngineConfig(world_size=2, hostfile=str(hostfile(place, "one slots=1\ntwo slots=1\n")), remote_shell=shell)
    work = place / "work"
    work.mkdir()
    with pytest.raises(AdaptError) as raised:
        launch(job or {"stage": "none"}, work, engine)
    return str(raised.value)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("exit 255", "host one cannot be used, or was lost (exit code 255"),
        ("exit 0", "host one cannot be used, or was lost (exit code 0"),
        ('if [ "$1" = two ]; then echo no route to two >&2; exit 255; fi; shift; exec sh -c "$*"', "host two cannot be used"),
    ],
)
def test_a_host_that_cannot_be_reached_is_named(tmp_path: Path, text: str, words: str) -> None:
    said = launched(tmp_path, shell_script(tmp_path, text))
    assert said.startswith(words)
    assert "engine.remote_shell" in said
    assert "two" not in words or "no route to two" in said


def test_what_a_rank_says_on_another_host_is_raised_here(tmp_path: Path) -> None:
    said = launched(tmp_path, shell_script(tmp_path, 'shift; exec sh -c "$*"'), {"stage": "pretrain", "job": {}})
    assert said.startswith("job.yaml: ")
    assert "engine" in said


@pytest.mark.parametrize("shell", ["/nowhere/ssh", "'unbalanced"])
def test_a_remote_shell_that_is_no_command_is_named(tmp_path: Path, shell: str) -> None:
    assert launched(tmp_path, shell).startswith(f"engine.remote_shell: '{shell}' cannot be started (")


@pytest.mark.slow
def test_a_directory_that_is_not_shared_is_named(tmp_path: Path) -> None:
    frozen = tmp_path / "job.yaml"
    order = {
        "host": "two", "frozen": str(frozen), "token": "fresh", "first": 1, "count": 1, "world_size": 2, "address": "one",
        "port": 1, "threads": 1, "environment": {},
    }  # fmt: skip
    frozen.with_name("hosts.token").write_text("stale", encoding="utf-8")
    command = [sys.executable, "-m", "pipelines.ranks.node"]
    done = subprocess.run(command, input=json.dumps(order) + "\n", cwd=ROOT, capture_output=True, text=True, timeout=120)
    assert done.returncode == 1
    refusal, end = (json.loads(line) for line in done.stdout.splitlines())
    said = refusal["error"]
    assert end == {"end": 1}
    assert said.startswith(f"two: {tmp_path} is not the directory that the command writes to")
    assert "file system that all hosts share" in said
