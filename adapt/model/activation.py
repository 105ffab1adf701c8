"""The two forms of GELU that checkpoints are trained with (Hendrycks and Gimpel 2016, arXiv:1606.08415)."""

from __future__ import annotations

import enum


class Gelu(enum.Enum):
    """GELU by the tanh approximation, or exact, by the error function."""

    TANH = "tanh"
    ERF = "erf"

    @property
    def approximate(self) -> str:
        """Return torch's word for it."""
        return "tanh" if self is Gelu.TANH else "none"
