"""The number formats that a model computes in."""

from __future__ import annotations

import enum


class Precision(enum.Enum):
    """The format of weights and activations; routers, norms of probabilities and sums of losses are fp32 in both."""

    FP32 = "fp32"
    BF16 = "bf16"
