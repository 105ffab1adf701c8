"""`pipelines.plan`: moments and devices; and what a training proposes where it does not fit, which runs."""

from __future__ import annotations

from pathlib import Path

import pytest

from tests.support.command_line import SMALLEST, in_process

MODEL = ["model=small", "engine.micro_batch=16"]


def total_of(text: str) -> float:
    return next(float(line.split()[1]) for line in text.splitlines() if line.startswith("total ") and "." in line.split()[1])


def test_a_plan_for_a_gpu_has_no_process_and_one_for_a_cpu_has(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    found = {}
    for device in ("cpu", "cuda"):
        code, text = in_process("plan", [*MODEL, f"plan.device={device}"], monkeypatch, capsys)
        assert code == 0, text
        assert ("\nprocess " in text) is (device == "cpu")
        for moment in ("loss", "backward", "first bucket", "last layer", "exchange", "update"):
            assert f"\n{moment} " in text
        found[device] = text
    assert "\nopening " in found["cpu"] and "\nopening " not in found["cuda"]
    assert "training memory per rank on a GPU, GB" in found["cuda"]


def test_shorter_rows_take_less(monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    long, short = (in_process("plan", [*MODEL, *more], monkeypatch, capsys)[1] for more in ([], ["plan.tokens=32"]))
    assert total_of(short) < total_of(long)
    assert "16 rows of 32 tokens" in short


def test_a_training_that_does_not_fit_proposes_what_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sizes = ["pretrain.steps=1", "pretrain.held_out_rows=8", "pretrain.batch_rows=32", "engine.micro_batch=32"]
    arguments = [*SMALLEST, *sizes, "stages=[tokenizer,pretrain]", f"run.dir={tmp_path}"]
    code, text = in_process("run", [*arguments, "engine.memory_gb=0.45"], monkeypatch, capsys)
    assert code == 2, text
    (line,) = (line for line in text.splitlines() if line.startswith("error: "))
    assert line.startswith("error: engine.memory_gb: a rank needs 0.")
    proposed = line.split("the nearest setting that fits is ")[1].split()
    assert proposed and all(setting.startswith(("engine.", "offload.")) for setting in proposed)
    others = [argument for argument in arguments if argument.split("=")[0] not in {setting.split("=")[0] for setting in proposed}]
    code, text = in_process("run", [*others, *proposed, "engine.memory_gb=0.45"], monkeypatch, capsys)
    assert code == 0, text
