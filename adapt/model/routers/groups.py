"""Sequences as the groups over which a router assigns tokens in training."""

from __future__ import annotations

from torch import Tensor


def numbered(sequence_ids_N: Tensor) -> tuple[Tensor, Tensor]:
    """Return each token's sequence, numbered from 0, and how many tokens each sequence has."""
    _, number_N, sizes_S = sequence_ids_N.unique(return_inverse=True, return_counts=True)
    return number_N, sizes_S
