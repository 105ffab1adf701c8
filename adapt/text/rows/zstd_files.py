"""Zstandard files as streams of bytes. The package is optional: only a file that ends in .zst asks for it."""

from __future__ import annotations

import io
from collections.abc import Iterator
from contextlib import contextmanager
from typing import IO, Any, cast

from adapt.core.errors import ConfigError, DataError

_MARK = b"\x28\xb5\x2f\xfd"


@contextmanager
def unpacked_zstd(raw: io.BufferedReader, name: str) -> Iterator[IO[bytes]]:
    """Open packed bytes as a stream.

    Raises:
        ConfigError: the package is not installed.
        DataError: it is no Zstandard file, or a damaged one.
    """
    try:
        import zstandard
    except ImportError as error:
        raise ConfigError(f"{name}: reading .zst needs zstandard; pip install 'moe-adapt[corpus]', or unpack the file") from error
    start = raw.peek(4)[:4]
    if start and start != _MARK:
        raise DataError(f"{name}: is not a Zstandard file; let its name say what it is")
    with zstandard.ZstdDecompressor().stream_reader(raw, read_across_frames=True) as stream:
        yield cast(IO[bytes], _InWords(stream, name, zstandard.ZstdError))


class _InWords:
    """A stream whose errors name the file."""

    def __init__(self, stream: Any, name: str, error: type[Exception]) -> None:
        self._stream, self._name, self._error = stream, name, error

    def read(self, size: int) -> bytes:
        try:
            return bytes(self._stream.read(size))
        except self._error as error:
            raise DataError(f"{self._name}: a damaged Zstandard file ({error})") from error
