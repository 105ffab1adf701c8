"""What the precision `auto` comes to: by instructions, by what is hidden from oneDNN, and by the GPU."""

from __future__ import annotations

import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch

import adapt.core.precision
from adapt.core.precision import Precision, auto_precision
from adapt.scoring.scorer_config import ScorerConfig
from adapt.train.engine_config import EngineConfig, check_optimizer
from adapt.train.optimizer_config import Algorithm, OptimizerConfig

Patch = pytest.MonkeyPatch
ROOT = Path(__file__).resolve().parents[2]
CPUINFO = Path("/proc/cpuinfo")
HAS_BF16 = CPUINFO.is_file() and bool({"avx512_bf16", "amx_bf16", "bf16"} & set(CPUINFO.read_text(encoding="utf-8").split()))
LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
WITH_BF16 = "processor : 0\nflags\t\t: fpu avx2 avx512f avx512_bf16 rdpid\nbogomips : 5192\n"


def chosen_elsewhere(**variables: str) -> str:
    """Return what a process without a GPU says, with these variables set before torch is imported."""
    environment = {name: value for name, value in os.environ.items() if name not in LIMITS}
    done = subprocess.run(
        [sys.executable, "-c", "from adapt.core.precision import auto_precision; print(auto_precision())"],
        cwd=ROOT, env={**environment, "CUDA_VISIBLE_DEVICES": "", **variables}, capture_output=True, text=True, check=True,
    )  # fmt: skip
    return done.stdout.strip()


@pytest.fixture
def cpu(tmp_path: Path, monkeypatch: Patch) -> Path:
    """Put a CPU in place of this machine's; return the file that lists its flags."""
    monkeypatch.setattr(torch.cuda, "is_available", lambda: False)
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: True)
    monkeypatch.setattr(adapt.core.precision, "_CPU_FLAGS", tmp_path / "cpuinfo")
    for name in LIMITS:
        monkeypatch.delenv(name, raising=False)
    (tmp_path / "cpuinfo").write_text(WITH_BF16, encoding="utf-8")
    return tmp_path / "cpuinfo"


@pytest.mark.skipif(not HAS_BF16, reason="this CPU has no bf16 instructions")
def test_a_cpu_with_bf16_instructions_takes_bf16_unless_they_are_hidden() -> None:
    assert chosen_elsewhere() == "precision: bf16 (this CPU multiplies in bf16)"
    hidden = chosen_elsewhere(ONEDNN_MAX_CPU_ISA="AVX2")
    assert hidden == "precision: fp32 (ONEDNN_MAX_CPU_ISA=AVX2 hides this CPU's bf16 instructions; bf16 would be slower)"


def test_any_cpu_limited_to_avx2_takes_fp32() -> None:
    assert chosen_elsewhere(ONEDNN_MAX_CPU_ISA="AVX2").startswith("precision: fp32 (")


@pytest.mark.skipif(not hasattr(torch.cpu, "get_capabilities") or not CPUINFO.is_file(), reason="there is only one list of flags")
def test_kernel_and_torch_list_the_same_bf16_instructions(monkeypatch: Patch) -> None:
    by_kernel = adapt.core.precision._cpu_flags()
    monkeypatch.setattr(adapt.core.precision, "_CPU_FLAGS", Path("/nowhere"))
    known = adapt.core.precision._BF16_FLAGS
    assert by_kernel & known == adapt.core.precision._cpu_flags() & known


@pytest.mark.parametrize(
    ("flags", "precision"),
    [
        (WITH_BF16, Precision.BF16),
        ("flags : avx2 avx512f amx_bf16 amx_tile", Precision.BF16),
        ("Features\t: fp asimd i8mm bf16 dgh", Precision.BF16),
        ("Features\t: fp asimd i8mm svebf16", Precision.FP32),
        ("flags : avx2 fma avx_ne_convert", Precision.FP32),
        ("flags : avx2 avx512f avx512_vnni", Precision.FP32),
        ("model name : a CPU with bf16", Precision.FP32),
    ],
)
def test_instructions_decide(cpu: Path, monkeypatch: Patch, flags: str, precision: Precision) -> None:
    monkeypatch.setattr(torch.cpu, "get_capabilities", dict, raising=False)
    cpu.write_text(flags, encoding="utf-8")
    assert auto_precision().precision is precision


