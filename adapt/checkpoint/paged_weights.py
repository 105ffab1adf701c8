"""A checkpoint as the weights of a model that is larger than memory: the `WeightProvider` over a store.

A layer's units are its dense part (all but the experts' matrices) and one for each expert. Beside them only what lies outside the
blocks stays in memory: embeddings and the final norm.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence

import torch
from torch import Tensor

from adapt.checkpoint.mapped_source import MappedSource
from adapt.checkpoint.offload import OffloadConfig, WeightsIn
from adapt.checkpoint.pager import Pager, PagerClock, Source, Unit
from adapt.checkpoint.ring_source import RingSource, padded_bytes
from adapt.checkpoint.shard_format import ByteRange
from adapt.checkpoint.store import Store
from adapt.model.paging import ExpertWeights

_LAYER, _EXPERT = "layer", "expert"
_EXPERTS = "mlp.experts."
_UP, _DOWN = f"{_EXPERTS}up_weight", f"{_EXPERTS}down_weight"
_LAYERS_AT_ONCE = 2
_FEWEST_EXPERTS = 2


class PagedWeights:
    """A `WeightProvider` of a checkpoint whose names and shapes were compared with its model."""

    def __init__(self, store: Store, config: OffloadConfig, device: torch.device) -> None:
        self._store = store
        self._device = device
        self._layers, self._experts = _units(store)
        room = {_LAYER: _LAYERS_AT_ONCE, _EXPERT: 0}
        n_bytes = {_LAYER: max(map(_room_of, self._layers)), _EXPERT: 0}
        if any(self._experts):
            n_bytes[_EXPERT] = max(_room_of(unit) for units in self._experts for unit in units)
            in_two_layers = 2 * max(map(len, self._experts))
            room[_EXPERT] = max(min((config.ahead_mb << 20) // n_bytes[_EXPERT], in_two_layers), _FEWEST_EXPERTS)
        self._source: Source
        if config.weights is WeightsIn.RING:
            self._files = None
            self._source = RingSource(room, n_bytes, device)
        else:
            assert config.weights is WeightsIn.MMAP, "weights in memory need no provider"
            self._source = mapped = MappedSource(room, device)
            self._files = mapped.files
        self._pager = Pager(self._source, room)

    @property
    def clock(self) -> PagerClock:
        """Return what reading has taken so far."""
        return self._pager.clock

    def resident(self) -> Mapping[str, Tensor]:
        names = [name for name in self._store.tensors if not name.startswith("blocks.")]
        if self._files is None:
            return {name: self._store.read(name).to(self._device) for name in names}
        return {name: self._files.view(self._store.place(name)).to(self._device) for name in names}

    def expect_layer(self, layer: int) -> None:
        self._pager.expect([self._layers[layer]])

    def expect_experts(self, layer: int, experts: Sequence[int]) -> None:
        self._pager.expect(self._experts[layer][expert] for expert in experts)

    def forget_experts(self, layer: int, experts: Sequence[int]) -> None:
        self._pager.forget(self._experts[layer][expert] for expert in experts)

    @contextlib.contextmanager
    def layer(self, layer: int) -> Iterator[Mapping[str, Tensor]]:
        unit = self._layers[layer]
        tensors = self._pager.take(unit)
        try:
            yield tensors
        finally:
            self._pager.release(unit)

    @contextlib.contextmanager
    def expert(self, layer: int, expert: int) -> Iterator[ExpertWeights]:
        unit = self._experts[layer][expert]
        tensors = self._pager.take(unit)
        try:
            yield ExpertWeights(up_FH=tensors[_UP], down_HF=tensors[_DOWN])
        finally:
            self._pager.release(unit)

    def close(self) -> None:
        """End the reading thread and give the memory back."""
        self._pager.close()
        if isinstance(self._source, RingSource):
            self._source.close()


def _units(store: Store) -> tuple[list[Unit], list[list[Unit]]]:
    """Return every layer's dense unit, and every layer's experts (none in dense layers)."""
    by_layer: dict[int, dict[str, ByteRange]] = {}
    for name, place in store.tensors.items():
        if name.startswith("blocks."):
            _, number, within = name.split(".", 2)
            by_layer.setdefault(int(number), {})[within] = place
    layers, experts = [], []
    for layer in range(len(by_layer)):
        places = by_layer[layer]
        matrices = {name: places.pop(name) for name in (_UP, _DOWN) if name in places}
        # In the order of the file, so that reading goes forward.
        ordered = dict(sorted(places.items(), key=lambda item: (item[1].file.name, item[1].offset)))
        layers.append(Unit(key=layer, kind=_LAYER, places=ordered))
        count = matrices[_UP].shape[0] if matrices else 0
        experts.append(
            [
                Unit(key=(layer, e), kind=_EXPERT, places={name: place.row(e) for name, place in matrices.items()})
                for e in range(count)
            ]
        )
    return layers, experts


def _room_of(unit: Unit) -> int:
    return sum(padded_bytes(place) for place in unit.places.values())
