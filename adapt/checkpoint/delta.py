"""Deltas: a directory that holds only what a light adaptation (LoRA) changed of a Hugging Face base, and which base that is.

    adapter_model.safetensors, adapter_config.json   the factors, as PEFT writes and opens them
    delta.json                                       the base's place, sizes and sums; which factors change which tensor
    config.json, tokenizer                           the base's, so that the directory says by itself what it is

A delta is opened by adding its changes to the weights of its base in memory, tensor by tensor in fp32. A base whose files are not
those that the delta was made on is refused. The base's own tensors are read again from its files when another delta takes the
place of one, so that the weights are the same bits as before, however often deltas came and went. A delta without a target says
that nothing was adapted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.checkpoint.file_sums import sums_of_files
from adapt.checkpoint.hf_directory import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CONFIG_FILE,
    DELTA_FILE,
    check_shards,
    config_files_of,
    is_delta,
    is_hf_directory,
    shards_of,
)
from adapt.checkpoint.offload import Verify
from adapt.checkpoint.store import Store, open_store
from adapt.core.artifacts import sha256_of_file
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_object, write_json
from adapt.core.typed import from_plain
from adapt.model.hf import PREFIX, HFModel, frame_of, load_hf_model
from adapt.model.lora_config import LoraLayout, TargetFactors
from adapt.model.low_rank import LowRankUpdate

_SCHEMA = 1


@dataclass(frozen=True, kw_only=True)
class FileSum:
    """A file's size in bytes and its sha256."""

    size: int
    sha256: str


