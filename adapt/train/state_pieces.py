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
from typing import Any, cast

import torch
from safetensors import safe_open
from torch import Tensor, nn

from adapt.core.runtime import RankInfo
from adapt.model.buffers import named_state, saved_buffers, state_parameters
from adapt.model.exchange import ExpertShare
from adapt.model.expert_parallel import is_stack
from adapt.train.optimizer import MOMENTS
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
        size = sum(_size_of(file) for file in directory.iterdir())
        if size != last_size:
            last_size, last_change = size, time.monotonic()
        if time.monotonic() - last_change > patience_s():
            raise TimeoutError(f"{missing[0].name} of another rank does not come")
        time.sleep(_POLL_S)


def _size_of(file: Path) -> int:
    """Return a file's size; 0 of one that another rank has just given its final name."""
    try:
        return file.stat().st_size
    except FileNotFoundError:
        return 0


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


def partition_pieces(model: nn.Module, frozen: Mapping[str, Tensor], share: ExpertShare, rank: RankInfo) -> Iterator[Piece]:
    """Yield what a rank holds of masters and moments by DeepSpeed's partitions, and its part of the frozen tensors.

    `frozen` has the exact form of weights that forward reads rounded; `share` says which experts the rank's stacks hold.
    """

    def first_of(name: str, parameter: nn.Parameter) -> int:
        return share.index * parameter.numel() if is_stack(name) else 0

    for name, parameter in state_parameters(model):
        if not parameter.requires_grad:
            if rank.rank < (share.of if is_stack(name) else 1):
                values = frozen.get(name, parameter).detach().reshape(-1)
                yield Piece(which=WEIGHTS, name=name, start=first_of(name, parameter), values=values)
            continue
        own = cast(Any, parameter)._hp_mapping  # where this rank's partition holds the parameter, None where it does not
        if own is not None:
            start = first_of(name, parameter) + own.lp_fragment_address.start
            yield Piece(which=WEIGHTS, name=name, start=start, values=own.get_hp_fragment())
            for which in MOMENTS:
                yield Piece(which=which, name=name, start=start, values=own.get_hp_fragment(which))
    if rank.is_main:
        yield from whole_pieces(WEIGHTS, saved_buffers(model))  # equal on every rank


def whole_shapes(model: nn.Module, share: ExpertShare) -> dict[str, list[int]]:
    """Return the shapes of a state's tensors by name, with the experts of all ranks in their stacks."""
    shapes = {name: list(tensor.shape) for name, tensor in named_state(model)}
    return {name: [shape[0] * share.of, *shape[1:]] if is_stack(name) else shape for name, shape in shapes.items()}


def _file_of(rank: int) -> str:
    return f"rank-{rank:05d}.safetensors"
