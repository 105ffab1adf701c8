"""Deltas: a directory that holds only what an adaptation changed of a Hugging Face base, and which base that is.

    adapter_model.safetensors, adapter_config.json   of LoRA: the factors, as PEFT writes and opens them
    changed_tensors.safetensors                      where some tensors were trained themselves: these (`changed_tensors.py`)
    delta.json                                       the base's place, sizes and sums; what changes which tensor
    config.json, tokenizer                           the base's, so that the directory says by itself what it is

A delta is opened by adding its factors' products to the weights of its base in memory, tensor by tensor in fp32, or by putting its
tensors in their places. A base whose files are not those that the delta was made on is refused. The base's own tensors are read
again from its files when another delta takes the place of one, so that the weights are the same bits as before, however often
deltas came and went. A delta without changes says that nothing was adapted.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.checkpoint.changed_tensors import (
    ChangedTensors,
    Replacement,
    read_changed_tensors,
    refuse_misfits,
    write_changed_tensors,
)
from adapt.checkpoint.file_sums import FileSum, sums_of_files
from adapt.checkpoint.hf_directory import (
    ADAPTER_CONFIG_FILE,
    ADAPTER_FILE,
    CHANGED_FILE,
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
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.json_files import read_object, write_json
from adapt.core.typed import ADDED_LATER, from_plain
from adapt.model.hf import PREFIX, HFModel, frame_of, load_hf_model
from adapt.model.lora_config import LoraLayout, TargetFactors
from adapt.model.low_rank import LowRankUpdate

_SCHEMA, _SCHEMA_OF_FACTORS = 2, 1  # a program that knows factors only can open deltas of factors
_Change = LowRankUpdate | Replacement


@dataclass(frozen=True, kw_only=True)
class DeltaRecord:
    """The content of `delta.json`: `base` is where the base was, `base_files` its configuration and weights.

    Either `targets` have factors, or `changed` has the tensors themselves.
    """

    schema_version: int
    base: str
    base_files: dict[str, FileSum]
    adapter: FileSum | None
    scale: float
    targets: dict[str, TargetFactors]
    changed: ChangedTensors | None = field(default=None, metadata=ADDED_LATER)

    def shapes(self) -> dict[str, tuple[int, ...]]:
        """Return the shape of every changed parameter by the base's name for it."""
        changed = {} if self.changed is None else self.changed.parameters
        return {name: tuple(one.shape) for name, one in self.targets.items()} | {n: tuple(one.shape) for n, one in changed.items()}


@dataclass(frozen=True, kw_only=True)
class Delta:
    """A delta that was opened, with its base, which was compared with the record."""

    directory: Path
    base: Path
    record: DeltaRecord

    def changes(self) -> Iterator[tuple[str, _Change]]:
        """Yield the change of each parameter by the base's name for it, read one by one.

        Raises:
            CheckpointError: factors or tensors are missing or damaged.
        """
        if self.record.changed is not None:
            yield from read_changed_tensors(self.directory, self.record.changed)
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


def write_changed_delta(directory: Path, base: Path, trained: Path) -> tuple[int, int]:
    """Write what a trained checkpoint changed of its base's tensors; return how many tensors changed, of how many.

    Raises:
        CheckpointError: as for `write_changed_tensors`.
    """
    changed = write_changed_tensors(directory, base, trained)
    _write_record(directory, base.resolve(), 1.0, {}, changed)
    n_changed = sum(len(parameter.stored) for parameter in changed.parameters.values())
    return n_changed, len(open_store(base, Verify.NEVER).tensors)


