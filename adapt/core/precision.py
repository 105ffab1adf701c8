"""The number formats that a model computes in."""

from __future__ import annotations

import enum
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch


class Precision(enum.Enum):
    """The format of weights and activations; routers, norms of probabilities and sums of losses are fp32 in all of them.

    bf16 has the range of fp32 and 8 bits of precision; fp16 has 11 bits and ends at 65504, so that training in it scales its loss.
    """

    FP32 = "fp32"
    BF16 = "bf16"
    FP16 = "fp16"

    @property
    def dtype(self) -> torch.dtype:
        import torch  # configurations name a precision without it

        return {Precision.FP32: torch.float32, Precision.BF16: torch.bfloat16, Precision.FP16: torch.float16}[self]

    @property
    def is_rounded(self) -> bool:
        """Whether weights in it are rounded forms of fp32 masters."""
        return self is not Precision.FP32
