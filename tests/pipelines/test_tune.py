"""`pipelines.tune`: the search over settings on invented times, and a real search."""

from __future__ import annotations

import json
import re
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest

import pipelines.ranks.fresh_processes as fresh_processes
from adapt.checkpoint.offload import OffloadConfig, OptimizerIn
from adapt.core.errors import AdaptError, ConfigError
from adapt.model.config import Recompute
from adapt.train.engine_config import EngineConfig
from pipelines.tools import tune
from pipelines.tools.tuned_steps import Batch, RankSteps, Subject
from tests.support.command_line import composed, run

MODEL = ["model=tiny", "model.vocab_size=300", "tune.batch_rows=8", "tune.rounds=2", "engine.threads=1", "tune.threads=[1]"]
PEAK = 316_000_000  # between the plans of the smallest and of the largest micro-batch
Seconds = Callable[[EngineConfig, OffloadConfig], float | str]


@pytest.fixture
def tuned(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], tmp_path: Path) -> Callable[..., tuple[str, Any]]:
    """Return a function that tunes with invented seconds, or a failure's words, and returns what is said and written."""

    def go(seconds: Seconds, *arguments: str) -> tuple[str, Any]:
        def on_ranks(
            n_ranks: int, threads: int, function: object, subject: Subject, batch: Batch, engine: EngineConfig,
            offload: OffloadConfig, scratch: str,
        ) -> list[RankSteps]:  # fmt: skip
            assert threads == engine.threads
            assert Path(scratch).is_dir()
            found = seconds(engine, offload)
            if found == "died":
                raise AdaptError("a measuring rank died, perhaps for want of memory")
            if isinstance(found, str):
                return [RankSteps(failure=found)] * n_ranks
            numbers = (f"{engine.micro_batch}",)
            slow, fast = (found * 3, found, found * 2), (found / 2, found / 2, found / 2)
            return [RankSteps(seconds=slow if rank else fast, peak=PEAK, tokens=512, numbers=numbers) for rank in range(n_ranks)]

        monkeypatch.setattr(fresh_processes, "on_ranks", on_ranks)
        output = tmp_path / "tuned.json"
        tune.show(composed("tune", [*MODEL, *arguments, f"run.dir={tmp_path}/runs", f"output={output}"]), None)
        assert not list((tmp_path / "runs").iterdir()), "no scratch directory stays"
        return capsys.readouterr().out, json.loads(output.read_text(encoding="utf-8"))

    return go


def test_the_fastest_setting_is_found_by_changes_of_one_value_and_named_as_overrides(tuned: Callable[..., tuple[str, Any]]) -> None:
    tried: list[tuple[int, int, Recompute, OptimizerIn]] = []

    def seconds(engine: EngineConfig, offload: OffloadConfig) -> float:
        tried.append((engine.zero_stage, engine.micro_batch, engine.activation_checkpointing, offload.optimizer))
        slower = 1.0 if engine.activation_checkpointing is Recompute.NONE else 1.3
        paged = 1.1 if offload.optimizer is OptimizerIn.PAGED else 1.0
        return (0.8 if engine.zero_stage == 0 else 1.0) * (1 + abs(engine.micro_batch - 4) / 10) * slower * paged

    said, found = tuned(seconds, "engine.world_size=2", "engine.micro_batch=1")
    assert found["best"] == "engine.micro_batch=4 engine.zero_stage=0"
    assert found["ratio"] == pytest.approx(1.3 / 0.8)
    assert "fastest: engine.micro_batch=4 engine.zero_stage=0\n0.8 s a step, 1.3 s as given, timed in turn: 1.62 times" in said
    assert len(found["trials"]) == len({tuple(trial.values()) for trial in found["trials"]}) < 3 * 3 * 3 * 2
    assert tried[-4:] == [tried[0], (0, 4, Recompute.NONE, OptimizerIn.NONE)] * 2
    first = found["trials"][0]
    assert (first["s/step"], first["tokens/s"], first["same"]) == ("1.300", "394", "yes"), "the shortest step, of the slowest rank"
    assert {trial["same"] for trial in found["trials"] if trial["micro_batch"] != "1"} == {"no"}


