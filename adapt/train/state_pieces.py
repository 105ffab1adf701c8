"""The tensors of a training state in pieces: each rank writes those that it holds, and any number of ranks read what they need.

A piece is a run of a tensor's elements in the tensor's order. The pieces of all ranks' files make up every tensor once, so no rank
gathers another's part, to write it or to read it. A file is on the disk before it takes its name; a rank that cannot write leaves
the reason, so that the one that completes the state stops waiting.
"""

from __future__ import annotations

import json
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from types import EllipsisType
from typing import Any

import torch
from safetensors import safe_open
from torch import Tensor

from adapt.train.tensor_stream import save_one_by_one

WEIGHTS = "weights"
_POLL_S = 0.05
_FAILED = ".failed"


@dataclass(frozen=True, kw_only=True)
class Piece:
    """Elements of a tensor from `start` on, flat; `which` is `weights` or a kind of moments."""

    which: str
    name: str
    start: int
    values: Tensor

    @property
    def key(self) -> str:
        """Return the piece's name in a file."""
        return f"{self.which}/{self.start}/{self.name}"

    def copied(self) -> Piece:
        """Return the piece with values of its own in this process's memory."""
        return replace(self, values=self.values.detach().to("cpu", copy=True))


def write_pieces(directory: Path, rank: int, pieces: Sequence[Piece]) -> None:
    """Write a rank's pieces one by one.

    Raises:
        OSError: the disk is full or fails; the other ranks' files do not make up a state then.
    """
    part = directory / f".{_file_of(rank)}"
    try:
        save_one_by_one(part, ((piece.key, piece.values) for piece in pieces), [piece.key for piece in pieces])
        part.rename(directory / _file_of(rank))
    except OSError as error:
        (directory / f"{_file_of(rank)}{_FAILED}").write_text(json.dumps([error.errno, str(error)]), encoding="utf-8")
        raise


def await_pieces(directory: Path, n_ranks: int, patience_s: Callable[[], float]) -> None:
    """Wait until every rank's file is there; `patience_s` is how long nothing may be written meanwhile.

    Raises:
        OSError: a rank could not write its pieces, or nothing came for too long.
    """
    waited_for, last_size, last_change = [directory / _file_of(rank) for rank in range(n_ranks)], -1, time.monotonic()
    while missing := [file for file in waited_for if not file.exists()]:
        for failed in directory.glob(f"*{_FAILED}"):
            number, said = json.loads(failed.read_text(encoding="utf-8"))
            raise OSError(number, said)
        size = sum(file.stat().st_size for file in directory.iterdir() if not file.name.endswith(_FAILED))
        if size != last_size:
            last_size, last_change = size, time.monotonic()
        if time.monotonic() - last_change > patience_s():
            raise TimeoutError(f"{missing[0].name} of another rank does not come")
        time.sleep(_POLL_S)


@dataclass(frozen=True, kw_only=True)
class _Stored:
    """Where a piece lies: elements [start, stop) of a tensor, in an opened file."""

    start: int
    stop: int
    file: Any
    key: str


class StoredTensor:
    """A tensor in pieces on the disk: `tensor[...]` reads all of it, `tensor[first:last]` some of its rows."""

    def __init__(self, shape: Sequence[int], pieces: Sequence[_Stored]) -> None:
        self._shape = torch.Size(shape)
        self._pieces = sorted(pieces, key=lambda piece: piece.start)
        ends = [0, *(piece.stop for piece in self._pieces)]
        if [piece.start for piece in self._pieces] != ends[:-1] or ends[-1] != self._shape.numel():
            raise ValueError("its pieces do not make up the tensor")

    def __len__(self) -> int:
        return self._shape[0]

    def __getitem__(self, place: slice | EllipsisType) -> Tensor:
        if isinstance(place, slice):
            first, last, _ = place.indices(len(self))
            row = self._shape[1:].numel()
            return self._read(first * row, last * row).view(last - first, *self._shape[1:])
        return self._read(0, self._shape.numel()).view(self._shape)

    def _read(self, first: int, last: int) -> Tensor:
        found = []
        for piece in self._pieces:
            start, stop = max(first, piece.start), min(last, piece.stop)
            if start < stop:
                found.append(piece.file.get_slice(piece.key)[start - piece.start : stop - piece.start])
        return found[0] if len(found) == 1 else torch.cat(found)


class StoredState:
    """The tensors of a state that so many ranks wrote, by kind and name.

    Raises:
        OSError, SafetensorError: a file is missing or damaged.
        ValueError: pieces of a tensor are missing.
    """

    def __init__(self, directory: Path, n_ranks: int, shapes: Mapping[str, Sequence[int]]) -> None:
        pieces: dict[str, dict[str, list[_Stored]]] = {}
        for rank in range(n_ranks):
            file = safe_open(directory / _file_of(rank), "pt")
            for key in file.keys():  # noqa: SIM118  # a handle is no dictionary
                which, start, name = key.split("/", 2)
                stop = int(start) + int(file.get_slice(key).get_shape()[0])
                stored = _Stored(start=int(start), stop=stop, file=file, key=key)
                pieces.setdefault(which, {}).setdefault(name, []).append(stored)
        self._tensors = {
            which: {name: StoredTensor(shapes[name], found) for name, found in by_name.items()} for which, by_name in pieces.items()
        }

    def of(self, which: str) -> Mapping[str, StoredTensor]:
        """Return a kind's tensors by name."""
        return self._tensors.get(which, {})


def whole_pieces(which: str, tensors: Iterator[tuple[str, Tensor]]) -> Iterator[Piece]:
    """Yield whole tensors as pieces."""
    return (Piece(which=which, name=name, start=0, values=tensor.detach().reshape(-1)) for name, tensor in tensors)


def _file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
