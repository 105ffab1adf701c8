"""A base whose frozen weights are read-only views of its files during training on a CPU.

Pages of such views hold what the files hold: the system takes them back where memory is short, and reads them again. Where a step
computes in the files' number format, the views are the weights. Elsewhere a layer's weights are converted when the layer begins and
dropped when it ends. For the backward pass autograd would keep the converted form, and so all of the base in the end: instead it is
given the place in the file, which is converted again when it is asked for (saved-tensor hooks). Where a layer is computed again in
the backward pass, its weights are converted again with it. The numbers are those of a base that was converted whole.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import AbstractContextManager, contextmanager
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor, nn
from torch.autograd.graph import saved_tensors_hooks

from adapt.core.errors import ConfigError

_KEY = "offload.frozen_weights=mapped"


@dataclass(frozen=True, kw_only=True)
class _Slot:
    """Where a frozen parameter hangs in the model."""

    owner: nn.Module
    name: str
    stored: nn.Parameter


@dataclass(frozen=True, kw_only=True)
class _Place:
    """A part of a stored tensor, in place of its converted form."""

    stored: Tensor
    size: tuple[int, ...]
    stride: tuple[int, ...]
    offset: int


def stand_ins(views: Mapping[str, Tensor]) -> dict[str, Tensor]:
    """Return an fp32 tensor without memory for each view: a model that is made of them has the buffers of an fp32 one."""
    places = torch.zeros(len(views))
    return {name: place.expand(view.shape) for place, (name, view) in zip(places, views.items(), strict=True)}


class MappedBase:
    """The frozen weights of a model that are views of files. `dtype` is what they are computed in, known once it is settled."""

    def __init__(self, model: nn.Module, layers: Sequence[Any], views: Mapping[str, Tensor], given: Mapping[str, Tensor]) -> None:
        """Give `views` to a model that was made with the stand-ins `given` of the same names; `layers` are the decoder's.

        Raises:
            ConfigError: a weight was put together from several tensors.
        """
        names = {stand_in.data_ptr(): name for name, stand_in in given.items()}
        for name, parameter in model.named_parameters():
            if parameter.data_ptr() not in names:
                raise ConfigError(f"{_KEY}: {name} is put together from several tensors of the files; set it to memory")
            parameter.data = views[names[parameter.data_ptr()]]
        self.dtype: torch.dtype | None = None
        self._model = model
        self._layers = layers
        self._slots: list[_Slot] = []
        self._in_use: dict[int, Tensor] = {}  # by address, the stored form of each converted weight of the running module

    def settle(self, dtype: torch.dtype) -> None:
        """Take what is trained into memory, in fp32, and see that a step computes in `dtype` with what is frozen; once."""
        assert self.dtype is None, "settled before"
        self.dtype = dtype
        for parameter in self._model.parameters():
            if parameter.requires_grad:
                parameter.data = parameter.data.to(torch.float32, copy=True)
        self._slots = _frozen_in(self._model)
        if any(slot.stored.dtype is not dtype for slot in self._slots):
            self._convert()

    @contextmanager
    def apart(self) -> Iterator[None]:
        """Hide the frozen weights in the block from whoever walks over the model's parameters, to cast, move or send them."""
        for slot in self._slots:
            del slot.owner._parameters[slot.name]
        try:
            yield
        finally:
            for slot in self._slots:
                slot.owner._parameters[slot.name] = slot.stored

    def kept_as_views(self) -> AbstractContextManager[Any]:
        """Return a block in which what autograd keeps of a converted weight is its place in the file."""
        return saved_tensors_hooks(self._packed, self._unpacked)

    def _convert(self) -> None:
        """Have modules convert their weights when they begin: layers all of theirs, embeddings only the rows that are asked for."""
        slots = {(id(slot.owner), slot.name): slot for slot in self._slots}
        for unit in [*(layer.mlp for layer in self._layers), *self._layers]:  # a part that is computed again converts its own
            own = [slot for slot in _frozen_in(unit) if slots.pop((id(slot.owner), slot.name), None) is not None]
            self._run_converted(unit, own)
        for slot in slots.values():
            if isinstance(slot.owner, nn.Embedding):
                self._look_up_converted(slot.owner, slot)
            else:
                self._run_converted(slot.owner, [slot])

    def _run_converted(self, module: nn.Module, slots: Sequence[_Slot]) -> None:
        run = module.forward

        def forward(*args: Any, **kwargs: Any) -> Any:
            with self._replaced(slots, [slot.stored.detach().to(self.dtype) for slot in slots]):
                return run(*args, **kwargs)

        module.forward = forward

    def _look_up_converted(self, module: Any, slot: _Slot) -> None:
        run = module.forward

        def forward(ids: Tensor) -> Any:
            rows, places = ids.unique(return_inverse=True)
            with self._replaced([slot], [slot.stored.detach()[rows].to(self.dtype)]):
                return run(places)

        module.forward = forward

    @contextmanager
    def _replaced(self, slots: Sequence[_Slot], converted: Sequence[Tensor]) -> Iterator[None]:
        addresses = [tensor.untyped_storage().data_ptr() for tensor in converted]
        for slot, tensor, address in zip(slots, converted, addresses, strict=True):
            slot.owner._parameters[slot.name] = nn.Parameter(tensor, requires_grad=False)
            self._in_use[address] = slot.stored.detach()
        try:
            yield
        finally:
            for slot, address in zip(slots, addresses, strict=True):
                slot.owner._parameters[slot.name] = slot.stored
                del self._in_use[address]

    def _packed(self, tensor: Tensor) -> Tensor | _Place:
        stored = self._in_use.get(tensor.untyped_storage().data_ptr())
        if stored is None:
            return tensor
        return _Place(stored=stored, size=tuple(tensor.shape), stride=tensor.stride(), offset=int(tensor.storage_offset()))

    def _unpacked(self, kept: Tensor | _Place) -> Tensor:
        if isinstance(kept, Tensor):
            return kept
        return kept.stored.as_strided(kept.size, kept.stride, kept.stored.storage_offset() + kept.offset).to(self.dtype)


def _frozen_in(module: nn.Module) -> list[_Slot]:
    return [
        _Slot(owner=owner, name=name, stored=parameter)
        for owner in module.modules()
        for name, parameter in owner._parameters.items()
        if parameter is not None and not parameter.requires_grad
    ]
