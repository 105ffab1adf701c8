"""Copies of one matrix for several experts: equal, or each with noise of its own, drawn from seed, name and expert."""

from __future__ import annotations

import math

import torch
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.runtime import seed_for


def copy_of(source: Tensor, name: str, expert: int, noise: float, seed: int) -> Tensor:
    """Return an expert's copy of a matrix, in its format and memory of its own; vectors (biases) get no noise."""
    if not noise or source.dim() < 2:
        return source.clone()
    exact = source.float()
    drawn = torch.empty(exact.shape).normal_(generator=torch.Generator().manual_seed(seed_for(seed, "copy", name, expert)))
    # Not in place: of fp32, `float` is the source itself, which the next expert's copy is made of.
    return drawn.mul_(noise * float(exact.square().mean().sqrt())).add_(exact).to(source.dtype)


def scaled(source: Tensor, factor: float, name: str) -> Tensor:
    """Return a tensor times a factor, in its format.

    Raises:
        CheckpointError: a number does not fit into the format.
    """
    if factor == 1:
        return source
    found = source * factor
    if not bool(found.isfinite().all()):
        raise CheckpointError(
            f"tensor {name}: times {factor:g} it leaves the range of {source.dtype}; convert the source to fp32 first"
        )
    return found


def refuse_rounding(factor: float, dtype: torch.dtype, why: str) -> None:
    """Raise ConfigError where a factor on weights of 16 bits would round them; powers of two never do."""
    if dtype.itemsize < 4 and not math.log2(factor).is_integer():
        raise ConfigError(
            f"{why}: weights in {dtype} times {factor:g} would be rounded, so answers would change; take a power of two"
        )
