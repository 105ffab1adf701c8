"""The number formats that a model computes in, and what `auto` comes to on this machine.

`auto` is bf16 where the device has instructions that multiply in bf16, and fp32 elsewhere: a CPU without them emulates bf16, whose
products can take 60 times as long as in fp32. Instructions decide, never a timing: a machine always gives the same answer.

On CPUs torch multiplies through oneDNN. The environment variable `ONEDNN_MAX_CPU_ISA` (older: `DNNL_MAX_CPU_ISA`) hides
instructions from it, and these do not count here. oneDNN's own answer cannot be used: it counts AVX-512 without bf16 as support.
"""

from __future__ import annotations

import enum
import logging
import os
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.core.runtime import ONCE

if TYPE_CHECKING:
    import torch

logger = logging.getLogger(__name__)
_CPU_FLAGS = Path("/proc/cpuinfo")
_BF16_FLAGS = frozenset({"avx512_bf16", "amx_bf16", "bf16"})  # x86, x86, ARM
_LIMITS = ("ONEDNN_MAX_CPU_ISA", "DNNL_MAX_CPU_ISA")
# oneDNN's names of instruction sets that cannot multiply in bf16; AVX2_VNNI_2 converts only.
_LIMITS_BELOW_BF16 = frozenset({"SSE41", "AVX", "AVX2", "AVX2_VNNI", "AVX2_VNNI_2", "AVX512_CORE", "AVX512_CORE_VNNI"})


class Precision(enum.Enum):
    """The format of weights and activations; routers, norms of probabilities and sums of losses are fp32 in all of them.

    bf16 has the range of fp32 and 8 bits of precision; fp16 has 11 bits and ends at 65504, so that training in it scales its loss.
    `auto` is for settings; it is replaced by fp32 or bf16 before anything is computed, written or named after it.
    """

    AUTO = "auto"
    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        assert self is not Precision.AUTO, "auto must be resolved first"
        import torch  # configurations name a precision without it

        return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[self]

    @property
    def is_rounded(self) -> bool:
        """Whether weights in it are rounded forms of fp32 masters."""
        assert self is not Precision.AUTO, "auto must be resolved first"
        return self is not Precision.FP32


FORMATS = (Precision.FP32, Precision.BF16, Precision.FP16)


@dataclass(frozen=True, kw_only=True)
class AutoPrecision:
    """What `auto` comes to, and why."""

    precision: Precision
    reason: str

    def __str__(self) -> str:
        return f"precision: {self.precision.value} ({self.reason})"


def auto_precision() -> AutoPrecision:
    """Return what `auto` comes to on this process's device."""
    import torch

    if torch.cuda.is_available():
        if torch.cuda.is_bf16_supported(including_emulation=False):
            return AutoPrecision(precision=Precision.BF16, reason="this GPU multiplies in bf16")
        return AutoPrecision(precision=Precision.FP32, reason="this GPU has no bf16 instructions; fp16 has to be asked for")
    if not torch.backends.mkldnn.is_available():
        return AutoPrecision(precision=Precision.FP32, reason="this torch has no oneDNN, which multiplies in bf16 on a CPU")
    if not _BF16_FLAGS & _cpu_flags():
        return AutoPrecision(precision=Precision.FP32, reason="this CPU has no bf16 instructions; bf16 would be slower")
    limit = next((f"{name}={os.environ[name]}" for name in _LIMITS if os.environ.get(name)), "")
    if limit.partition("=")[2].upper() in _LIMITS_BELOW_BF16:
        return AutoPrecision(precision=Precision.FP32, reason=f"{limit} hides this CPU's bf16 instructions; bf16 would be slower")
    return AutoPrecision(precision=Precision.BF16, reason="this CPU multiplies in bf16")


def say_precision(chosen: AutoPrecision | None) -> None:
    """Say what `auto` came to, once per command; None is a precision that was asked for."""
    if chosen is not None:
        logger.info("%s", chosen, extra=ONCE)


def _cpu_flags() -> set[str]:
    """Return the names of the CPU's instruction sets, from the kernel where it lists them, else from torch where that does."""
    if _CPU_FLAGS.is_file():
        for line in _CPU_FLAGS.read_text(encoding="utf-8", errors="replace").splitlines():
            name, _, flags = line.partition(":")
            if name.strip() in ("flags", "Features"):  # x86, ARM
                return set(flags.split())
    import torch

    list_capabilities = getattr(torch.cpu, "get_capabilities", dict)
    return {name for name, is_there in list_capabilities().items() if is_there is True}
