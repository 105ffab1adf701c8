"""What a training changed of a base's stored tensors, where it changed a few of them: whole tensors, or slices of stacked experts.

    changed_tensors.safetensors   each changed tensor, or its changed slices, by the name that the base's files have for it

Two checkpoints are compared bit by bit, tensor by tensor. Stored tensors belong to parameters of transformers' model, which may
stack several of them: so a delta says for each parameter which of its stored tensors changed, and in which experts.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

import torch
from safetensors import SafetensorError, safe_open
from safetensors.torch import save_file
from torch import Tensor

from adapt.checkpoint.file_sums import FileSum
from adapt.checkpoint.hf_directory import CHANGED_FILE
from adapt.checkpoint.offload import Verify
from adapt.checkpoint.store import Store, open_store
from adapt.core.errors import CheckpointError
from adapt.model.hf import PREFIX, frame_of

_STACK = re.compile(r"\.experts\.(?!\d)")  # no number follows: all experts of a layer are in one tensor


@dataclass(frozen=True, kw_only=True)
class ChangedParameter:
    """A parameter's shape, and of each of its changed stored tensors the changed slices along the first axis (none: all of it)."""

    shape: tuple[int, ...]
    stored: dict[str, list[int] | None]


@dataclass(frozen=True, kw_only=True)
class ChangedTensors:
    """What a delta says of its changed tensors; `absent` are tensors of the base's files that trained models are saved without."""

    file: FileSum
    parameters: dict[str, ChangedParameter]
    absent: list[str]


@dataclass(frozen=True, kw_only=True)
class Replacement:
    """Stored tensors that take the place of a parameter's, or of slices of them."""

    rows: Mapping[str, list[int] | None]
    tensors: Mapping[str, Tensor]

    def applied(self, name: str, base: Tensor) -> Tensor:
        """Return the base's stored tensor with what replaces it; `refuse_misfits` has compared their shapes."""
        if name not in self.rows:
            return base
        rows, changed = self.rows[name], self.tensors[name]
        if rows is None:
            return changed.to(base.dtype)
        result = base.clone()
        result[rows] = changed.to(base.dtype)
        return result


def write_changed_tensors(directory: Path, base: Path, trained: Path) -> ChangedTensors:
    """Write the tensors of a trained checkpoint that differ from its base's; they are held in memory together.

    Raises:
        CheckpointError: the checkpoint has tensors that the base has not, or of another shape.
    """
    before, after = open_store(base, Verify.NEVER), open_store(trained, Verify.NEVER)
    rows: dict[str, list[int] | None] = {}
    changed: dict[str, Tensor] = {}
    for name in sorted(after.tensors):
        was, now = before.read(name), after.read(name)
        if was.shape != now.shape:
            raise CheckpointError(f"{trained}: tensor {name} has shape {tuple(now.shape)}, {base} has {tuple(was.shape)}")
        differing = _differing_rows(was, now)
        if not differing:
            continue
        is_part = _STACK.search(name) is not None and len(differing) < len(now)
        rows[name] = differing if is_part else None
        changed[name] = now[differing].contiguous() if is_part else now
    save_file(changed, directory / CHANGED_FILE, metadata={"format": "pt"})
    frame, parameters = frame_of(base), {}
    for name, parameter in frame.named_parameters():
        plain = name.removeprefix(PREFIX)
        own = {stored: rows[stored] for stored in frame.as_stored(plain, parameter.detach()) if stored in rows}
        if own:
            parameters[plain] = ChangedParameter(shape=tuple(parameter.shape), stored=own)
    lost = rows.keys() - {stored for parameter in parameters.values() for stored in parameter.stored}
    if lost:
        raise CheckpointError(f"{trained}: tensor {min(lost)} changed and is no parameter of the model; use export.form=merged")
    absent = sorted(before.tensors.keys() - after.tensors.keys())
    return ChangedTensors(file=FileSum.of(directory / CHANGED_FILE), parameters=parameters, absent=absent)


def refuse_misfits(directory: Path, record: ChangedTensors, store: Store, parts_of: Callable[[str], Collection[str]]) -> None:
    """Compare changed tensors with those of a base's `store`, of which `parts_of` names a parameter's, before any is applied.

    Raises:
        CheckpointError: one is no part of its parameter, or of another shape; or the file is missing or damaged.
    """
    place = directory / CHANGED_FILE
    try:
        with safe_open(place, framework="pt") as stream:
            for name, parameter in record.parameters.items():
                parts = parts_of(name)
                for stored, rows in parameter.stored.items():
                    if stored not in parts:
                        raise CheckpointError(f"{place}: tensor {stored} is no part of the parameter {name}")
                    found, base = tuple(stream.get_slice(stored).get_shape()), store.place(stored).shape
                    wanted = base if rows is None else (len(rows), *base[1:])
                    if found != wanted or any(not 0 <= row < base[0] for row in rows or ()):
                        raise CheckpointError(f"{place}: tensor {stored} has shape {found}, which does not fit the base's {base}")
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place}: missing or damaged ({error})") from error


def read_changed_tensors(directory: Path, record: ChangedTensors) -> Iterator[tuple[str, Replacement]]:
    """Yield what replaces each changed parameter's stored tensors, read one parameter at a time.

    Raises:
        CheckpointError: the file is missing or damaged.
    """
    place = directory / CHANGED_FILE
    try:
        with safe_open(place, framework="pt") as stream:
            for name, parameter in record.parameters.items():
                tensors = {stored: stream.get_tensor(stored) for stored in parameter.stored}
                yield name, Replacement(rows=parameter.stored, tensors=tensors)
    except (OSError, SafetensorError) as error:
        raise CheckpointError(f"{place}: missing or damaged ({error})") from error


def _differing_rows(was: Tensor, now: Tensor) -> list[int]:
    """Return the slices along the first axis whose bits differ; numbers of two types differ everywhere."""
    n_rows = len(now) if now.dim() else 1
    if was.dtype != now.dtype:
        return list(range(n_rows))
    bits = [tensor.contiguous().reshape(n_rows, -1).view(torch.uint8) for tensor in (was, now)]
    return torch.nonzero((bits[0] != bits[1]).any(dim=1)).flatten().tolist()
