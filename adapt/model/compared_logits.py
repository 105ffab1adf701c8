"""Logits of a model for rows of tokens, kept so that another model's can be compared with them: one model in memory at a time.

Legend: T positions, V vocabulary.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.model.inputs import CausalBase, ModelInputs


@dataclass(frozen=True, kw_only=True)
class Compared:
    """The largest difference between two models' logits, the largest logit, and how many positions have another likeliest token."""

    largest: float
    scale: float
    positions: int
    other_choices: int

    @property
    def relative(self) -> float:
        """The largest difference as a share of the largest logit."""
        return self.largest / self.scale if self.scale else self.largest

    def __str__(self) -> str:
        said = f"largest difference of logits {self.largest:.2g} (of up to {self.scale:.3g}) at {self.positions:,} positions"
        return said if not self.other_choices else f"{said}, {self.other_choices:,} of which have another likeliest token"


@torch.no_grad()
def logits_of(model: CausalBase, rows: Sequence[Sequence[int]]) -> list[Tensor]:
    """Return the fp32 logits [T, V] of each row of tokens, read as a document from its start."""
    found = []
    for row in rows:
        ids = torch.tensor([list(row)])
        positions = torch.arange(len(row)).unsqueeze(0)
        inputs = ModelInputs(ids_BT=ids, positions_BT=positions, documents_BT=torch.ones_like(ids), is_packed=False)
        found.append(model.logits(model(inputs).hidden_BTH[0]).float())
    return found


def compared(expected: Sequence[Tensor], found: Sequence[Tensor]) -> Compared:
    """Compare two models' logits of the same rows."""
    pairs = list(zip(expected, found, strict=True))
    return Compared(
        largest=max(float((one - other).abs().max()) for one, other in pairs),
        scale=max(float(one.abs().max()) for one in expected),
        positions=sum(len(one) for one in expected),
        other_choices=sum(int((one.argmax(-1) != other.argmax(-1)).sum()) for one, other in pairs),
    )
