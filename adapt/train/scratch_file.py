"""A file of a fixed size without a name: allocated whole, mapped as tensors, and read and written block by block.

Its name is taken away before anything is in it, so the system frees its space when the process ends, however it ends. What was
killed in the moment between leaves an empty file of the same name, which the next one takes over.
"""

from __future__ import annotations

import mmap
import os
import shutil
from pathlib import Path

import torch
from torch import Tensor

from adapt.core.errors import ConfigError, TrainingError

_FOR_OWNER = 0o600
_REMEDY = "offload.optimizer=none"


class ScratchFile:
    """Space on a disk, at 0 in the beginning.

    Raises:
        ConfigError: the disk has too little of it, or the file cannot be made.
    """

    def __init__(self, place: Path, n_bytes: int, wish: str, remedy: str = _REMEDY) -> None:
        self.place = place
        try:
            place.parent.mkdir(parents=True, exist_ok=True)
            self._handle = os.open(place, os.O_RDWR | os.O_CREAT | os.O_TRUNC, _FOR_OWNER)
            try:
                place.unlink()
                os.posix_fallocate(self._handle, 0, n_bytes)
                self._map = mmap.mmap(self._handle, n_bytes)
            except OSError:
                os.close(self._handle)
                raise
        except OSError as error:
            raise ConfigError(_too_small(place, n_bytes, wish, remedy, error)) from error

    def tensor(self, offset: int, count: int, dtype: torch.dtype) -> Tensor:
        """Return `count` elements from byte `offset` on, as a view of the mapped file."""
        return torch.frombuffer(self._map, dtype=dtype, count=count, offset=offset)

    def read(self, offset: int, target: memoryview) -> None:
        """Fill `target` with the bytes from `offset` on. Raises TrainingError where the disk fails."""
        try:
            done = 0
            while done < len(target):
                done += self._some(os.preadv(self._handle, [target[done:]], offset + done))
        except OSError as error:
            raise self._failed("read", error) from error

    def write(self, offset: int, source: memoryview) -> None:
        """Put `source` at `offset`. Raises TrainingError where the disk fails."""
        try:
            done = 0
            while done < len(source):
                done += self._some(os.pwritev(self._handle, [source[done:]], offset + done))
        except OSError as error:
            raise self._failed("written", error) from error

    def will_read(self, offset: int, n_bytes: int) -> None:
        """Let the system fetch these bytes; returns at once."""
        os.posix_fadvise(self._handle, offset, n_bytes, os.POSIX_FADV_WILLNEED)

    def close(self) -> None:
        """Close the file; its space is free when the last of its tensors is gone too."""
        if self._handle >= 0:
            os.close(self._handle)
            self._handle = -1

    def _some(self, n_bytes: int) -> int:
        if not n_bytes:
            raise OSError(0, "it has been cut off")
        return n_bytes

    def _failed(self, what: str, error: OSError) -> TrainingError:
        return TrainingError(
            f"{self.place}: the optimizer's scratch file cannot be {what} ({error.strerror or error}); the last saved state is "
            f"kept, and the same command goes on from it; check that disk, or set {_REMEDY}"
        )


def _too_small(place: Path, n_bytes: int, wish: str, remedy: str, error: OSError) -> str:
    try:
        free = f", where {shutil.disk_usage(place.parent).free / 1e9:.1f} GB are free"
    except OSError:
        free = ""
    return (
        f"{place.parent}: no {n_bytes / 1e9:.1f} GB of scratch space for {wish}{free} ({error.strerror or error}); free space on "
        f"that disk, put run.dir on a larger one, or set {remedy}"
    )
