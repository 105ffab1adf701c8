"""Training states: everything that the next step reads, in a directory that is complete or absent.

`<work>/step-00000100/` holds weights and moments by parameter name (safetensors), and `state.json` (step, updates, lagged shares,
history, experts' loads at some steps, and in fp16 the loss scale).
Every file and directory of a state is on the disk before the directory is renamed into place, and older states go only after that.
So whatever ends a process, or fills the disk, the newest complete state is whole.

On a GPU a state is a copy in the host's memory, taken at the step boundary, which a thread writes while training goes on. On a CPU
that copy would be the peak of the whole training (12 bytes a parameter, beside weights and moments), and writing takes little time
next to a few hundred steps: training waits, and tensors are written one by one without a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file, save_file
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError, TrainingError
from adapt.core.faults import advice_on
from adapt.core.typed import from_plain, to_plain
from adapt.model.buffers import named_state
from adapt.train.engine import Engine
from adapt.train.expert_loads import StepLoads
from adapt.train.loss_scale import LossScale
from adapt.train.optimizer import MOMENTS
from adapt.train.tensor_stream import save_one_by_one

MOMENTS_DIRECTORY = "moments"
_WEIGHTS = "weights"
_STATE_FILE = "state.json"


@dataclass(kw_only=True)
class Progress:
    """What training has done so far, beside weights and moments."""

    step: int
    lagged_shares_LE: list[Tensor]
    history: list[dict[str, float]]
    loads: list[StepLoads]


class StateWriter:
    """Saves states, on GPUs in the background and one at a time; used as a context, whose end waits for the last of them.

    Every rank takes part in `save`; only rank 0 writes, and holds copies.
    """

    def __init__(self, work: Path, engine: Engine, keep: int) -> None:
        self._work = work
        self._engine = engine
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failed_step = 0
        if engine.rank.is_main:
            for scratch in work.glob(".step-*"):  # what a killed process was writing
                shutil.rmtree(scratch, ignore_errors=True)

    def save(self, progress: Progress) -> None:
        """Write the state of this step boundary, or copy it and start to write. A collective.

        Raises:
            TrainingError: this state or the one before could not be written.
        """
        self.wait()
        is_main = self._engine.rank.is_main
        content = {
            "step": progress.step,
            "updates": self._engine.updates_done,
            "loss_scale": to_plain(self._engine.loss_scale),
            "lagged_shares": [shares.tolist() for shares in progress.lagged_shares_LE],
            "history": list(progress.history),  # the loop goes on adding to its own
            "loads": to_plain(progress.loads),
        }
        if not copies_states(self._engine.device):
            self._write_at_once(progress.step, content)
            self.check()
            return
        tensors = {name: _copied(walk, is_main) for name, walk in self._walks()}
        if is_main:
            self._thread = threading.Thread(target=self._write, args=(progress.step, tensors, content), daemon=True)
            self._thread.start()

    def wait(self) -> None:
        """Wait until the last state is on the disk.

        Raises:
            TrainingError: it could not be written.
        """
        if self._thread is not None:
            self._thread.join()
            self._thread = None
        self.check()

    def check(self) -> None:
        """Raise TrainingError if a state could not be written; never waits."""
        if self._failure is None:
            return
        error, self._failure = self._failure, None
        if not isinstance(error, OSError | SafetensorError):
            raise error
        kept = _states(self._work)
        rest = f"the one of step {_step_of(kept[-1])} is kept and the same command goes on from it" if kept else "none is there yet"
        advice = advice_on(error)
        raise TrainingError(
            f"{self._work}: the state of step {self._failed_step} cannot be written ({error}); {rest}; "
            f"{'free space on that disk' if advice in (None, 'free space') else advice}"
        ) from error

    def __enter__(self) -> StateWriter:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            self.wait()
        elif self._thread is not None:
            self._thread.join()  # what was copied is good, whatever came after

    def _walks(self) -> Iterator[tuple[str, Iterator[tuple[str, Tensor]]]]:
        """Yield a state's tensors, file by file; iterating is a collective."""
        yield _WEIGHTS, self._engine.named_weights()
        for which in MOMENTS:
            yield which, self._engine.named_moments(which)

    def _write(self, step: int, tensors: Mapping[str, Mapping[str, Tensor]], content: Mapping[str, Any]) -> None:
        with self._state_of(step) as scratch:
            write_state(self._work, scratch, tensors, content)

    def _write_at_once(self, step: int, content: Mapping[str, Any]) -> None:
        if not self._engine.rank.is_main:
            for _, walk in self._walks():
                _copied(walk, is_kept=False)
            return
        names = [name for name, _ in named_state(self._engine.module)]
        with self._state_of(step) as scratch:
            _begin(scratch)
            for name, walk in self._walks():
                save_one_by_one(scratch / f"{name}.safetensors", walk, names)
            _complete(self._work, scratch, content)

    @contextlib.contextmanager
    def _state_of(self, step: int) -> Iterator[Path]:
        """Give a directory to write a state in; remove older states after it, or this one after a failure."""
        scratch = self._work / f".step-{step:08d}"
        try:
            yield scratch
            for old in _states(self._work)[: -self._keep]:
                shutil.rmtree(old)
        except BaseException as error:  # told to the training thread
            shutil.rmtree(scratch, ignore_errors=True)
            self._failed_step, self._failure = step, error


