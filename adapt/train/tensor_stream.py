"""Writing and reading a safetensors file tensor by tensor, with one tensor in memory at a time."""

from __future__ import annotations

import json
import os
from collections.abc import Iterable, Iterator, Mapping, Sequence
from pathlib import Path
from typing import cast

from safetensors import safe_open
from torch import Tensor

from adapt.checkpoint.shard_bytes import view_of
from adapt.checkpoint.shard_format import PAGE_BYTES, dtype_name, header_of, pages_up

_ENTRY_BYTES = 200  # of a tensor in the header, beside its name and its shape


def save_one_by_one(place: Path, tensors: Iterable[tuple[str, Tensor]], names: Sequence[str]) -> None:
    """Write tensors as they come, under some of `names`, for which the header's room is left; the file is on the disk at the end.

    Raises:
        OSError: the disk is full or fails.
    """
    room = pages_up(PAGE_BYTES + sum(len(json.dumps(name)) + _ENTRY_BYTES for name in names))
    entries: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
    end = 0
    with place.open("wb", buffering=0) as stream:
        stream.seek(room)
        for name, tensor in tensors:
            block = view_of(tensor.detach().cpu().contiguous())
            done = 0
            while done < len(block):
                done += stream.write(block[done:])
            entries[name] = (dtype_name(tensor.dtype, name), tuple(tensor.shape), end, end + len(block))
            end += len(block)
        head = header_of(entries, room)
        assert len(head) == room, "the header takes the room that was left for it"
        stream.seek(0)
        stream.write(head)
        os.fsync(stream.fileno())


class TensorsOnDisk(Mapping[str, Tensor]):
    """The tensors of a safetensors file by name, each read when it is asked for."""

    def __init__(self, place: Path) -> None:
        self._file = safe_open(place, "pt")
        self._names = list(self._file.keys())

    def __getitem__(self, name: str) -> Tensor:
        if name not in self:
            raise KeyError(name)
        return cast(Tensor, self._file.get_tensor(name))

    def __contains__(self, name: object) -> bool:
        return name in self._names

    def __iter__(self) -> Iterator[str]:
        return iter(self._names)

    def __len__(self) -> int:
        return len(self._names)
