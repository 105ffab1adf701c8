"""What a MoE layer's routing adds up to over micro-batches and ranks, in any order, and what the sums say of its health.

Legend: N tokens, E experts, S sums.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.model.inputs import LayerRouting

_SCALARS = 4  # entropy, squared z, dropped pairs, pairs above a router's room


@dataclass(frozen=True)
class LayerSums:
    """Sums over the tokens of one MoE layer, in one fp64 vector: probabilities and token counts by expert, then the scalars."""

    values_S: Tensor

    @classmethod
    def empty(cls, n_experts: int) -> LayerSums:
        return cls(torch.zeros(2 * n_experts + _SCALARS, dtype=torch.float64))

    @classmethod
    @torch.no_grad()
    def of(cls, report: LayerRouting) -> LayerSums:
        """Add up one layer's report. Entropy is a share of the largest possible one; z is 0 without a gate."""
        probs_NE, exact = report.probs_NE, torch.float64
        entropy = torch.special.entr(probs_NE).sum(dtype=exact) / math.log(probs_NE.shape[1])
        z = torch.zeros_like(entropy) if report.logits_NE is None else report.logits_NE.logsumexp(-1).square().sum(dtype=exact)
        overload = torch.zeros_like(entropy) if report.overload is None else report.overload.to(exact)
        scalars = torch.stack([entropy, z, report.dropped.to(exact), overload])
        return cls(torch.cat([probs_NE.sum(0, dtype=exact), report.counts_E.to(exact), scalars]))

    def __add__(self, other: LayerSums) -> LayerSums:
        return LayerSums(self.values_S + other.values_S)

    def cpu(self) -> LayerSums:
        return LayerSums(self.values_S.cpu())

    @property
    def n_experts(self) -> int:
        return (len(self.values_S) - _SCALARS) // 2

    @property
    def probs_E(self) -> Tensor:
        return self.values_S[: self.n_experts]

    @property
    def counts_E(self) -> Tensor:
        return self.values_S[self.n_experts : 2 * self.n_experts]

    @property
    def shares_E(self) -> Tensor:
        """The share of routed pairs of each expert; 0 without tokens."""
        return self.counts_E / self.counts_E.sum().clamp_min(1)

    def balance(self) -> float:
        """Return E * sum_e P_e * F_e; 0 without tokens, 1.0 when perfectly even."""
        means_E = self.probs_E / self._n_tokens()
        return float(self.n_experts * (means_E * self.shares_E).sum())

    def health(self) -> dict[str, float]:
        """Return load (fullest expert over the mean), experts without tokens, balance, gate entropy, mean z^2, and shares of pairs.

        These are pairs that were dropped, and those above the room that the router sets (0 where it sets none).
        """
        entropy, z, dropped, overload = self.values_S[2 * self.n_experts :].tolist()
        n_tokens = self._n_tokens()
        n_pairs = max(float(self.counts_E.sum()), 1.0)
        return {
            "max_load": float(self.shares_E.max() * self.n_experts),
            "dead": float((self.counts_E == 0).sum()),
            "balance": self.balance(),
            "entropy": entropy / n_tokens,
            "z": z / n_tokens,
            "dropped": dropped / n_pairs,
            "overload": overload / n_pairs,
        }

    def _n_tokens(self) -> float:
        """Each token's probabilities sum to 1; a sum that is not finite stays, so that what is made of it says so."""
        total = float(self.probs_E.sum())
        return max(round(total), 1) if math.isfinite(total) else total