def copies_states(device: torch.device) -> bool:
    """Say whether a state is copied, so that training goes on while it is written."""
    return device.type != "cpu"


def write_state(work: Path, scratch: Path, tensors: Mapping[str, Mapping[str, Tensor]], content: Mapping[str, Any]) -> None:
    """Write a whole state into `scratch`, make sure that it is on the disk, and rename it into place below `work`."""
    _begin(scratch)
    for name, by_name in tensors.items():
        place = scratch / f"{name}.safetensors"
        save_file(dict(by_name), place)
        _sync(place)
    _complete(work, scratch, content)


def _begin(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def _complete(work: Path, scratch: Path, content: Mapping[str, Any]) -> None:
    state = scratch / _STATE_FILE
    state.write_text(json.dumps(content), encoding="utf-8")
    _sync(state)
    _sync(scratch)
    final = work / scratch.name.removeprefix(".")
    shutil.rmtree(final, ignore_errors=True)
    scratch.rename(final)
    _sync(work)


def save_moments(directory: Path, engine: Engine) -> None:
    """Leave the optimizer's moments in a finished checkpoint's directory, for a training that goes on from it. A collective."""
    place = directory / MOMENTS_DIRECTORY
    names = [name for name, _ in named_state(engine.module)]
    for which in MOMENTS:
        if engine.rank.is_main:
            place.mkdir(exist_ok=True)
            save_one_by_one(place / f"{which}.safetensors", engine.named_moments(which), names)
        else:
            _copied(engine.named_moments(which), is_kept=False)
    if engine.rank.is_main:
        (place / _STATE_FILE).write_text(json.dumps({"step": engine.updates_done}), encoding="utf-8")


def load_moments(directory: Path, engine: Engine) -> None:
    """Take the moments that `save_moments` left with a checkpoint.

    Raises:
        CheckpointError: they are damaged, or of another model.
    """
    place = directory / MOMENTS_DIRECTORY
    try:
        steps_done = json.loads((place / _STATE_FILE).read_text(encoding="utf-8"))["step"]
        engine.set_moments({which: load_file(place / f"{which}.safetensors") for which in MOMENTS}, steps_done)
    except (OSError, ValueError, KeyError, SafetensorError) as error:
        raise CheckpointError(f"{place}: damaged optimizer moments, or those of another model ({error})") from error


def load_newest_state(work: Path, engine: Engine) -> Progress | None:
    """Put the newest complete state into the engine and return its progress; None where there is none.

    Raises:
        CheckpointError: the state is damaged.
    """
    states = _states(work)
    if not states:
        return None
    newest = states[-1]
    try:
        content = json.loads((newest / _STATE_FILE).read_text(encoding="utf-8"))
        weights, *moments = (load_file(newest / f"{name}.safetensors") for name in (_WEIGHTS, *MOMENTS))
        updates = content.get("updates", content["step"])  # states of older versions know neither skipped steps nor a scale
        scale = None if content.get("loss_scale") is None else from_plain(LossScale, content["loss_scale"], _STATE_FILE)
        progress = Progress(
            step=content["step"],
            lagged_shares_LE=[torch.tensor(shares, dtype=torch.float64) for shares in content["lagged_shares"]],
            history=content["history"],
            loads=[from_plain(StepLoads, one, _STATE_FILE) for one in content.get("loads", [])],  # older versions keep none
        )
    except (OSError, ValueError, KeyError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{newest}: a damaged training state ({error}); remove it to go on from the one before") from error
    engine.set_weights(weights)
    engine.set_moments(dict(zip(MOMENTS, moments, strict=True)), updates)
    if scale is not None:
        engine.set_loss_scale(scale)
    return progress


def _states(work: Path) -> list[Path]:
    return sorted(path for path in work.glob("step-*") if (path / _STATE_FILE).is_file())


def _step_of(state: Path) -> int:
    return int(state.name.removeprefix("step-"))


def _copied(tensors: Iterator[tuple[str, Tensor]], is_kept: bool) -> dict[str, Tensor]:
    """Walk through tensors, which every rank must, and copy them to this process's memory where they are kept."""
    copies = {}
    for name, tensor in tensors:
        if is_kept:
            copies[name] = tensor.detach().to("cpu", copy=True, memory_format=torch.contiguous_format)
    return copies


def _sync(place: Path) -> None:
    handle = os.open(place, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)
