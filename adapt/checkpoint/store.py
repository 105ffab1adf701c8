"""A checkpoint's tensors by name: which file, at which byte, of which type and shape, with which sum.

`model.safetensors.index.json` says so for checkpoints of this project; the shards' own headers are compared with it. Its
`weight_map` is the one that other programs read. Directories without such an index (older ones, those from Hugging Face) are
opened by their headers only and have no sums. Opening reads no weight but a sample, if `verify` asks for it; configuration and
tokenizer are always compared with the sums that the index records of them (`file_sums`).
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

from torch import Tensor

from adapt.checkpoint.file_sums import check_files, refuse_elsewhere, refuse_links_out
from adapt.checkpoint.hf_directory import INDEX_FILE, SINGLE_FILE, is_own_form, refuse_two_sets
from adapt.checkpoint.integrity import Sum, check_sums
from adapt.checkpoint.offload import Verify
from adapt.checkpoint.shard_bytes import read_range, stacked_rows
from adapt.checkpoint.shard_format import DTYPES, ByteRange, read_header
from adapt.core.errors import CheckpointError
from adapt.core.json_files import read_object

INDEX_SCHEMA = 1
OWN_PREFIX = "model."  # before the names of this project's tensors in the form of a Hugging Face directory


@dataclass(frozen=True, kw_only=True)
class Store:
    """Where the tensors of a checkpoint lie. `sums` has a tensor's sha256, one for each of its equal parts, where known."""

    directory: Path
    tensors: Mapping[str, ByteRange]
    sums: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    @property
    def n_bytes(self) -> int:
        return sum(place.n_bytes for place in self.tensors.values())

    def files(self) -> list[Path]:
        """Return the shards in the order of their names."""
        return sorted({place.file for place in self.tensors.values()})

    def place(self, name: str) -> ByteRange:
        """Return where a tensor lies. Raises CheckpointError where there is none of that name."""
        if name not in self.tensors:
            raise CheckpointError(f"{self.directory}: tensor {name} is missing")
        return self.tensors[name]

    def read(self, name: str) -> Tensor:
        """Read one tensor into memory of its own."""
        return read_range(self.place(name))

    def read_rows(self, name: str, rows: Sequence[int]) -> Tensor:
        """Read slices along a tensor's first axis and nothing else of it: of a layer's stacked experts, those a rank owns."""
        return stacked_rows(self.place(name), rows)

    def __iter__(self) -> Iterator[tuple[str, Tensor]]:
        """Yield (name, tensor), one tensor in memory at a time, shard by shard, by name within a shard."""
        for name, _ in sorted(self.tensors.items(), key=lambda item: (item[1].file.name, item[0])):
            yield name, self.read(name)


def open_store(directory: Path, verify: Verify = Verify.SAMPLE) -> Store:
    """Open the tensors of a checkpoint directory after checking its shards' sizes and headers, and what `verify` asks for.

    Those of this project's models have one name each, in whichever form the directory is.

    Raises:
        CheckpointError: a shard is missing, cut off, damaged, a pickle, or not what the index says; configuration or tokenizer are
            not those that it records; the index is damaged or of a newer schema.
    """
    index = directory / INDEX_FILE
    refuse_links_out(directory)
    refuse_two_sets(directory)
    if not index.is_file() and (directory / SINGLE_FILE).is_file():
        return _own_names(Store(directory=directory, tensors=read_header(directory / SINGLE_FILE)))
    content = read_object(index, "is this a checkpoint directory?")
    store = indexed_store(directory, content)
    check_files(index, content)
    check_sums([_sum_of(store, name) for name in store.sums], verify)
    return _own_names(store)


def indexed_store(directory: Path, content: Mapping[str, Any]) -> Store:
    """Open the tensors that an index's content names, after checking shards' sizes and headers. Raises CheckpointError."""
    index = directory / INDEX_FILE
    shards = shards_by_tensor(index, content)
    headers = {shard: read_header(directory / shard) for shard in sorted(set(shards.values()))}
    tensors: dict[str, ByteRange] = {}
    for name, shard in shards.items():
        if name not in headers[shard]:
            raise CheckpointError(f"{directory / shard}: missing or damaged (the index says it holds {name}, its header does not)")
        tensors[name] = headers[shard][name]
    return Store(directory=directory, tensors=tensors, sums=_sums(index, content, tensors))


def shards_by_tensor(index: Path, content: Mapping[str, Any]) -> dict[str, str]:
    """Return the `weight_map` of an index.

    Raises:
        CheckpointError: it has none, or one that names files elsewhere, or it is of a newer schema.
    """
    metadata = content.get("metadata")
    version = metadata.get("schema_version", 0) if isinstance(metadata, dict) else 0
    if not isinstance(version, int) or version > INDEX_SCHEMA:
        raise CheckpointError(f"{index}: schema version {version}, this program reads up to {INDEX_SCHEMA}; take a newer one")
    shards = content.get("weight_map")
    if not isinstance(shards, dict) or not shards or not all(isinstance(shard, str) for shard in shards.values()):
        raise CheckpointError(f"{index}: has no weight_map of tensor names to shards")
    for shard in shards.values():
        refuse_elsewhere(index, shard)
    return shards


def _sums(index: Path, content: Mapping[str, Any], tensors: Mapping[str, ByteRange]) -> dict[str, tuple[str, ...]]:
    """Return the tensors' sums after holding places, types and shapes of the index against the shards' headers."""
    entries = content.get("tensors", {})
    if not isinstance(entries, dict) or (entries and set(entries) != set(tensors)):
        raise CheckpointError(f"{index}: its tensors are not those of its weight_map")
    found: dict[str, tuple[str, ...]] = {}
    for name, entry in entries.items():
        place = tensors[name]
        try:
            said = (entry["file"], entry["offset"], DTYPES[entry["dtype"]], tuple(entry["shape"]))
            sums = tuple(str(text) for text in entry["sha256"])
        except (KeyError, TypeError) as error:
            raise CheckpointError(f"{index}: its entry of tensor {name} is damaged ({error})") from error
        if said != (place.file.name, place.offset, place.dtype, place.shape):
            raise CheckpointError(f"{place.file}: missing or damaged (tensor {name} is not where or what the index says)")
        if len(sums) != 1 and (not place.shape or len(sums) != place.shape[0]):
            raise CheckpointError(f"{index}: tensor {name} has {len(sums)} sums for shape {list(place.shape)}")
        found[name] = sums
    return found


def _own_names(store: Store) -> Store:
    """Return a store under this project's names, where it holds a model of this project."""
    if not is_own_form(store.directory):
        return store
    tensors = {name.removeprefix(OWN_PREFIX): place for name, place in store.tensors.items()}
    return replace(store, tensors=tensors, sums={name.removeprefix(OWN_PREFIX): sums for name, sums in store.sums.items()})


def _sum_of(store: Store, name: str) -> Sum:
    return Sum(name=name, place=store.tensors[name], sha256=store.sums[name])
