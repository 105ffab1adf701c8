"""Where a batch's tokens and targets stand, found on the host before the batch goes to a device.

Legend: B rows, T positions, N chosen positions, R runs.

How many tokens are no padding, or how many targets a kind has, would have to be asked of a CUDA device, and asking means waiting
for everything it was given to do. The host lays a batch out, so it knows for nothing. Places are those of flattened rows.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.core.spans import NO_TARGET, Span


@dataclass(frozen=True, kw_only=True)
class TokenPlaces:
    """Where real tokens stand, and where documents begin.

    A run is what stands side by side of one document, or of padding at a row's end. `starts_R` (int32) has the place where each run
    starts and, last, the number of all positions; `longest` is the longest run.
    """

    real_N: Tensor
    starts_R: Tensor
    longest: int

    @classmethod
    def of(cls, documents_BT: Tensor) -> TokenPlaces:
        """Find the places of a batch whose documents are numbered by row from 1, padding 0. Waits for a device that has them."""
        is_start_BT = torch.ones_like(documents_BT, dtype=torch.bool)
        is_start_BT[:, 1:] = documents_BT[:, 1:] != documents_BT[:, :-1]
        starts = is_start_BT.flatten().nonzero().squeeze(-1)
        starts_R = torch.cat([starts, starts.new_tensor([documents_BT.numel()])])
        return cls(
            real_N=documents_BT.flatten().nonzero().squeeze(-1),
            starts_R=starts_R.to(torch.int32),
            longest=max(starts_R.diff().tolist(), default=0),
        )

    def to(self, device: torch.device) -> TokenPlaces:
        real_N, starts_R = (tensor.to(device, non_blocking=True) for tensor in (self.real_N, self.starts_R))
        return TokenPlaces(real_N=real_N, starts_R=starts_R, longest=self.longest)


@dataclass(frozen=True, kw_only=True)
class TargetPlaces:
    """Which positions predict something, and for each `Span` which of these are of that kind (as places among them)."""

    all_N: Tensor
    of_kind: tuple[Tensor, ...]

    @classmethod
    def of(cls, targets_BT: Tensor, kinds_BT: Tensor) -> TargetPlaces:
        """Find a batch's targets. Waits for a device that has them."""
        all_N = (targets_BT != NO_TARGET).flatten().nonzero().squeeze(-1)
        kinds_N = kinds_BT.flatten()[all_N]
        return cls(all_N=all_N, of_kind=tuple((kinds_N == int(kind)).nonzero().squeeze(-1) for kind in Span))

    def to(self, device: torch.device) -> TargetPlaces:
        of_kind = tuple(places.to(device, non_blocking=True) for places in self.of_kind)
        return TargetPlaces(all_N=self.all_N.to(device, non_blocking=True), of_kind=of_kind)