def test_settings_that_do_not_run_say_why_and_are_not_chosen(tuned: Callable[..., tuple[str, Any]]) -> None:
    def seconds(engine: EngineConfig, offload: OffloadConfig) -> float | str:
        if engine.micro_batch == 8:
            return "out of memory"
        return "died" if engine.zero_stage == 0 else 1.0 / engine.micro_batch

    said, found = tuned(seconds, "engine.micro_batch=8")
    assert found["best"] == "engine.micro_batch=4"
    assert "the setting as given does not run" in said
    assert found["ratio"] is None
    failures = {(trial["micro_batch"], trial["zero"]): trial[""] for trial in found["trials"]}
    assert failures[("8", "2")] == failures[("4", "0")] == "out of memory"


def test_what_is_planned_to_be_too_large_is_not_run(tuned: Callable[..., tuple[str, Any]]) -> None:
    def seconds(engine: EngineConfig, offload: OffloadConfig) -> float:
        return 1.0 / engine.micro_batch

    _, large = tuned(seconds, "engine.micro_batch=1", "tune.micro_batches=[1,8]")
    in_memory = [trial for trial in large["trials"] if trial["zero"] == "2" and trial["optimizer in"] == "none"]
    plans = {trial["micro_batch"]: float(trial["plan GB"]) for trial in reversed(in_memory)}
    between = (plans["1"] + plans["8"]) / 2
    _, found = tuned(seconds, "engine.micro_batch=1", "tune.micro_batches=[1,8]", f"engine.memory_gb={between}")
    assert any(trial[""].startswith("not run: ") for trial in found["trials"] if trial["micro_batch"] == "8")
    assert plans["1"] < PEAK / 1e9 < between
    assert found["best"] == ""
    with pytest.raises(ConfigError, match=r"nothing that was tried runs \(took 0.32 GB, and engine.memory_gb is 0.31\d*\)"):
        tuned(seconds, "engine.micro_batch=1", "tune.micro_batches=[1]", f"engine.memory_gb={(plans['1'] + PEAK / 1e9) / 2}")


def test_a_gain_within_the_noise_is_no_gain_and_what_cannot_be_is_said(tuned: Callable[..., tuple[str, Any]]) -> None:
    calls: list[int] = []

    def seconds(engine: EngineConfig, offload: OffloadConfig) -> float:
        calls.append(engine.micro_batch)
        return 0.5 if engine.micro_batch == 4 and len(calls) < 5 else 1.0

    said, _ = tuned(seconds, "engine.precision=bf16", "engine.micro_batch=8", "tune.micro_batches=[4]", "tune.optimizers=[none]")
    assert "not tried: engine.zero_stage: 0 keeps no fp32 masters beside bf16 weights" in said
    assert "not tried: engine.zero_stage: 1 in bf16" in said
    assert re.search(r"no clear gain: engine.micro_batch=4 takes [\d.]+ s a step in turn with [\d.]+ s as given", said)


@pytest.mark.slow
def test_a_real_search_keeps_the_numbers_and_leaves_nothing_behind(tmp_path: Path) -> None:
    arguments = [*MODEL, "tune.batch_rows=4", "tune.steps=2", "tune.rounds=1", "engine.micro_batch=4", "tune.micro_batches=[2]"]
    done = run("tune", *arguments, "engine.world_size=2", f"run.dir={tmp_path}/runs", f"output={tmp_path}/tuned.json")
    assert done.returncode == 0, done.stderr
    found = json.loads((tmp_path / "tuned.json").read_text(encoding="utf-8"))
    assert all(float(trial["s/step"]) > 0 and float(trial["GB a rank"]) > 0.1 for trial in found["trials"])
    same = {(trial["zero"], trial["optimizer in"]): trial["same"] for trial in found["trials"] if trial["micro_batch"] == "4"}
    assert same[("2", "none")] == "yes"
    assert same.get(("2", "paged"), "yes") == "yes"
    assert not list((tmp_path / "runs").iterdir())
    refused = run("tune", *MODEL, "engine.hostfile=/nowhere", f"run.dir={tmp_path}/other")
    assert refused.returncode == 2
