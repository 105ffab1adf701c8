"""Randomness as a function of what it is for: integers mixed into other integers, the same on every device and rank.

Legend: N tokens, W draws per token.

Source: the finaliser of SplitMix64 (Steele, Lea and Flood 2014, "Fast splittable pseudorandom number generators"). A generator's
state would tie noise to how a step was cut into micro-batches; a hash of (seed, step, example, position, layer) does not.
"""

from __future__ import annotations

import torch
from torch import Tensor


def mixed(values: Tensor, salt: int) -> Tensor:
    """Return int64 hashes of int64 values, others for each salt; products wrap around."""
    z = values + _signed(salt * 0x9E3779B97F4A7C15)
    z = (z ^ _shifted(z, 30)) * _signed(0xBF58476D1CE4E5B9)
    z = (z ^ _shifted(z, 27)) * _signed(0x94D049BB133111EB)
    return z ^ _shifted(z, 31)


def uniform(keys_N: Tensor, width: int) -> Tensor:
    """Return fp32 draws from [0, 1), [N, W], each a function of its key and column."""
    columns_W = torch.arange(width, device=keys_N.device)
    bits_NW = mixed(mixed(keys_N, salt=1).unsqueeze(-1) + columns_W, salt=2)
    return _shifted(bits_NW, 40).float() / (1 << 24)


def _signed(value: int) -> int:
    """Return the int64 with the bits of an integer's lowest 64."""
    return (value + (1 << 63)) % (1 << 64) - (1 << 63)


def _shifted(z: Tensor, bits: int) -> Tensor:
    """Shift right and fill with zeros; torch would fill with the sign."""
    return (z >> bits) & ((1 << (64 - bits)) - 1)
