"""Units in reusable buffers, filled past the page cache by O_DIRECT reads: the disk's full rate at a fixed cost in memory.

Reads begin and end at pages; a tensor begins in its buffer where it begins in its page, so nothing is moved afterwards. On CUDA
the buffers are pinned, copies to the device run beside the host's work, and a buffer is filled again only once its copy is done.
"""

from __future__ import annotations

import errno
import os
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from adapt.checkpoint.pager import Unit
from adapt.checkpoint.shard_bytes import cut_off, view_of
from adapt.checkpoint.shard_format import PAGE_BYTES, ByteRange, pages_down, pages_up
from adapt.core.errors import CheckpointError, ConfigError

_STEP_BYTES = 16 << 20


@dataclass
class RingBuffer:
    """Memory that begins at a page, and on CUDA the event behind which it may be filled again."""

    raw: Tensor
    copied: Any = None
    view: memoryview = field(init=False)

    def __post_init__(self) -> None:
        self.view = view_of(self.raw)


class RingSource:
    """A pager's source of buffers: `room` of each kind, each large enough for `n_bytes` of it."""

    def __init__(self, room: Mapping[str, int], n_bytes: Mapping[str, int], device: torch.device) -> None:
        self._device = device
        self._buffers = {kind: [_buffer(n_bytes[kind], device) for _ in range(count)] for kind, count in room.items()}
        self._handles: dict[Path, int] = {}

    def rooms(self, kind: str) -> list[RingBuffer]:
        return self._buffers[kind]

    def read(self, unit: Unit, room: RingBuffer) -> dict[str, Tensor]:
        if room.copied is not None:
            room.copied.synchronize()
            room.copied = None
        found, at = {}, 0
        for name, place in unit.places.items():
            self._fill(room, at, place)
            first = at + place.offset % PAGE_BYTES
            raw = room.raw[first : first + place.n_bytes]
            if place.offset % place.dtype.itemsize:
                raw = raw.clone()
            found[name] = raw.view(place.dtype).view(place.shape)
            at += padded_bytes(place)
        return found

    def hand_out(self, tensors: dict[str, Tensor], room: RingBuffer) -> dict[str, Tensor]:
        if self._device.type != "cuda":
            return tensors
        moved = {name: tensor.to(self._device, non_blocking=True) for name, tensor in tensors.items()}
        room.copied = torch.cuda.Event()
        room.copied.record()
        return moved

    def leave(self, unit: Unit, room: RingBuffer) -> None:
        return None  # the buffer is filled again as it is

    def close(self) -> None:
        """Close the files."""
        for handle in self._handles.values():
            os.close(handle)
        self._handles = {}

    def _fill(self, room: RingBuffer, at: int, place: ByteRange) -> None:
        """Read the pages of a tensor into the buffer from byte `at` on."""
        if not place.n_bytes:
            return
        handle = self._open(place.file)
        start, end = pages_down(place.offset), pages_up(place.end)
        done = 0
        while start + done < place.end:
            count = min(_STEP_BYTES, end - start - done)
            try:
                got = os.preadv(handle, [room.view[at + done : at + done + count]], start + done)
            except OSError as error:
                raise CheckpointError(f"{place.file}: cannot be read at byte {start + done} ({error.strerror})") from error
            if got < count and start + done + got < place.end:
                raise cut_off(place)
            done += got

    def _open(self, path: Path) -> int:
        if path not in self._handles:
            self._handles[path] = open_direct(path)
        return self._handles[path]


def open_direct(path: Path) -> int:
    """Open a file for reads past the page cache.

    Raises:
        ConfigError: its file system has no such reads.
        CheckpointError: it cannot be opened.
    """
    try:
        return os.open(path, os.O_RDONLY | os.O_DIRECT)
    except OSError as error:
        if error.errno == errno.EINVAL:
            raise ConfigError(
                f"{path}: its file system cannot read past the page cache (O_DIRECT); set offload.weights=mmap, or copy the "
                "checkpoint to a local disk"
            ) from error
        raise CheckpointError(f"{path}: missing or damaged ({error.strerror})") from error


def padded_bytes(place: ByteRange) -> int:
    """Return the room that a tensor takes in a buffer: whole pages."""
    return pages_up(place.end) - pages_down(place.offset)


def _buffer(n_bytes: int, device: torch.device) -> RingBuffer:
    is_pinned = device.type == "cuda"
    raw = torch.empty(n_bytes + PAGE_BYTES, dtype=torch.uint8, pin_memory=is_pinned)
    skipped = -raw.data_ptr() % PAGE_BYTES
    return RingBuffer(raw=raw[skipped : skipped + n_bytes])
