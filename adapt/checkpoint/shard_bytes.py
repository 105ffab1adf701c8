"""Bytes of a shard into memory, plainly: whole tensors, chosen slices of one, or block by block."""

from __future__ import annotations

import os
from collections.abc import Iterator, Sequence
from typing import Any

import torch
from torch import Tensor

from adapt.checkpoint.shard_format import ByteRange
from adapt.core.errors import CheckpointError

STEP_BYTES = 16 << 20


def read_range(place: ByteRange) -> Tensor:
    """Read a tensor into memory of its own. Raises CheckpointError where the file ends before it."""
    tensor = torch.empty(place.shape, dtype=place.dtype)
    _fill(tensor, place)
    return tensor


def stacked_rows(place: ByteRange, rows: Sequence[int]) -> Tensor:
    """Read slices along the first axis, in the order given. Raises CheckpointError for one that is not there."""
    wrong = [row for row in rows if not 0 <= row < place.shape[0]]
    if wrong:
        raise CheckpointError(f"{place.file}: has slices 0 to {place.shape[0] - 1} of this tensor, not {wrong[0]}")
    tensor = torch.empty((len(rows), *place.shape[1:]), dtype=place.dtype)
    for target, row in zip(tensor, rows, strict=True):
        _fill(target, place.row(row))
    return tensor


def bytes_of(place: ByteRange) -> Iterator[bytes]:
    """Yield the bytes of a tensor block by block. Raises CheckpointError where the file ends before it."""
    with place.file.open("rb", buffering=0) as stream:
        for start in range(place.offset, place.end, STEP_BYTES):
            wanted = min(STEP_BYTES, place.end - start)
            block = os.pread(stream.fileno(), wanted, start)
            if len(block) != wanted:
                raise cut_off(place)
            yield block


def view_of(tensor: Tensor) -> memoryview:
    """Return the bytes of a contiguous CPU tensor, shared with it."""
    raw: Any = tensor.detach().reshape(-1).view(torch.uint8).numpy()
    return memoryview(raw)


def cut_off(place: ByteRange) -> CheckpointError:
    """Return the error of a file that ends before a tensor does."""
    return CheckpointError(f"{place.file}: missing or damaged (it ends before byte {place.end})")


def _fill(tensor: Tensor, place: ByteRange) -> None:
    if not place.n_bytes:
        return
    target, done = view_of(tensor), 0
    with place.file.open("rb", buffering=0) as stream:
        while done < place.n_bytes:
            count = os.preadv(stream.fileno(), [target[done : done + STEP_BYTES]], place.offset + done)
            if not count:
                raise cut_off(place)
            done += count
