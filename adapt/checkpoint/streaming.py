"""All of a checkpoint, once, from front to back: pieces of tensors as views of the mapped files, read ahead and let go behind."""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor

from adapt.checkpoint.mapped_source import MappedSource
from adapt.checkpoint.pager import Pager, Unit
from adapt.checkpoint.store import Store

_PIECE_BYTES = 128 << 20
_PIECE = "piece"
_AHEAD = 3


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Slices of a tensor from `first` on along the first axis, or all of it (`first` None); valid until the next piece."""

    name: str
    first: int | None
    content: Tensor


def stream(store: Store) -> Iterator[Piece]:
    """Yield every tensor piece by piece, in the order of the files.

    Raises:
        CheckpointError: a file ends early.
    """
    units = _units(store)
    pager = Pager(MappedSource({_PIECE: _AHEAD}, torch.device("cpu")), [_PIECE])
    try:
        pager.expect(unit for unit, _, _ in units)
        for unit, name, first in units:
            yield Piece(name=name, first=first, content=pager.take(unit)[name])
            pager.release(unit)
    finally:
        pager.close()


def _units(store: Store) -> list[tuple[Unit, str, int | None]]:
    found: list[tuple[Unit, str, int | None]] = []
    for name, place in sorted(store.tensors.items(), key=lambda item: (item[1].file.name, item[1].offset)):
        if place.n_bytes <= _PIECE_BYTES or len(place.shape) < 2:
            found.append((Unit(key=(name, None), kind=_PIECE, places={name: place}), name, None))
            continue
        row_bytes = math.prod(place.shape[1:]) * place.dtype.itemsize
        step = max(_PIECE_BYTES // row_bytes, 1)
        for first in range(0, place.shape[0], step):
            part = place.rows(first, min(step, place.shape[0] - first))
            found.append((Unit(key=(name, first), kind=_PIECE, places={name: part}), name, first))
    return found
