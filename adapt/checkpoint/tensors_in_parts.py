"""Tensors that are made part by part: a layer's stacked experts need never be in memory together."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True, kw_only=True)
class PartedTensor:
    """A tensor whose slices along the first axis come one after another from `parts()`."""

    shape: tuple[int, ...]
    dtype: torch.dtype
    parts: Callable[[], Iterator[Tensor]]

    def to(self, dtype: torch.dtype) -> PartedTensor:
        """Return it in another dtype, still made part by part."""
        return PartedTensor(shape=self.shape, dtype=dtype, parts=lambda: (part.to(dtype) for part in self.parts()))


AnyTensor = Tensor | PartedTensor
