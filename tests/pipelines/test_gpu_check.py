"""The GPU check: its comparisons, exercised on the CPU, and how steps are skipped, kept and reported."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
import torch

import adapt.model.experts
from adapt.model.experts import Experts
from adapt.model.grouped_gemm import torch_gemm
from adapt.model.routers.contract import all_routers
from pipelines.tools import gpu_check
from pipelines.tools.gpu_check import as_markdown, check_rows, main, run_steps
from pipelines.tools.gpu_correctness import CHECKS, Compared

CPU = torch.device("cpu")


@pytest.mark.parametrize("name", CHECKS)
def test_a_device_that_computes_rightly_passes(name: str) -> None:
    outcome = check_rows(name, CPU)
    assert outcome["status"] == "passed", outcome
    said = " ".join(row["what"] for row in outcome["rows"])
    assert name in ("experts", "attention") or all(router in said for router in all_routers())


def test_experts_by_one_kernel_pass_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(adapt.model.experts, "gemm_for", lambda x, up, brought: torch_gemm)
    assert check_rows("experts", CPU)["status"] == "passed"


def test_a_wrong_result_fails_the_check(monkeypatch: pytest.MonkeyPatch) -> None:
    original = Experts.forward

    def wrong(experts: Experts, x_NH: torch.Tensor, *pairs: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
        out_NH, counts_E = original(experts, x_NH, *pairs)
        return out_NH * (1.0 if x_NH.dtype is torch.float32 else 1.1), counts_E

    monkeypatch.setattr(Experts, "forward", wrong)
    outcome = check_rows("experts", CPU)
    assert outcome["status"] == "failed"
    assert "bfloat16" in outcome["reason"]


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU, on which no step is skipped")
def test_without_a_gpu_every_step_says_that_it_is_skipped_and_why(tmp_path: Path) -> None:
    assert main([f"out={tmp_path / 'here'}"]) == 0
    results = json.loads((tmp_path / "here" / "gpu_check.json").read_text())
    assert len(results["steps"]) == 7
    assert {(step["status"], step["reason"]) for step in results["steps"].values()} == {("skipped", "there is no CUDA device")}
    assert "| experts | skipped: there is no CUDA device |" in (tmp_path / "here" / "gpu_check.md").read_text()


def test_a_step_that_passed_is_not_run_again_and_one_that_failed_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    ran: list[str] = []

    def outcome(name: str) -> dict[str, Any]:
        ran.append(name)
        return {"status": "failed", "reason": "broken"} if name == "models" else {"status": "passed", "rows": [{"ratio": 1.2}]}

    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "get_device_name", lambda: "some GPU")
    monkeypatch.setattr(gpu_check, "_run_step", outcome)
    assert main([f"out={tmp_path}"]) == 1
    assert len(ran) == 7
    run_steps(tmp_path, is_forced=False)
    assert ran[7:] == ["models"]
    results = run_steps(tmp_path, is_forced=True)
    assert len(ran) == 15
    assert "| models | failed: broken |" in as_markdown(results)
    assert "| ratio |\n|---|\n| 1.2 |" in as_markdown(results)


def test_an_unknown_option_is_refused(capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["fast=true"]) == 2
    assert "unknown option 'fast'" in capsys.readouterr().err


@pytest.mark.gpu
@pytest.mark.skipif(not torch.cuda.is_available(), reason="there is no CUDA device")
@pytest.mark.parametrize("name", CHECKS)
def test_this_gpu_computes_what_the_cpu_does(name: str) -> None:
    outcome = check_rows(name, torch.device("cuda"))
    assert outcome["status"] == "passed", outcome["reason"]


def test_a_result_that_is_no_number_is_wrong() -> None:
    assert not Compared(what="x", error=float("inf"), bound=1.0).is_right
    assert Compared(what="x", error=0.5, bound=1.0).is_right
