"""Training states: everything that the next step reads, in a directory that is complete or absent.

`<work>/step-00000100/` holds of each rank a file with its pieces of weights and moments (`state_pieces`), and `state.json` (step,
updates, shapes, lagged shares, history, experts' loads at some steps, and in fp16 the loss scale). Any number of ranks goes on
from it. Every file and directory of a state is on the disk before rank 0 renames the directory into place, and older states go
only after that. So whatever ends a process, or fills the disk, the newest complete state is whole.

On a GPU each rank copies its pieces to the host's memory at the step boundary, and a thread writes them while training goes on.
Where masters and moments are in that memory already, as on a CPU, these copies would be the peak of the whole training (12 bytes a
parameter over all ranks), and writing takes little time next to a few hundred steps: training waits, and pieces are written one by
one without a copy.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import threading
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from types import TracebackType
from typing import Any

import torch
from safetensors import SafetensorError
from safetensors.torch import load_file
from torch import Tensor

from adapt.core.errors import CheckpointError, ConfigError, TrainingError
from adapt.core.faults import advice_on
from adapt.core.typed import from_plain, to_plain
from adapt.model.buffers import named_state
from adapt.model.expert_parallel import Rows
from adapt.train.engine import Engine
from adapt.train.expert_loads import StepLoads
from adapt.train.loss_scale import LossScale
from adapt.train.optimizer import MOMENTS
from adapt.train.state_pieces import WEIGHTS, Piece, StoredState, await_pieces, write_pieces
from adapt.train.tensor_stream import save_one_by_one

MOMENTS_DIRECTORY = "moments"
_STATE_FILE = "state.json"
_PATIENCE_S, _LAST_PATIENCE_S = 600.0, 20.0


@dataclass(kw_only=True)
class Progress:
    """What training has done so far, beside weights and moments."""

    step: int
    lagged_shares_LE: list[Tensor]
    history: list[dict[str, float]]
    loads: list[StepLoads]


class StateWriter:
    """Saves states, on GPUs in the background and one at a time; used as a context, whose end waits for the last of them.

    Every rank takes part in `save` and writes its own pieces; rank 0 completes the state.
    """

    def __init__(self, work: Path, engine: Engine, keep: int) -> None:
        self._work = work
        self._engine = engine
        self._keep = keep
        self._thread: threading.Thread | None = None
        self._failure: BaseException | None = None
        self._failed_step = 0
        self._patience_s = _PATIENCE_S
        if engine.rank.is_main:
            for scratch in work.glob(".step-*"):  # what a killed process was writing
                shutil.rmtree(scratch, ignore_errors=True)

    def save(self, progress: Progress) -> None:
        """Write the state of this step boundary, or copy it and start to write. A collective.

        Raises:
            TrainingError: this state or the one before could not be written.
        """
        self.wait()
        engine, step = self._engine, progress.step
        content = {
            "step": step,
            "updates": engine.updates_done,
            "ranks": engine.rank.world_size,
            "shapes": engine.state_shapes(),
            "loss_scale": to_plain(engine.loss_scale),
            "lagged_shares": [shares.tolist() for shares in progress.lagged_shares_LE],
            "history": list(progress.history),  # the loop goes on adding to its own
            "loads": to_plain(progress.loads),
        }
        scratch = self._work / f".step-{step:08d}"
        if engine.rank.is_main:
            with self._noted(step):
                _begin(scratch)
        engine.barrier()
        if not copies_states(engine.state_device):
            self._write(step, scratch, list(engine.own_pieces()), content)
            self.check()
            return
        pieces = [piece.copied() for piece in engine.own_pieces()]
        self._thread = threading.Thread(target=self._write, args=(step, scratch, pieces, content), daemon=True)
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
            self._patience_s = _LAST_PATIENCE_S  # another rank may be gone
            self._thread.join()  # what was copied is good, whatever came after

    def _write(self, step: int, scratch: Path, pieces: Sequence[Piece], content: Mapping[str, Any]) -> None:
        rank = self._engine.rank
        with self._noted(step):
            try:
                write_pieces(scratch, rank.rank, pieces)
                if rank.is_main:
                    await_pieces(scratch, rank.world_size, lambda: self._patience_s)
                    complete_state(self._work, scratch, content)
                    for old in _states(self._work)[: -self._keep]:
                        shutil.rmtree(old)
            except BaseException:
                if rank.is_main:
                    shutil.rmtree(scratch, ignore_errors=True)
                raise

    @contextlib.contextmanager
    def _noted(self, step: int) -> Iterator[None]:
        """Keep an error for the training thread."""
        try:
            yield
        except BaseException as error:
            if self._failure is None:
                self._failed_step, self._failure = step, error


def copies_states(device: torch.device) -> bool:
    """Say whether a state is copied, so that training goes on while it is written."""
    return device.type != "cpu"


def _begin(scratch: Path) -> None:
    shutil.rmtree(scratch, ignore_errors=True)
    scratch.mkdir(parents=True)


def complete_state(work: Path, scratch: Path, content: Mapping[str, Any]) -> None:
    """Describe a state whose pieces are on the disk, and rename it into place below `work`."""
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
        tensors = _stored(newest, content)
        updates = content.get("updates", content["step"])  # states of older versions know neither skipped steps nor a scale
        scale = None if content.get("loss_scale") is None else from_plain(LossScale, content["loss_scale"], _STATE_FILE)
        progress = Progress(
            step=content["step"],
            lagged_shares_LE=[torch.tensor(shares, dtype=torch.float64) for shares in content["lagged_shares"]],
            history=content["history"],
            loads=[from_plain(StepLoads, one, _STATE_FILE) for one in content.get("loads", [])],  # older versions keep none
        )
        engine.set_weights(tensors[WEIGHTS])
        engine.set_moments({which: tensors[which] for which in MOMENTS}, updates)
    except (OSError, ValueError, KeyError, SafetensorError, ConfigError) as error:
        raise CheckpointError(f"{newest}: a damaged training state ({error}); remove it to go on from the one before") from error
    if scale is not None:
        engine.set_loss_scale(scale)
    return progress


def _stored(state: Path, content: Mapping[str, Any]) -> Mapping[str, Mapping[str, Rows]]:
    """Return a state's tensors by kind and name, read as they are asked for; older versions had a file of each kind."""
    if "shapes" not in content:
        return {which: load_file(state / f"{which}.safetensors") for which in (WEIGHTS, *MOMENTS)}
    stored = StoredState(state, content["ranks"], content["shapes"])
    return {which: stored.of(which) for which in (WEIGHTS, *MOMENTS)}


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