@dataclass(frozen=True, kw_only=True)
class DeltaRecord:
    """The content of `delta.json`: `base` is where the base was, `base_files` its configuration and weights."""

    schema_version: int
    base: str
    base_files: dict[str, FileSum]
    adapter: FileSum | None
    scale: float
    targets: dict[str, TargetFactors]


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A delta that was opened, with its base, which was compared with the record."""

    directory: Path
    base: Path
    record: DeltaRecord

    def changes(self) -> Iterator[tuple[str, LowRankUpdate]]:
        """Yield the change of each targeted tensor by the base's parameter name, read one by one.

        Raises:
            CheckpointError: the factors are missing or of another shape.
        """
        if not self.record.targets:
            return
        place = self.directory / ADAPTER_FILE
        try:
            with safe_open(place, framework="pt") as stream:
                for name, target in self.record.targets.items():
                    a, b = (stream.get_tensor(stored).float() for stored in (target.a, target.b))
                    shape, scale = tuple(target.shape), self.record.scale
                    yield name, LowRankUpdate(shape=shape, a=a, b=b, scale=scale, is_transposed=target.is_transposed)
        except (OSError, SafetensorError) as error:
            raise CheckpointError(f"{place}: missing or damaged ({error})") from error


def write_delta(directory: Path, model: HFModel, layout: LoraLayout, weights: Iterator[tuple[str, Tensor]]) -> None:
    """Write what was trained beside a frozen base, from an iterator of (name, weight)."""
    assert model.directory is not None, "a base that is adapted was read from files"
    factors = {layout.stored_as[name]: weight.detach().float().cpu().contiguous() for name, weight in weights}
    save_file(factors, directory / ADAPTER_FILE, metadata={"format": "pt"})
    base = model.directory.resolve()
    write_json(directory / ADAPTER_CONFIG_FILE, {**layout.peft, "base_model_name_or_path": str(base)})
    _write_record(directory, base, layout.scale, layout.targets)


def write_empty_delta(directory: Path, base: Path) -> None:
    """Write the delta of a base that was not adapted."""
    _write_record(directory, base.resolve(), 1.0, {})


def _write_record(directory: Path, base: Path, scale: float, targets: Mapping[str, TargetFactors]) -> None:
    for name, content in config_files_of(base).items():
        (directory / name).write_bytes(content)
    adapter = directory / ADAPTER_FILE
    record = DeltaRecord(
        schema_version=_SCHEMA,
        base=str(base),
        base_files=_sums_of(base),
        adapter=_file_sum(adapter) if targets else None,
        scale=scale,
        targets=dict(targets),
    )
    write_json(directory / DELTA_FILE, record)


def read_record(directory: Path) -> DeltaRecord:
    """Read `delta.json`.

    Raises:
        CheckpointError: it is damaged, or of a newer version.
    """
    place = directory / DELTA_FILE
    content = read_object(place)
    version = content.get("schema_version")
    if not isinstance(version, int) or version > _SCHEMA:
        raise CheckpointError(f"{place}: schema version {version}, this program reads up to {_SCHEMA}; take a newer one")
    try:
        record: DeltaRecord = from_plain(DeltaRecord, content, str(place))
    except ConfigError as error:
        raise CheckpointError(f"{place}: damaged ({error})") from error
    return record


def open_delta(directory: Path, base: Path | None = None, verify: Verify = Verify.SAMPLE) -> Delta:
    """Open a delta with its base: the recorded one, or that which is given in its place.

    With `verify=never` sizes are compared, and sums of the configuration only.

    Raises:
        CheckpointError: the base is not there or another one, or the delta is damaged.
    """
    record = read_record(directory)
    found = Path(record.base) if base is None else base
    if is_delta(found):
        raise CheckpointError(f"{found}: is a delta itself; give the base that {directory} was made on")
    if not is_hf_directory(found):
        raise CheckpointError(
            f"{directory / DELTA_FILE}: its base {found} is no Hugging Face directory (any more); give the base's place: "
            "model=hf model.path=DIR on the command line, base=DIR in pseudo_label.load"
        )
    _refuse_other_base(directory, record, found.resolve(), verify)
    adapter = directory / ADAPTER_FILE
    if record.adapter is not None and (not adapter.is_file() or _file_sum(adapter) != record.adapter):
        raise CheckpointError(f"{adapter}: missing or damaged (not the bytes that {DELTA_FILE} records); fetch or make it again")
    return Delta(directory=directory, base=found.resolve(), record=record)


def _refuse_other_base(directory: Path, record: DeltaRecord, base: Path, verify: Verify) -> None:
    """Raise CheckpointError, with the first file that differs, where a base is not the one that a delta was made on."""
    found = {file.name: file for file in _base_files(base)}
    for name in sorted(found.keys() | record.base_files.keys()):
        wanted, file = record.base_files.get(name), found.get(name)
        is_same = wanted is not None and file is not None and file.stat().st_size == wanted.size
        if is_same and file is not None and (verify is not Verify.NEVER or name == CONFIG_FILE):
            is_same = _file_sum(file) == wanted
        if not is_same:
            raise CheckpointError(
                f"{directory}: its changes belong to the base that was at {record.base}, and {base} is another one "
                f"({name} differs); give the base that it was made on"
            )


class ChangingModel:
    """A base in memory on which deltas take turns; the model's weights are those of the base plus the present delta's changes."""

    def __init__(self, model: HFModel, base: Path) -> None:
        self.model = model
        self.base = base
        self._store: Store = open_store(base, Verify.NEVER)
        self._changed: set[str] = set()

    def apply(self, delta: Delta) -> None:
        """Let the weights be those of the base and this delta, whatever was applied before.

        Raises:
            CheckpointError: the delta is damaged, of another base, or targets tensors that the base has not.
        """
        if delta.base != self.base:
            raise CheckpointError(
                f"{delta.directory}: is of the base {delta.base}, and {self.base} is in memory; load it by itself"
            )
        self._refuse_unknown(delta)
        for name in sorted(self._changed - delta.record.targets.keys()):
            self._set(name, None)
        for name, change in delta.changes():
            self._changed.add(name)
            self._set(name, change)

    def _refuse_unknown(self, delta: Delta) -> None:
        shapes = {name.removeprefix(PREFIX): tuple(p.shape) for name, p in self.model.named_parameters()}
        for name, target in delta.record.targets.items():
            if shapes.get(name) != tuple(target.shape):
                raise CheckpointError(
                    f"{delta.directory / DELTA_FILE}: tensor {name} is not one of its base's, or has another shape"
                )

    @torch.no_grad()
    def _set(self, name: str, change: LowRankUpdate | None) -> None:
        """Write the base's tensor from its files, with a change or without."""
        parameter = self.model.get_parameter(PREFIX + name)
        changes = {} if change is None else self.model.as_stored(name, change.product())
        places = self.model.as_stored(name, torch.arange(parameter.numel()).view(parameter.shape))
        flat = parameter.data.view(-1)
        for stored, places_of_part in places.items():
            value = _stored(self._store, stored, places_of_part)
            if change is not None:
                value = value.float() + changes[stored]
            flat[_run_of(places_of_part.flatten(), flat.device)] = value.flatten().to(flat.device, flat.dtype)
        if change is None:
            self._changed.discard(name)