@pytest.mark.parametrize(
    ("variables", "precision"),
    [
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE"}, Precision.FP32),
        ({"ONEDNN_MAX_CPU_ISA": "avx2_vnni_2"}, Precision.FP32),
        ({"DNNL_MAX_CPU_ISA": "AVX512_CORE_VNNI"}, Precision.FP32),
        ({"ONEDNN_MAX_CPU_ISA": "", "DNNL_MAX_CPU_ISA": "SSE41"}, Precision.FP32),
        ({"ONEDNN_MAX_CPU_ISA": "ALL", "DNNL_MAX_CPU_ISA": "AVX2"}, Precision.BF16),
        ({"ONEDNN_MAX_CPU_ISA": "AVX512_CORE_BF16"}, Precision.BF16),
        ({"ONEDNN_MAX_CPU_ISA": "AVX10_1_512_AMX"}, Precision.BF16),
        ({"ONEDNN_MAX_CPU_ISA": "what oneDNN does not know"}, Precision.BF16),
    ],
)
def test_instructions_hidden_from_onednn_do_not_count(
    cpu: Path, monkeypatch: Patch, variables: dict[str, str], precision: Precision
) -> None:
    for name, value in variables.items():
        monkeypatch.setenv(name, value)
    assert auto_precision().precision is precision


def test_without_the_kernels_list_torchs_is_read_where_it_has_one(cpu: Path, monkeypatch: Patch) -> None:
    cpu.unlink()
    listed = {"architecture": "x86_64", "avx512_bf16": True, "amx_bf16": False}
    monkeypatch.setattr(torch.cpu, "get_capabilities", lambda: listed, raising=False)
    assert auto_precision().precision is Precision.BF16
    monkeypatch.delattr(torch.cpu, "get_capabilities")
    assert str(auto_precision()) == "precision: fp32 (this CPU has no bf16 instructions; bf16 would be slower)"


def test_a_torch_without_onednn_takes_fp32(cpu: Path, monkeypatch: Patch) -> None:
    monkeypatch.setattr(torch.backends.mkldnn, "is_available", lambda: False)
    assert "this torch has no oneDNN" in str(auto_precision())
    assert auto_precision().precision is Precision.FP32


@pytest.mark.parametrize(("is_native", "precision"), [(True, Precision.BF16), (False, Precision.FP32)])
def test_a_gpu_takes_bf16_where_it_does_not_emulate_it(monkeypatch: Patch, is_native: bool, precision: Precision) -> None:
    monkeypatch.setattr(torch.cuda, "is_available", lambda: True)
    monkeypatch.setattr(torch.cuda, "is_bf16_supported", lambda including_emulation=True: is_native or including_emulation)
    assert auto_precision().precision is precision
    assert "GPU" in str(auto_precision())


def test_explicit_precisions_stay(cpu: Path) -> None:
    for precision in adapt.core.precision.FORMATS:
        assert EngineConfig(precision=precision).resolved() == EngineConfig(precision=precision)
        assert ScorerConfig(precision=precision).resolved() == ScorerConfig(precision=precision)
        assert EngineConfig(precision=precision).auto_precision() is ScorerConfig(precision=precision).auto_precision() is None


def test_auto_is_the_default_and_comes_to_bf16_here(cpu: Path) -> None:
    assert EngineConfig().precision is ScorerConfig().precision is Precision.AUTO
    assert EngineConfig().resolved() == EngineConfig(precision=Precision.BF16)
    assert ScorerConfig().resolved() == ScorerConfig(precision=Precision.BF16)
    with pytest.raises(AssertionError):
        EngineConfig().numerics()


def test_stage_0_without_masters_and_lamb_which_needs_it_take_fp32(cpu: Path) -> None:
    engine = EngineConfig(zero_stage=0)
    check_optimizer(engine, OptimizerConfig(algorithm=Algorithm.LAMB))
    assert engine.resolved().precision is Precision.FP32
    assert str(engine.auto_precision()) == "precision: fp32 (for training: engine.zero_stage=0 keeps no fp32 masters)"
