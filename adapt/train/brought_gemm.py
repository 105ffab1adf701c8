"""The product for all experts' rows that the engine brings to GPUs for which torch has none: DeepSpeed's Triton kernel."""

from __future__ import annotations

import deepspeed
import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.model.experts import Experts
from adapt.model.grouped_gemm import GroupedGemm, wants_brought


def bring_gemm(model: nn.Module, device: torch.device) -> None:
    """Give a model's experts DeepSpeed's Triton product for all of them, where torch has none for the device.

    Raises:
        ConfigError: Triton, or the C compiler that it needs, is missing.
    """
    layers = [module for module in model.modules() if isinstance(module, Experts)] if wants_brought(device) else []
    gemm = _triton_gemm(device) if layers else None
    for experts in layers:
        experts.brought_gemm = gemm


def _triton_gemm(device: torch.device) -> GroupedGemm:
    """Return DeepSpeed's kernel, tried once on a product of two experts, one of them without rows."""
    wish = "experts are multiplied by DeepSpeed's Triton kernel on this GPU"
    try:
        from deepspeed.ops.triton_ops import group_gemm_triton
    except ImportError as error:
        raise ConfigError(f"{wish}, which deepspeed {deepspeed.__version__} lacks; install 0.19.8 or newer") from error

    def multiplied(x_KI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
        product: Tensor = group_gemm_triton(x_KI, weight_EOI, ends_E, trans_b=True)
        return product

    x_KI, weight_EOI = (torch.zeros(shape, dtype=torch.bfloat16, device=device) for shape in ((1, 16), (2, 16, 16)))
    try:
        multiplied(x_KI, weight_EOI, torch.tensor([1, 1], dtype=torch.int32, device=device))
    except Exception as error:  # Triton's own kinds: no package, no compiler, a driver that it does not know
        reason = str(error).splitlines()[0] if str(error) else type(error).__name__
        raise ConfigError(
            f"{wish}, and that fails ({reason}); install triton and a C compiler, or use engine.precision=fp32"
        ) from error
    return multiplied
