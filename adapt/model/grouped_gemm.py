"""One product for all experts' rows, on the GPUs that have a kernel for it: nothing waits for the device.

Legend: K routed pairs sorted by expert, E experts, H hidden size, F expert width, I, O inputs and outputs of a product.

From compute capability 9 on, torch has such a kernel for bf16 (`grouped_mm`). Below, torch loops over the experts and waits for
their counts; there the engine brings a Triton kernel, and a model that no engine runs loops too.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import torch
from torch import Tensor
from torch.nn import functional

from adapt.model.config import Gelu

# Rows [K, I] sorted by expert, weights [E, O, I], and where each expert's rows end [E] (int32), to [K, O]; differentiable.
GroupedGemm = Callable[[Tensor, Tensor, Tensor], Tensor]

_ALIGNED = 8  # bf16 values in 16 bytes
_LARGEST = 1 << 31  # a Triton kernel's offsets have 32 bits


def torch_gemm(x_KI: Tensor, weight_EOI: Tensor, ends_E: Tensor) -> Tensor:
    """Multiply by torch's kernel."""
    return functional.grouped_mm(x_KI, weight_EOI.transpose(1, 2), offs=ends_E)


def gemm_for(x_KH: Tensor, up_EFH: Tensor, brought: GroupedGemm | None) -> GroupedGemm | None:
    """Return the product for all experts, None where they are multiplied one by one.

    It is for bf16 on CUDA with sizes whose rows fill 16 bytes: torch's own from compute capability 9 on; on 8 the one that was
    `brought`, up to 2^31 elements of a tensor.
    """
    _, width, hidden = up_EFH.shape
    if x_KH.dtype is not torch.bfloat16 or width % _ALIGNED or hidden % _ALIGNED:
        return None
    generation = _generation(x_KH.device)
    if generation >= 9:
        return torch_gemm
    is_small = max(up_EFH.numel(), len(x_KH) * max(width, hidden)) < _LARGEST
    return brought if generation == 8 and is_small else None


def wants_brought(device: torch.device) -> bool:
    """Whether a device multiplies experts by a kernel that has to be brought."""
    return _generation(device) == 8


def grouped_rows(x_KH: Tensor, counts_E: Tensor, gelu: Gelu, weights: Sequence[Tensor], gemm: GroupedGemm) -> Tensor:
    """Return each row's output [K, H] of its expert's MLP; `weights` are up_EFH, its bias, down_EHF and its bias.

    Biases are added by a product with who belongs to whom, whose backward adds up in fp32 inside; adding rows up one by one in bf16
    would lose them.
    """
    up, up_bias, down, down_bias = weights
    ends_E = counts_E.cumsum(0).to(torch.int32)
    expert_K = torch.arange(len(counts_E), device=counts_E.device).repeat_interleave(counts_E, output_size=len(x_KH))
    belongs_KE = x_KH.new_zeros(len(x_KH), len(counts_E)).scatter_(1, expert_K.unsqueeze(-1), 1.0)
    inner_KF = torch.addmm(gemm(x_KH, up, ends_E), belongs_KE, up_bias)
    active_KF = functional.gelu(inner_KF, approximate=gelu.approximate)
    return torch.addmm(gemm(active_KF, down, ends_E), belongs_KE, down_bias)


def _generation(device: torch.device) -> int:
    """Return a CUDA device's first number of compute capability, 0 for others."""
    return torch.cuda.get_device_capability(device)[0] if device.type == "cuda" else 0
