"""The product for all experts that the engine brings to GPUs below compute capability 9: DeepSpeed's, on Triton."""

from __future__ import annotations

import importlib
import importlib.util
import os
import subprocess
import sys
from typing import Any

import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.core.runtime import RankInfo
from adapt.model.experts import Experts
from adapt.model.gpt import GPT
from adapt.model.moe import MoELayer
from adapt.model.routers.top1 import Top1Config
from adapt.train.engine_config import EngineConfig
from adapt.train.optimizer_config import OptimizerConfig
from tests.support.tiny_models import ROOT, tiny_config

CPU = torch.device("cpu")


@pytest.fixture
def brought(monkeypatch: pytest.MonkeyPatch) -> Any:
    """Return the product's module, which takes the CPU for a GPU below compute capability 9."""
    from adapt.train import brought_gemm  # imports DeepSpeed

    monkeypatch.setattr(brought_gemm, "wants_brought", lambda device: True)
    return brought_gemm


def test_a_device_without_triton_is_told_what_to_install(brought: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    triton_ops = importlib.import_module("deepspeed.ops.triton_ops")

    def missing(*args: Any, **options: Any) -> None:
        raise RuntimeError("no Triton here\nand more")

    monkeypatch.setattr(triton_ops, "group_gemm_triton", missing)
    layer = MoELayer(16, 16, 2, Top1Config(), is_residual=False)
    with pytest.raises(ConfigError, match=r"that fails \(no Triton here\); install triton and a C compiler, or use .*fp32"):
        brought.bring_gemm(layer, CPU)


def test_every_layer_is_given_the_product_and_a_model_without_experts_needs_none(
    brought: Any, monkeypatch: pytest.MonkeyPatch
) -> None:
    made: list[torch.device] = []
    gemm = object()

    def make(device: torch.device) -> Any:
        made.append(device)
        return gemm

    monkeypatch.setattr(brought, "_triton_gemm", make)
    brought.bring_gemm(torch.nn.Linear(2, 2), CPU)
    assert made == []
    layers = torch.nn.ModuleList(MoELayer(16, 16, 2, Top1Config(), is_residual=False) for _ in range(2))
    brought.bring_gemm(layers, CPU)
    assert made == [CPU]
    assert [module.brought_gemm for module in layers.modules() if isinstance(module, Experts)] == [gemm, gemm]


def test_a_device_with_a_kernel_of_torchs_is_given_none() -> None:
    from adapt.train.brought_gemm import bring_gemm  # imports DeepSpeed

    layer = MoELayer(16, 16, 2, Top1Config(), is_residual=False)
    bring_gemm(layer, CPU)
    assert layer.experts.brought_gemm is None


def test_an_engine_takes_its_device_before_it_tries_a_kernel_on_it(monkeypatch: pytest.MonkeyPatch) -> None:
    from adapt.train import engine  # imports DeepSpeed

    happened: list[str] = []

    class Enough(Exception):
        pass

    def take(rank: RankInfo) -> torch.device:
        happened.append(f"device of rank {rank.local_rank}")
        return CPU

    def bring(model: torch.nn.Module, device: torch.device) -> None:
        happened.append("kernel")
        raise Enough

    monkeypatch.setattr(engine, "take_device", take)
    monkeypatch.setattr(engine, "bring_gemm", bring)
    rank = RankInfo(rank=5, world_size=8, local_rank=1)
    config = EngineConfig(world_size=8, precision=Precision.BF16)
    with pytest.raises(Enough):
        engine.Engine(GPT(tiny_config()), config, OptimizerConfig(), rank)
    assert happened == ["device of rank 1", "kernel"]


@pytest.mark.skipif(importlib.util.find_spec("triton") is None, reason="triton is not installed")
def test_deepspeeds_kernel_computes_what_the_loop_does() -> None:
    environment = {**os.environ, "TRITON_INTERPRET": "1", "DS_ACCELERATOR": "cpu", "CUDA_VISIBLE_DEVICES": ""}
    done = subprocess.run(
        [sys.executable, "-m", "tests.support.interpreted_gemm"], cwd=ROOT, env=environment, capture_output=True, text=True
    )
    assert done.returncode == 0, done.stderr
    assert float(done.stdout.split()[-1]) <= 1e-5
