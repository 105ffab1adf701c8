"""Writes a checkpoint's tensors as a stream: shards, and last the index, which makes them a checkpoint.

No more is in memory than one tensor (or one part of it, see `PartedTensor`) and a few blocks. Blocks go to the disk around the
page cache where the file system can (O_DIRECT), else through it, flushed and dropped every GB; a thread of its own hashes. Shards
carry other names until all of them are whole, and the directory is locked meanwhile: what was there stays until then, and a
second writer is refused before it writes.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import math
import os
import re
from collections.abc import Iterable, Iterator
from concurrent.futures import Future, ThreadPoolExecutor
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.checkpoint.block_file import BlockFile
from adapt.checkpoint.file_sums import FILES_ENTRY, sums_of_files
from adapt.checkpoint.hf_directory import INDEX_FILE
from adapt.checkpoint.shard_bytes import bytes_of, view_of
from adapt.checkpoint.shard_format import PADDING_PREFIX, PAGE_BYTES, ByteRange, dtype_name, header_of, pages_up
from adapt.checkpoint.store import INDEX_SCHEMA, indexed_store
from adapt.checkpoint.tensors_in_parts import AnyTensor, PartedTensor
from adapt.core.artifacts import write_atomically
from adapt.core.errors import CheckpointError
from adapt.core.json_files import json_text, read_object
from adapt.core.progress import progress

SHARD_BYTES = 2 << 30
UNFINISHED = "unfinished-"
_HEADER_BYTES = 16 * PAGE_BYTES
_NUMBERED = re.compile(r"\.experts\.\d+\.")
_ENTRY_BYTES = 200  # of a tensor in the header, beside its name


def write_tensors(directory: Path, tensors: Iterable[tuple[str, AnyTensor]], *, has_pages: bool = True) -> None:
    """Write shards and their index. With `has_pages` every tensor begins at a page.

    Raises:
        CheckpointError: another process is writing there, two tensors have one name, or a tensor's type is not served.
    """
    with _alone(directory):
        for left in directory.glob(f"{UNFINISHED}*"):
            left.unlink()
        with ThreadPoolExecutor(1) as hasher:
            writer = _Writer(directory, hasher, has_pages)
            try:
                for name, tensor in tensors:
                    writer.add(name, tensor)
                index = writer.finish()
            except BaseException:
                writer.abandon()
                raise
        shards = sorted(set(index["weight_map"].values()))
        for shard in shards:
            (directory / f"{UNFINISHED}{shard}").replace(directory / shard)
        write_atomically(directory / INDEX_FILE, json_text(index))
        for old in directory.glob("model*.safetensors"):
            if old.name not in shards:
                old.unlink()


def add_sums(directory: Path, files: Iterable[Path], *, with_tensors: bool) -> int:
    """Record sums of files in the index that is there, and those of tensors, where it has none; return how many tensors have one.

    Raises:
        CheckpointError: another process is writing there, or index or shards are damaged.
    """
    index = directory / INDEX_FILE
    with _alone(directory):
        content = read_object(index)
        store = indexed_store(directory, content)
        if with_tensors and not store.sums:
            content["tensors"] = {name: _entry(name, place) for name, place in progress(store.tensors.items(), "hashing")}
            content["metadata"] = {**content.get("metadata", {}), "schema_version": INDEX_SCHEMA}
        content[FILES_ENTRY] = sums_of_files(files)
        write_atomically(index, json_text(content))
    return len(content.get("tensors", {}))


class _Writer:
    """The shard that is being written, and the index so far."""

    def __init__(self, directory: Path, hasher: ThreadPoolExecutor, has_pages: bool) -> None:
        self.directory = directory
        self.hasher = hasher
        self.has_pages = has_pages
        self.shards: dict[str, str] = {}
        self.entries: dict[str, dict[str, Any]] = {}
        self.sums: dict[str, list[Future[str]]] = {}
        self.file: BlockFile | None = None
        self.shard = ""
        self.header: dict[str, tuple[str, tuple[int, ...], int, int]] = {}
        self.header_bytes = 0
        self.size = 0
        self.total = 0

    def add(self, name: str, tensor: AnyTensor) -> None:
        if name in self.shards:
            raise CheckpointError(f"{self.directory}: tensor {name} comes twice")
        dtype, shape = dtype_name(tensor.dtype, name), tuple(tensor.shape)
        n_bytes = math.prod(shape) * tensor.dtype.itemsize
        entry_bytes = 2 * _ENTRY_BYTES + len(json.dumps(name)) + 24 * len(shape)
        if self.file is not None and (
            self.header_bytes + entry_bytes > _HEADER_BYTES or (not self.has_pages and self.size % tensor.dtype.itemsize)
        ):
            self._close()
        file = self.file or self._open()
        self.header_bytes += entry_bytes
        self.header[name] = (dtype, shape, self.size, self.size + n_bytes)
        self.shards[name] = self.shard
        self.entries[name] = {"file": self.shard, "offset": _HEADER_BYTES + self.size, "dtype": dtype, "shape": list(shape)}
        self.sums[name] = [self._write(file, part) for part in _parts(name, tensor)]
        self.size += n_bytes
        self.total += n_bytes
        self._pad(file)
        if self.size >= SHARD_BYTES:
            self._close()

    def finish(self) -> dict[str, Any]:
        """Close the last shard and return the index."""
        if self.file is not None:
            self._close()
        for name, sums in self.sums.items():
            self.entries[name]["sha256"] = [one.result() for one in sums]
        metadata = {"total_size": self.total, "schema_version": INDEX_SCHEMA}
        return {"metadata": metadata, "weight_map": self.shards, "tensors": self.entries}

    def abandon(self) -> None:
        """Leave the shard unfinished."""
        if self.file is not None:
            self.file.close()

    def _open(self) -> BlockFile:
        self.shard = f"model-{len(set(self.shards.values())) + 1:05d}.safetensors"
        self.file = BlockFile(self.directory / f"{UNFINISHED}{self.shard}", start=_HEADER_BYTES)
        self.header, self.header_bytes, self.size = {}, PAGE_BYTES, 0
        return self.file

    def _write(self, file: BlockFile, part: Tensor) -> Future[str]:
        block = view_of(part.detach().cpu().contiguous())
        # The sum is made beside the write; both have ended before the part may change.
        digest = self.hasher.submit(_sha256, block)
        file.write(block)
        digest.exception()
        return digest

    def _pad(self, file: BlockFile) -> None:
        end = pages_up(self.size)
        if self.has_pages and end > self.size:
            self.header[f"{PADDING_PREFIX}{len(self.header)}"] = ("U8", (end - self.size,), self.size, end)
            file.write(memoryview(bytes(end - self.size)))
            self.size = end

    def _close(self) -> None:
        assert self.file is not None
        self.file.finish(header_of(self.header, _HEADER_BYTES))
        self.file = None


def _entry(name: str, place: ByteRange) -> dict[str, Any]:
    """Describe a tensor that lies in a shard, with the sums of its bytes."""
    parts = [place.row(i) for i in range(place.shape[0])] if _has_parts(name, len(place.shape)) else [place]
    sums = []
    for part in parts:
        digest = hashlib.sha256()
        for block in bytes_of(part):
            digest.update(block)
        sums.append(digest.hexdigest())
    dtype = dtype_name(place.dtype, name)
    return {"file": place.file.name, "offset": place.offset, "dtype": dtype, "shape": list(place.shape), "sha256": sums}


def _has_parts(name: str, n_dims: int) -> bool:
    """Whether a tensor is stacked experts, which are written and hashed one by one; one expert's own has its number in its name."""
    return ".experts." in name and n_dims > 1 and _NUMBERED.search(name) is None


def _parts(name: str, tensor: AnyTensor) -> Iterator[Tensor]:
    """Yield what is written and hashed at a time: the parts of a tensor made so, the slices of stacked experts, or all of it."""
    if not isinstance(tensor, PartedTensor):
        yield from tensor if _has_parts(name, tensor.dim()) else (tensor,)
        return
    count = 0
    for part in tensor.parts():
        if part.dtype != tensor.dtype or tuple(part.shape) != tensor.shape[1:]:
            raise CheckpointError(f"tensor {name}: part {count} is {part.dtype} {list(part.shape)}, not what was announced")
        count += 1
        yield part
    if count != tensor.shape[0]:
        raise CheckpointError(f"tensor {name}: has {count} parts, {tensor.shape[0]} were announced")


def _sha256(block: memoryview) -> str:
    return hashlib.sha256(block).hexdigest()


@contextlib.contextmanager
def _alone(directory: Path) -> Iterator[None]:
    """Hold the directory's lock, or refuse."""
    handle = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise CheckpointError(
                f"{directory}: another process is writing a checkpoint there; wait for it, or choose another place"
            ) from None
        yield
    finally:
        os.close(handle)
