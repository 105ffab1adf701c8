"""Safetensors shards as bytes: headers in, headers out, and where every tensor lies.

A shard is eight bytes (the header's length), a JSON header, and the tensors' bytes without holes between them. Shards of this
project have their data begin at a page, and unnamed bytes between tensors are tensors themselves (`page_padding.*`, of no use
to anyone), so that every tensor begins at a page too and yet any reader of the format opens the file. Nothing is ever unpickled.
Source: the format as safetensors documents it (github.com/huggingface/safetensors, section "Format").
"""

from __future__ import annotations

import json
import math
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from adapt.core.errors import CheckpointError
from adapt.core.json_files import parsed_json

PAGE_BYTES = 4096
PADDING_PREFIX = "page_padding."
DTYPES = {
    "F64": torch.float64,
    "F32": torch.float32,
    "F16": torch.float16,
    "BF16": torch.bfloat16,
    "I64": torch.int64,
    "I32": torch.int32,
    "I16": torch.int16,
    "I8": torch.int8,
    "U8": torch.uint8,
    "BOOL": torch.bool,
}
_NAMES = {dtype: name for name, dtype in DTYPES.items()}
_LENGTH = struct.Struct("<Q")
_MOST_ROWS, _MOST_AXES = 1 << 48, 32
_MOST_HEADER_BYTES = 100_000_000  # as safetensors itself
_PICKLE_STARTS = (b"\x80", b"PK\x03\x04")


@dataclass(frozen=True, kw_only=True)
class ByteRange:
    """Bytes of a file that are a tensor, or a part of one."""

    file: Path
    offset: int
    dtype: torch.dtype
    shape: tuple[int, ...]

    @property
    def n_bytes(self) -> int:
        return math.prod(self.shape) * self.dtype.itemsize

    @property
    def end(self) -> int:
        return self.offset + self.n_bytes

    def rows(self, first: int, count: int) -> ByteRange:
        """Return `count` slices along the first axis, from `first` on."""
        row_bytes = math.prod(self.shape[1:]) * self.dtype.itemsize
        return ByteRange(file=self.file, offset=self.offset + first * row_bytes, dtype=self.dtype, shape=(count, *self.shape[1:]))

    def row(self, index: int) -> ByteRange:
        """Return one slice along the first axis, without that axis."""
        one = self.rows(index, 1)
        return ByteRange(file=one.file, offset=one.offset, dtype=one.dtype, shape=one.shape[1:])


def pages_down(offset: int) -> int:
    """Return the last page's start that is not behind an offset."""
    return offset // PAGE_BYTES * PAGE_BYTES


def pages_up(offset: int) -> int:
    """Return the first page's start that is not before an offset."""
    return -(-offset // PAGE_BYTES) * PAGE_BYTES


def dtype_name(dtype: torch.dtype, tensor: str) -> str:
    """Return the format's word for a dtype. Raises CheckpointError where it has none."""
    if dtype not in _NAMES:
        raise CheckpointError(f"tensor {tensor} is {dtype}, which checkpoints do not hold")
    return _NAMES[dtype]


def header_of(tensors: Mapping[str, tuple[str, tuple[int, ...], int, int]], n_bytes: int) -> bytes:
    """Return a shard's first `n_bytes` for tensors given as (dtype's name, shape, begin, end), filled up with spaces."""
    content: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    for name, (dtype, shape, begin, end) in tensors.items():
        content[name] = {"dtype": dtype, "shape": list(shape), "data_offsets": [begin, end]}
    text = json.dumps(content, separators=(",", ":")).encode()
    return _LENGTH.pack(n_bytes - _LENGTH.size) + text.ljust(n_bytes - _LENGTH.size)


def read_header(path: Path) -> dict[str, ByteRange]:
    """Return where the tensors of a shard lie, by name, after holding its header against its size.

    Raises:
        CheckpointError: it is missing, cut off, damaged, or a pickle.
    """
    try:
        with path.open("rb") as stream:
            size = stream.seek(0, 2)
            stream.seek(0)
            start = stream.read(_LENGTH.size)
            if len(start) < _LENGTH.size:
                raise _damaged(path, f"has {size} bytes, too few for a header")
            length = _LENGTH.unpack(start)[0]
            if length > min(size - _LENGTH.size, _MOST_HEADER_BYTES):
                if start.startswith(_PICKLE_STARTS):
                    raise _damaged(path, "a pickle, which is never loaded; only safetensors are")
                raise _damaged(path, f"its header should have {length} bytes, the file has {size}")
            text = stream.read(length)
    except OSError as error:
        raise _damaged(path, error.strerror or str(error)) from error
    try:
        content = parsed_json(text)
        found = {
            name: _tensor(path, name, entry, _LENGTH.size + length) for name, entry in content.items() if name != "__metadata__"
        }
    except (AttributeError, TypeError, KeyError, ValueError, OverflowError) as error:
        raise _damaged(path, f"its header is not one ({error})") from error
    _check_cover(path, found, _LENGTH.size + length, size)
    return {name: place for name, place in found.items() if not name.startswith(PADDING_PREFIX)}


def _tensor(path: Path, name: str, entry: Mapping[str, Any], data: int) -> ByteRange:
    begin, end = (int(offset) for offset in entry["data_offsets"])
    if entry["dtype"] not in DTYPES:
        raise _damaged(path, f"tensor {name} is of type {entry['dtype']}, which is not served")
    found = ByteRange(file=path, offset=data + begin, dtype=DTYPES[entry["dtype"]], shape=tuple(map(int, entry["shape"])))
    if any(not 0 <= size <= _MOST_ROWS for size in found.shape) or len(found.shape) > _MOST_AXES:
        raise _damaged(path, f"tensor {name} has a shape that no tensor has")
    if begin < 0 or found.end != data + end:
        raise _damaged(path, f"tensor {name} has shape {list(found.shape)}, but {end - begin} bytes")
    return found


def _check_cover(path: Path, tensors: Mapping[str, ByteRange], data: int, size: int) -> None:
    """Raise CheckpointError unless the tensors cover the data from end to end."""
    end = data
    for name, place in sorted(tensors.items(), key=lambda item: (item[1].offset, item[1].end)):
        if place.offset != end:
            raise _damaged(path, f"tensor {name} begins at byte {place.offset}, the one before ends at {end}")
        end = place.end
    if end != size:
        raise _damaged(path, f"has {size} bytes, its header says {end}")


def _damaged(path: Path, why: str) -> CheckpointError:
    return CheckpointError(f"{path}: missing or damaged ({why})")
