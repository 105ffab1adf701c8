"""Units as views of mapped files: nothing is copied, the pages belong to the files and to every process that maps them.

A thread asks for the pages ahead of their use (MADV_POPULATE_READ, in steps) and lets go of them behind it (MADV_DONTNEED), which
takes them only out of this process: the page cache keeps what it has room for, so that several ranks read a file from the disk
once. Letting page faults do the reading is several times slower. The mapping is private and read-only: it cannot change a
file, and no limit on data (`ulimit -d`) counts it.
"""

from __future__ import annotations

import ctypes
import errno
import mmap
import os
import warnings
from pathlib import Path

import torch
from torch import Tensor

from adapt.checkpoint.pager import Unit
from adapt.checkpoint.shard_bytes import cut_off
from adapt.checkpoint.shard_format import PAGE_BYTES, ByteRange, pages_down, pages_up
from adapt.core.errors import CheckpointError

_STEP_BYTES = 16 << 20  # while the kernel reads a step, no thread of this process can map or unmap memory
_DONTNEED, _POPULATE_READ = 4, 22  # linux/mman.h
_libc = ctypes.CDLL(None, use_errno=True)  # unlike mmap.madvise, a foreign call lets other threads run


class MappedFiles:
    """Files mapped once each, as bytes."""

    def __init__(self) -> None:
        self._bytes: dict[Path, Tensor] = {}

    def view(self, place: ByteRange) -> Tensor:
        """Return a tensor that is the file's bytes; a copy where they lie across the type's alignment.

        Raises:
            CheckpointError: the file is missing, or ends before the tensor.
        """
        raw = self._file(place)[place.offset : place.end]
        if place.offset % place.dtype.itemsize:
            raw = raw.clone()
        return raw.view(place.dtype).view(place.shape)

    def populate(self, place: ByteRange) -> None:
        """Bring a tensor's pages into memory. Raises CheckpointError where the file has lost them."""
        whole = self._file(place)
        for start in range(pages_down(place.offset), place.end, _STEP_BYTES):
            end = min(pages_up(place.end), start + _STEP_BYTES)
            failed = _advise(whole, start, end, _POPULATE_READ)
            if failed == errno.EINVAL:  # before Linux 5.14
                whole[start : min(end, len(whole)) : PAGE_BYTES].sum()
            elif failed:
                raise CheckpointError(f"{place.file}: missing or damaged ({os.strerror(failed)} at byte {start})")

    def drop(self, place: ByteRange) -> None:
        """Take a tensor's pages out of this process; they are read again when they are looked at."""
        if place.n_bytes:
            _advise(self._file(place), pages_down(place.offset), pages_up(place.end), _DONTNEED)

    def _file(self, place: ByteRange) -> Tensor:
        if place.file not in self._bytes:
            try:
                with place.file.open("rb") as stream:
                    mapping = mmap.mmap(stream.fileno(), 0, flags=mmap.MAP_PRIVATE, prot=mmap.PROT_READ)
            except (OSError, ValueError) as error:
                raise CheckpointError(f"{place.file}: missing or damaged ({error})") from error
            with warnings.catch_warnings():
                warnings.filterwarnings("ignore", message="The given buffer is not writable")
                self._bytes[place.file] = torch.frombuffer(mapping, dtype=torch.uint8)
        whole = self._bytes[place.file]
        if place.end > len(whole):
            raise cut_off(place)
        return whole


class MappedSource:
    """A pager's source of mapped units; room is how many may be populated at a time."""

    def __init__(self, room: dict[str, int], device: torch.device) -> None:
        self.files = MappedFiles()
        self._room = room
        self._device = device

    def rooms(self, kind: str) -> list[None]:
        return [None] * self._room[kind]

    def read(self, unit: Unit, room: None) -> dict[str, Tensor]:
        for place in unit.places.values():
            self.files.populate(place)
        return {name: self.files.view(place) for name, place in unit.places.items()}

    def hand_out(self, tensors: dict[str, Tensor], room: None) -> dict[str, Tensor]:
        return {name: tensor.to(self._device) for name, tensor in tensors.items()}

    def leave(self, unit: Unit, room: None) -> None:
        for place in unit.places.values():
            self.files.drop(place)


def _advise(whole: Tensor, start: int, end: int, advice: int) -> int:
    """Advise the kernel on bytes of a mapping; return 0 or the error's number."""
    address = ctypes.c_void_p(whole.data_ptr() + start)
    if _libc.madvise(address, ctypes.c_size_t(end - start), ctypes.c_int(advice)) == 0:
        return 0
    return ctypes.get_errno()
