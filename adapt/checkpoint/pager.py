"""Reading ahead: a thread reads units of weights in the order they will be wanted, into room that is given back and used again.

A unit is what is taken and given back together (a layer's dense part, one expert). There is room for so many units of a kind at a
time; the thread waits when it is used up, so memory is bounded whatever the order of layers. The taker waits when it is ahead of
the disk. Units that turn out not to be needed are forgotten: those not read yet never are.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Hashable, Iterable, Mapping
from dataclasses import dataclass
from typing import Any, Protocol

from torch import Tensor

from adapt.checkpoint.shard_format import ByteRange


@dataclass(frozen=True, kw_only=True)
class Unit:
    """Tensors that are read together; `kind` says whose room they take."""

    key: Hashable
    kind: str
    places: Mapping[str, ByteRange]

    @property
    def n_bytes(self) -> int:
        return sum(place.n_bytes for place in self.places.values())


class Source(Protocol):
    """How bytes come into memory. Called by the reading thread, but for `hand_out` and `leave`."""

    def rooms(self, kind: str) -> list[Any]:
        """Return the room there is for a kind of units, one object each."""
        ...

    def read(self, unit: Unit, room: Any) -> dict[str, Tensor]:
        """Read a unit. Raises CheckpointError where the files do not hold it."""
        ...

    def hand_out(self, tensors: dict[str, Tensor], room: Any) -> dict[str, Tensor]:
        """Return what the taker gets: the tensors, on the device that computes."""
        ...

    def leave(self, unit: Unit, room: Any) -> None:
        """A unit was given back."""
        ...


@dataclass
class PagerClock:
    """What reading has taken: bytes and seconds of the thread, and seconds that takers waited for it."""

    read_bytes: int = 0
    read_s: float = 0.0
    waited_s: float = 0.0


@dataclass
class _Ready:
    unit: Unit
    room: Any
    tensors: dict[str, Tensor]
    error: BaseException | None = None


class Pager:
    """One reading thread and the units that it has read, is reading, or will read."""

    def __init__(self, source: Source, kinds: Iterable[str]) -> None:
        self.clock = PagerClock()
        self._source = source
        self._free = {kind: deque(source.rooms(kind)) for kind in kinds}
        self._pending: deque[Unit] = deque()
        self._reading: Unit | None = None
        self._is_unwanted = False
        self._ready: dict[Hashable, _Ready] = {}
        self._changed = threading.Condition()
        self._is_closed = False
        self._thread = threading.Thread(target=self._run, name="pager", daemon=True)
        self._thread.start()

    def expect(self, units: Iterable[Unit]) -> None:
        """Read these units next, in this order, behind those expected already; what is expected twice is read once."""
        with self._changed:
            known = self._known()
            self._pending.extend(unit for unit in units if unit.key not in known)
            self._changed.notify_all()

    def forget(self, units: Iterable[Unit]) -> None:
        """Do not read these units, or give their room back if they were read already."""
        keys = {unit.key for unit in units}
        with self._changed:
            self._pending = deque(unit for unit in self._pending if unit.key not in keys)
            if self._reading is not None and self._reading.key in keys:
                self._is_unwanted = True
            for key in keys & self._ready.keys():
                self._leave(self._ready.pop(key))
            self._changed.notify_all()

    def take(self, unit: Unit) -> dict[str, Tensor]:
        """Wait for a unit and return its tensors, which stay valid until it is released.

        Raises:
            CheckpointError: its files do not hold it.
        """
        started = time.perf_counter()
        with self._changed:
            assert unit.key in self._known(), "a unit is expected before it is taken"
            while unit.key not in self._ready:
                self._changed.wait()
            ready = self._ready[unit.key]
            self.clock.waited_s += time.perf_counter() - started
            if ready.error is not None:
                self._leave(self._ready.pop(unit.key))
                raise ready.error
        return self._source.hand_out(ready.tensors, ready.room)

    def release(self, unit: Unit) -> None:
        """Give a unit's room back."""
        with self._changed:
            self._leave(self._ready.pop(unit.key))
            self._changed.notify_all()

    def close(self) -> None:
        """End the thread and forget everything."""
        with self._changed:
            self._is_closed = True
            self._pending.clear()
            self._changed.notify_all()
        self._thread.join()

    def _known(self) -> set[Hashable]:
        known = {unit.key for unit in self._pending} | self._ready.keys()
        if self._reading is not None and not self._is_unwanted:
            known.add(self._reading.key)
        return known

    def _leave(self, ready: _Ready) -> None:
        self._source.leave(ready.unit, ready.room)
        self._free[ready.unit.kind].append(ready.room)

    def _run(self) -> None:
        while True:
            with self._changed:
                while not self._is_closed and not (self._pending and self._free[self._pending[0].kind]):
                    self._changed.wait()
                if self._is_closed:
                    return
                unit = self._pending.popleft()
                room = self._free[unit.kind].popleft()
                self._reading, self._is_unwanted = unit, False
            ready = self._read(unit, room)
            with self._changed:
                self._reading = None
                if self._is_unwanted:
                    self._leave(ready)
                else:
                    self._ready[unit.key] = ready
                self._changed.notify_all()

    def _read(self, unit: Unit, room: Any) -> _Ready:
        started = time.perf_counter()
        try:
            tensors = self._source.read(unit, room)
        except BaseException as error:  # told to whoever takes the unit
            return _Ready(unit=unit, room=room, tensors={}, error=error)
        self.clock.read_s += time.perf_counter() - started
        self.clock.read_bytes += unit.n_bytes
        return _Ready(unit=unit, room=room, tensors=tensors)