def _write_record(
    directory: Path, base: Path, scale: float, targets: Mapping[str, TargetFactors], changed: ChangedTensors | None = None
) -> None:
    for name, content in config_files_of(base).items():
        (directory / name).write_bytes(content)
    adapter = directory / ADAPTER_FILE
    record = DeltaRecord(
        schema_version=_SCHEMA_OF_FACTORS if changed is None else _SCHEMA,
        base=str(base),
        base_files=_sums_of(base),
        adapter=FileSum.of(adapter) if targets else None,
        scale=scale,
        targets=dict(targets),
        changed=changed,
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
    sums = {ADAPTER_FILE: record.adapter, CHANGED_FILE: None if record.changed is None else record.changed.file}
    for file, wanted in ((directory / name, wanted) for name, wanted in sums.items()):
        if wanted is not None and (not file.is_file() or FileSum.of(file) != wanted):
            raise CheckpointError(f"{file}: missing or damaged (not the bytes that {DELTA_FILE} records); fetch or make it again")
    return Delta(directory=directory, base=found.resolve(), record=record)


def _refuse_other_base(directory: Path, record: DeltaRecord, base: Path, verify: Verify) -> None:
    """Raise CheckpointError, with the first file that differs, where a base is not the one that a delta was made on."""
    found = {file.name: file for file in _base_files(base)}
    for name in sorted(found.keys() | record.base_files.keys()):
        wanted, file = record.base_files.get(name), found.get(name)
        is_same = wanted is not None and file is not None and file.stat().st_size == wanted.size
        if is_same and file is not None and (verify is not Verify.NEVER or name == CONFIG_FILE):
            is_same = FileSum.of(file) == wanted
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
        self._changed: dict[str, set[str]] = {}  # the stored tensors of each parameter that are not the base's

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
        for name in sorted(self._changed.keys() - delta.record.shapes().keys()):
            self._set(name, None)
        for name, change in delta.changes():
            self._set(name, change)

    def _refuse_unknown(self, delta: Delta) -> None:
        shapes = {name.removeprefix(PREFIX): tuple(p.shape) for name, p in self.model.named_parameters()}
        for name, shape in delta.record.shapes().items():
            if shapes.get(name) != shape:
                raise CheckpointError(
                    f"{delta.directory / DELTA_FILE}: tensor {name} is not one of its base's, or has another shape"
                )
        _refuse_misfits(delta, self.model, self._store)

    @torch.no_grad()
    def _set(self, name: str, change: _Change | None) -> None:
        """Write the base's tensors of a parameter from its files, with a change or without, where they are not in place already."""
        parameter = self.model.get_parameter(PREFIX + name)
        products = self.model.as_stored(name, change.product()) if isinstance(change, LowRankUpdate) else {}
        places = self.model.as_stored(name, torch.arange(parameter.numel()).view(parameter.shape))
        wanted = set(products) if not isinstance(change, Replacement) else set(change.rows)
        flat = parameter.data.view(-1)
        for stored in sorted(wanted | self._changed.get(name, set())):
            value = _stored(self._store, stored, places[stored])
            if isinstance(change, LowRankUpdate):
                value = value.float() + products[stored]
            elif change is not None:
                value = change.applied(stored, value)
            flat[_run_of(places[stored].flatten(), flat.device)] = value.flatten().to(flat.device, flat.dtype)
        self._changed[name] = wanted
        if not wanted:
            del self._changed[name]


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

    Tensors that a trained model is saved without (copies of tied ones) are left out.

    Raises:
        CheckpointError: a targeted tensor would be the base's still, or is not stored under the name that its family gives it.
    """
    frame, store = frame_of(delta.base), open_store(delta.base, Verify.NEVER)
    owner: dict[str, str] = {}
    for name, shape in delta.record.shapes().items():
        for stored in frame.as_stored(name, torch.empty(shape, device="meta")):
            owner[stored] = name
            store.place(stored)
    _refuse_misfits(delta, frame, store)
    changes, present, moved = dict(delta.changes()), _Present(frame), set()
    absent = () if delta.record.changed is None else delta.record.changed.absent
    for stored, tensor in store:
        if stored not in owner:
            if stored not in absent:
                yield stored, tensor
            continue
        name = owner[stored]
        change = changes[name]
        if isinstance(change, Replacement):
            merged = change.applied(stored, tensor)
        else:
            merged = (tensor.float() + present.part(name, change, stored)).to(tensor.dtype)
        if not torch.equal(merged, tensor):
            moved.add(name)
        yield stored, merged
    still = sorted(delta.record.targets.keys() - moved)
    if still:
        raise CheckpointError(
            f"{delta.directory}: merging would leave tensor {still[0]} as it is in the base ({len(still)} in all): its change is 0 "
            "or lost in the base's number format; train longer, or keep it as a delta (export.form=delta)"
        )


def _refuse_misfits(delta: Delta, model: HFModel, store: Store) -> None:
    """Raise CheckpointError where tensors of a delta do not fit into those of its base."""
    if delta.record.changed is not None:
        shapes = delta.record.shapes()
        refuse_misfits(
            delta.directory,
            delta.record.changed,
            store,
            lambda name: model.as_stored(name, torch.empty(shapes[name], device="meta")),
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