def load_changed(
    directory: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: Verify = Verify.SAMPLE,
    base: Path | None = None,
) -> HFModel:
    """Load a delta's base with the delta's changes. Raises as `load_hf_model` and `open_delta` do."""
    return open_changing(directory, device, dtype, verify, base).model


def open_changing(
    directory: Path,
    device: torch.device | str = "cpu",
    dtype: torch.dtype | None = None,
    verify: Verify = Verify.SAMPLE,
    base: Path | None = None,
) -> ChangingModel:
    """Load a delta's base, on which other deltas may take its place later, with the delta's changes."""
    delta = open_delta(directory, base, verify)
    model = load_hf_model(delta.base, config_files_of(delta.base), check_shards(delta.base), device, dtype)
    changing = ChangingModel(model, delta.base)
    changing.apply(delta)
    return changing


def merged_tensors(delta: Delta) -> Iterator[tuple[str, Tensor]]:
    """Yield the base's stored tensors with the delta's changes, one by one, in the base's number formats.

    Raises:
        CheckpointError: a targeted tensor would be the base's still, or is not stored under the name that its family gives it.
    """
    frame, store = frame_of(delta.base), open_store(delta.base, Verify.NEVER)
    owner: dict[str, str] = {}
    for name, target in delta.record.targets.items():
        for stored in frame.as_stored(name, torch.empty(target.shape, device="meta")):
            owner[stored] = name
            store.place(stored)
    changes, present, moved = dict(delta.changes()), _Present(frame), set()
    for stored, tensor in store:
        if stored not in owner:
            yield stored, tensor
            continue
        name = owner[stored]
        merged = (tensor.float() + present.part(name, changes[name], stored)).to(tensor.dtype)
        if not torch.equal(merged, tensor):
            moved.add(name)
        yield stored, merged
    still = sorted(delta.record.targets.keys() - moved)
    if still:
        raise CheckpointError(
            f"{delta.directory}: merging would leave tensor {still[0]} as it is in the base ({len(still)} in all): its change is 0 "
            "or lost in the base's number format; train longer, or keep it as a delta (export.form=delta)"
        )


class _Present:
    """The changes of the few tensors whose stored parts are being written: parts of two tensors may alternate."""

    def __init__(self, frame: HFModel) -> None:
        self._frame = frame
        self._parts: dict[str, dict[str, Tensor]] = {}

    def part(self, name: str, change: LowRankUpdate, stored: str) -> Tensor:
        if name not in self._parts:
            while len(self._parts) > 1:
                del self._parts[next(iter(self._parts))]
            self._parts[name] = self._frame.as_stored(name, change.product())
        return self._parts[name][stored]


def _stored(store: Store, name: str, places: Tensor) -> Tensor:
    tensor = store.read(name)
    if tensor.shape != places.shape:
        raise CheckpointError(f"{store.directory}: tensor {name} has shape {tuple(tensor.shape)}, not {tuple(places.shape)}")
    return tensor


def _run_of(places: Tensor, device: torch.device) -> slice | Tensor:
    """Return places as a slice where they follow each other, as they do in all layouts but transposed ones."""
    first, count = int(places[0]), len(places)
    is_run = torch.equal(places, torch.arange(first, first + count))
    return slice(first, first + count) if is_run else places.to(device)


def _base_files(base: Path) -> list[Path]:
    return [base / CONFIG_FILE, *shards_of(base)]


def _sums_of(base: Path) -> dict[str, FileSum]:
    return {name: FileSum(**entry) for name, entry in sums_of_files(_base_files(base)).items()}


def _file_sum(file: Path) -> FileSum:
    state = file.stat()
    return FileSum(size=state.st_size, sha256=_sha256(file, state.st_size, state.st_mtime_ns))


@lru_cache
def _sha256(file: Path, size: int, changed_ns: int) -> str:
    """Hash a file; several deltas ask for the same base, so what was hashed is remembered by path, size and time of change."""
    return sha256_of_file(file)
