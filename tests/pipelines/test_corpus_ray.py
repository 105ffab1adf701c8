"""Corpus passes on a Ray cluster: the shards of this machine, after a kill too, and what is refused."""

from __future__ import annotations

import hashlib
import importlib.util
import json
import random
import signal
import socket
import subprocess
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

from tests.support.command_line import ROOT, command, refused

pytest.importorskip("adapt.text.cleaning.executors")

has_ray = importlib.util.find_spec("ray") is not None
needs_ray = pytest.mark.skipif(not has_ray, reason="ray is not installed; it comes with the extra corpus-ray")
RAY = ["corpus.executor=ray", "corpus.workers=2"]


def corpus(place: Path) -> list[str]:
    """Write files with repeats inside a file and across two; return the arguments that name them."""
    draw = random.Random(3)
    texts = ["".join(chr(draw.randint(0x4E00, 0x9000)) for _ in range(200)) for _ in range(1200)]
    for number in range(4):
        own = texts[number * 300 : number * 300 + 315] + texts[number * 300 : number * 300 + 15]
        rows = [json.dumps({"text": text}, ensure_ascii=False) for text in own]
        (place / f"news_{number}.jsonl").write_text("\n".join(rows), encoding="utf-8")
    return [f"data.corpus=[{place}/*.jsonl]", "run.name=c"]


def shards(runs: Path) -> dict[str, str]:
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in (runs / "c" / "corpus").glob("*.gz")}


def killed_in_the_first_pass(arguments: list[str], runs: Path) -> None:
    """Kill a command once it has finished a file."""
    process = subprocess.Popen(command("corpus", *arguments), cwd=ROOT, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL)
    while not list(runs.glob("**/passes/clean/completions/*")) and process.poll() is None:
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    assert process.wait() == -signal.SIGKILL
    assert not shards(runs)


@needs_ray
@pytest.mark.slow
def test_a_ray_cluster_makes_the_shards_that_this_machine_makes(tmp_path: Path, run_here: Callable[[str, list[str]], str]) -> None:
    arguments = corpus(tmp_path)
    run_here("corpus", [*arguments, f"run.dir={tmp_path}/here"])
    before = signal.getsignal(signal.SIGTERM)
    run_here("corpus", [*arguments, f"run.dir={tmp_path}/there", *RAY])
    assert signal.getsignal(signal.SIGTERM) is before
    assert len(shards(tmp_path / "here")) == 4
    assert shards(tmp_path / "there") == shards(tmp_path / "here")
    assert "unchanged, skipped" in run_here("corpus", [*arguments, f"run.dir={tmp_path}/there"])  # the key is the same


@needs_ray
@pytest.mark.slow
@pytest.mark.parametrize("begun", [RAY, []], ids=["on-ray", "on-this-machine"])
def test_a_killed_command_goes_on_on_a_ray_cluster(
    begun: list[str], tmp_path: Path, run_here: Callable[[str, list[str]], str]
) -> None:
    arguments = corpus(tmp_path)
    run_here("corpus", [*arguments, f"run.dir={tmp_path}/whole"])
    torn = [*arguments, f"run.dir={tmp_path}/torn"]
    killed_in_the_first_pass([*torn, *begun], tmp_path / "torn")
    run_here("corpus", [*torn, *RAY])
    assert shards(tmp_path / "torn") == shards(tmp_path / "whole")


@needs_ray
@pytest.mark.slow
def test_what_a_task_is_refused_for_is_the_commands_message(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*corpus(tmp_path), f"run.dir={tmp_path}/runs", *RAY]
    (tmp_path / "news_2.jsonl").write_text('{"text": "好"}\n{"text": 3}\n', encoding="utf-8")
    refused("corpus", arguments, ["news_2.jsonl, line 2", "no text field"], monkeypatch, capsys)
    refused("corpus", [*arguments, "corpus.ray.cpus_per_task=4000"], ["no node", "4000 cores"], monkeypatch, capsys)


@needs_ray
def test_an_address_where_nothing_listens_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        address = f"127.0.0.1:{free.getsockname()[1]}"
    arguments = [*corpus(tmp_path), f"run.dir={tmp_path}/runs", *RAY, f"corpus.ray.address={address}"]
    refused("corpus", arguments, [f"corpus.ray.address={address}", "no Ray cluster answers"], monkeypatch, capsys)


def test_without_ray_the_executor_is_refused_before_anything_is_read(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    find = importlib.util.find_spec

    def without_ray(name: str, *arguments: Any) -> Any:
        return None if name == "ray" else find(name, *arguments)

    monkeypatch.setattr(importlib.util, "find_spec", without_ray)
    arguments = ["data.corpus=/no/such.jsonl", f"run.dir={tmp_path}/runs", "corpus.executor=ray"]
    refused("corpus", arguments, ["needs ray", "moe-adapt[corpus-ray]", "corpus.executor=local"], monkeypatch, capsys)
    assert not (tmp_path / "runs").exists()


def test_an_address_is_a_host_and_a_port(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    arguments = [*corpus(tmp_path), f"run.dir={tmp_path}/runs", "corpus.executor=ray", "corpus.ray.address=head"]
    refused("corpus", arguments, ["corpus.ray.address: 'head' is not host:port"], monkeypatch, capsys)
