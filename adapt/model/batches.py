"""Rows of readings to tensors: packing several readings into a row, padding, and what each position predicts.

Legend: B rows, T positions.

Nothing that is computed from a batch depends on how it was cut, packed or padded; a batch may be empty (all padding), so that
every rank can take part in every step.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor

from adapt.core.spans import NO_TARGET, IntArray, Reading
from adapt.model.inputs import ModelInputs
from adapt.model.token_positions import TargetPlaces

Row = Sequence[Reading]


@dataclass(frozen=True, kw_only=True)
class Batch:
    """Model inputs with a target and its kind (a `Span`) per position; NO_TARGET where nothing is predicted.

    `weights_BT` is how much each target counts; absent, every one counts 1. `places` follow from targets and kinds; `to` finds them
    before the batch leaves the host.
    """

    inputs: ModelInputs
    targets_BT: Tensor
    kinds_BT: Tensor
    weights_BT: Tensor | None = None
    places: TargetPlaces | None = None

    def target_places(self) -> TargetPlaces:
        """Return where targets stand. Of a batch that was laid out on a device, this waits for it."""
        return TargetPlaces.of(self.targets_BT, self.kinds_BT) if self.places is None else self.places

    def to(self, device: torch.device) -> Batch:
        return Batch(
            inputs=self.inputs.to(device),
            targets_BT=self.targets_BT.to(device, non_blocking=True),
            kinds_BT=self.kinds_BT.to(device, non_blocking=True),
            weights_BT=None if self.weights_BT is None else self.weights_BT.to(device, non_blocking=True),
            places=self.target_places().to(device),
        )


def collate(rows: Sequence[Row], pad_multiple: int = 1, step: int | None = None, row_keys: Sequence[int] | None = None) -> Batch:
    """Lay rows of readings out as one padded batch; each reading is a document of its own, positions from 0.

    Training gives the global `step` and a key for each row, from which routers draw their noise.
    """
    lengths = [sum(len(reading) for reading in row) for row in rows]
    width = max(lengths, default=0) or 1
    width = -(-width // pad_multiple) * pad_multiple
    shape = (max(len(rows), 1), width)
    ids, positions, documents = (np.zeros(shape, np.int64) for _ in range(3))
    domains, kinds = np.zeros(shape, np.int64), np.zeros(shape, np.int64)
    targets = np.full(shape, NO_TARGET, np.int64)
    is_weighted = any(reading.weight != 1.0 for row in rows for reading in row)
    weights = np.ones(shape, np.float32) if is_weighted else None
    for index, row in enumerate(rows):
        start = 0
        for document, reading in enumerate(row, start=1):
            place = slice(start, start + len(reading))
            ids[index, place] = reading.inputs_T
            targets[index, place] = reading.targets_T
            kinds[index, place] = reading.kinds_T
            positions[index, place] = reading.positions()
            documents[index, place] = document
            domains[index, place] = reading.domain
            if weights is not None:
                weights[index, place] = reading.weight
            start += len(reading)
    inputs = ModelInputs(
        ids_BT=torch.from_numpy(ids),
        positions_BT=torch.from_numpy(positions),
        documents_BT=torch.from_numpy(documents),
        domains_BT=torch.from_numpy(domains),
        mask_BSW=_own_mask(rows, documents),
        is_packed=any(len(row) > 1 for row in rows),
        step=step,
        row_keys_B=None if row_keys is None else torch.tensor([*row_keys] or [0]),
    )
    return Batch(
        inputs=inputs,
        targets_BT=torch.from_numpy(targets),
        kinds_BT=torch.from_numpy(kinds),
        weights_BT=None if weights is None else torch.from_numpy(weights),
    )


def _own_mask(rows: Sequence[Row], documents_BT: IntArray) -> Tensor | None:
    """Return what each position attends to [B, T, T] where a reading has a second branch or sees all of itself, else None."""
    if not any(reading.branch_length or reading.is_bidirectional for row in rows for reading in row):
        return None
    mask_BTT = np.tril(documents_BT[:, :, None] == documents_BT[:, None, :])
    for index, row in enumerate(rows):
        start = 0
        for reading in row:
            end = start + len(reading)
            branch = end - reading.branch_length
            mask_BTT[index, branch:end, start + reading.fork : branch] = False
            if reading.is_bidirectional:
                mask_BTT[index, start:end, start:end] = True
            start = end
    return torch.from_numpy(mask_BTT)
