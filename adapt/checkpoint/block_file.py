"""A file written from front to back in large blocks by a thread, past the page cache where the file system can.

Two buffers take turns: one is filled while the other is on its way. Without O_DIRECT (some network and memory file systems) the
same blocks go through the page cache, which is flushed and dropped every GB, so that a checkpoint does not push everything else
out of memory. Measured here: O_DIRECT 2.5 GB/s, through the cache 0.7.
"""

from __future__ import annotations

import errno
import mmap
import os
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path

from adapt.checkpoint.shard_format import pages_up

_BLOCK_BYTES = 16 << 20
_FLUSH_BYTES = 1 << 30


class BlockFile:
    """A new file, from byte `start` (a multiple of a page) on; what is before it comes last."""

    def __init__(self, path: Path, start: int) -> None:
        self._handle, self._is_direct = _open(path)
        self._buffers = [mmap.mmap(-1, _BLOCK_BYTES) for _ in range(2)]
        self._views = [memoryview(buffer) for buffer in self._buffers]
        self._thread = ThreadPoolExecutor(1)
        self._under_way: list[Future[None] | None] = [None, None]
        self._current = 0
        self._filled = 0
        self._start = start
        self._size = start

    def write(self, block: memoryview) -> None:
        """Append bytes; they may change as soon as this returns. Raises OSError, perhaps that of an earlier block."""
        done = 0
        while done < len(block):
            count = min(len(block) - done, _BLOCK_BYTES - self._filled)
            self._views[self._current][self._filled : self._filled + count] = block[done : done + count]
            self._filled += count
            done += count
            if self._filled == _BLOCK_BYTES:
                self._send(_BLOCK_BYTES)

    def finish(self, head: bytes) -> None:
        """Write what is left and the file's first bytes, make all of it durable, and close."""
        try:
            end = self._size + self._filled
            if self._filled:
                self._send(pages_up(self._filled) if self._is_direct else self._filled)
            self._send_head(head)
            self._thread.shutdown()
            os.ftruncate(self._handle, end)
            os.fdatasync(self._handle)
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            self.close()

    def close(self) -> None:
        """Close, finished or not."""
        self._thread.shutdown()
        if self._handle >= 0:
            os.close(self._handle)
        self._handle = -1

    def _send(self, count: int) -> None:
        """Hand the current buffer to the thread and take the other one once it is free."""
        at, view = self._size, self._views[self._current][:count]
        self._under_way[self._current] = self._thread.submit(self._put, view, at)
        self._size += count
        self._current, self._filled = 1 - self._current, 0
        self._await(self._current)

    def _send_head(self, head: bytes) -> None:
        for index in range(2):
            self._await(index)
        assert len(head) == self._start, "the header takes the room that was left for it"
        for at in range(0, len(head), _BLOCK_BYTES):
            part = head[at : at + _BLOCK_BYTES]
            self._views[0][: len(part)] = part
            self._put(self._views[0][: len(part)], at)

    def _await(self, index: int) -> None:
        pending, self._under_way[index] = self._under_way[index], None
        if pending is not None:
            pending.result()

    def _put(self, view: memoryview, at: int) -> None:
        done = 0
        while done < len(view):
            done += os.pwrite(self._handle, view[done:], at + done)
        if not self._is_direct and (at + len(view)) // _FLUSH_BYTES > at // _FLUSH_BYTES:
            os.fdatasync(self._handle)
            os.posix_fadvise(self._handle, 0, 0, os.POSIX_FADV_DONTNEED)


def _open(path: Path) -> tuple[int, bool]:
    """Open a new file, past the page cache if the file system can."""
    flags = os.O_RDWR | os.O_CREAT | os.O_TRUNC
    try:
        return os.open(path, flags | os.O_DIRECT, 0o666), True
    except OSError as error:
        if error.errno != errno.EINVAL:
            raise
    return os.open(path, flags, 0o666), False
