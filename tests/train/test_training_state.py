"""Training states are complete or absent, hold the step boundary they were taken at, and a stop is one of those boundaries."""

from __future__ import annotations

import contextlib
import os
import resource
import signal
import threading
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest
import torch
from safetensors.torch import load_file

import adapt.train.training_state as training_state
from adapt.core.errors import CheckpointError, TrainingError
from adapt.core.spans import LabelForm
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.train.engine_config import EngineConfig
from adapt.train.loop import Trainer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.state_pieces import Piece
from adapt.train.stopping import Stopped
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig
from adapt.train.training_state import Progress, StateWriter, load_moments, load_newest_state, save_moments
from tests.support.plain_engine import PlainEngine
from tests.support.ranks.rank_cases import readings
from tests.support.tiny_models import tiny_config

STEPS = 12
OPTIMIZER = OptimizerConfig(lr=3e-3)
TRAIN = TrainConfig(steps=STEPS, batch_rows=5, optimizer=OPTIMIZER, save_every_steps=4)


class At(NoTracker):
    """Does something when a step is logged."""

    def __init__(self, step: int, act: Any) -> None:
        self.step, self.act = step, act

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if step == self.step:
            self.act()


def made() -> GPT:
    config = tiny_config([3, 5], vocab_size=120, context_length=48, router=SigmoidBiasConfig(rate=0.01))
    return materialize(GPT(config), seed=1)


def engine_of(model: GPT) -> Any:
    return PlainEngine(model, OPTIMIZER)


def trained(model: GPT, work: Path, tracker: NoTracker | None = None) -> list[dict[str, float]]:
    trainer = Trainer(engine_of(model), EngineConfig(micro_batch=4), ObjectiveConfig(), seed=5)
    work.mkdir(exist_ok=True)
    return trainer.train(ReadingList(readings(LabelForm.CLM)), TRAIN, work, tracker or NoTracker()).history


def names(work: Path) -> list[str]:
    return sorted(path.name for path in work.iterdir())


def same_bits(one: GPT, other: GPT) -> bool:
    wanted = dict(named_state(one))
    return all(torch.equal(tensor, wanted[name]) for name, tensor in named_state(other))


@pytest.fixture(scope="module")
def whole(tmp_path_factory: pytest.TempPathFactory) -> tuple[GPT, list[dict[str, float]]]:
    model = made()
    return model, trained(model, tmp_path_factory.mktemp("whole"))


@contextlib.contextmanager
def small_files() -> Iterator[None]:
    """Let no file of this process grow beyond 20 kB, as on a disk that fills up: not a log of the tests either, so not for long."""
    before = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (20_000, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, before)


def test_the_loop_goes_on_while_a_state_is_written_and_the_state_is_that_of_its_boundary(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[GPT, list[dict[str, float]]]
) -> None:
    written, write = threading.Event(), training_state.write_pieces

    def slowly(*arguments: Any) -> None:
        assert written.wait(60), "training waited for the write"
        write(*arguments)

    monkeypatch.setattr(training_state, "write_pieces", slowly)
    monkeypatch.setattr(training_state, "copies_states", lambda device: True)

    class Killed(Exception):
        pass

    def end() -> None:
        assert names(tmp_path) == [".step-00000004"], "the state of step 4 is not written yet"
        written.set()
        raise Killed

    with pytest.raises(Killed):
        trained(made(), tmp_path, At(7, end))
    assert names(tmp_path) == ["step-00000004"]
    resumed = made()
    assert trained(resumed, tmp_path) == whole[1]
    assert same_bits(resumed, whole[0])


def test_the_newest_states_are_kept(tmp_path: Path) -> None:
    trained(made(), tmp_path)
    assert names(tmp_path) == ["step-00000008", "step-00000012"]


@pytest.mark.parametrize("number", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_stops_at_the_next_boundary_with_its_state_and_the_run_ends_with_the_same_bits(
    number: signal.Signals, tmp_path: Path, whole: tuple[GPT, list[dict[str, float]]]
) -> None:
    before = signal.getsignal(number)
    with pytest.raises(Stopped, match="after step 7 of 12"):
        trained(made(), tmp_path, At(6, lambda: os.kill(os.getpid(), number)))
    assert signal.getsignal(number) is before
    assert names(tmp_path) == ["step-00000004", "step-00000007"]
    resumed = made()
    assert trained(resumed, tmp_path) == whole[1]
    assert same_bits(resumed, whole[0])


@pytest.mark.parametrize("is_copied", [False, True])
def test_a_first_state_that_cannot_be_written_is_said_in_one_clear_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, is_copied: bool
) -> None:
    monkeypatch.setattr(training_state, "copies_states", lambda device: is_copied)
    reason = r"the state of step 4 cannot be written .*none is there yet; raise `ulimit -f`$"
    with small_files(), pytest.raises(TrainingError, match=reason):
        trained(made(), tmp_path)
    assert names(tmp_path) == []


def test_a_write_that_fails_leaves_the_state_before_and_the_run_goes_on_from_it(
    tmp_path: Path, whole: tuple[GPT, list[dict[str, float]]]
) -> None:
    with contextlib.ExitStack() as disk, pytest.raises(TrainingError, match="step 8 cannot be written .*the one of step 4 is kept"):
        trained(made(), tmp_path, At(7, lambda: disk.enter_context(small_files())))
    assert names(tmp_path) == ["step-00000004"]
    resumed = made()
    assert trained(resumed, tmp_path) == whole[1]
    assert same_bits(resumed, whole[0])


def test_a_process_that_dies_at_any_moment_of_a_write_leaves_a_whole_state(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    class Died(BaseException):
        pass

    flush, left = os.fsync, 0
    pieces = [Piece(which=which, name="w", start=0, values=torch.ones(3)) for which in ("weights", *training_state.MOMENTS)]

    def dies(handle: int) -> None:
        nonlocal left
        left -= 1
        if left == 0:
            raise Died
        flush(handle)

    def write(work: Path, step: int) -> None:
        scratch = work / f".step-{step:08d}"
        scratch.mkdir(parents=True)
        training_state.write_pieces(scratch, 0, pieces)
        training_state.complete_state(work, scratch, {"step": step})

    monkeypatch.setattr(os, "fsync", dies)
    found = []
    for moment in range(1, 6):
        work = tmp_path / str(moment)
        write(work, 1)
        left = moment
        with contextlib.suppress(Died):
            write(work, 2)
        found.append(training_state._states(work)[-1].name)
        with StateWriter(work, engine_of(made()), keep=2):
            assert not list(work.glob(".step-*"))
    # The file of pieces, the description and its directory; then the state is in place.
    assert found == ["step-00000001"] * 3 + ["step-00000002"] * 2


def test_moments_of_another_training_go_on_with_the_number_of_their_updates(tmp_path: Path) -> None:
    base, model = tmp_path / "base", made()
    engine = engine_of(model)
    base.mkdir()
    Trainer(engine, EngineConfig(micro_batch=4), ObjectiveConfig(), seed=5).train(
        ReadingList(readings(LabelForm.CLM)), TRAIN, base, NoTracker()
    )
    save_moments(base, engine)

    def adapted(work: Path, tracker: NoTracker) -> GPT:
        model = made()
        engine = engine_of(model)
        load_moments(base, engine)
        work.mkdir(exist_ok=True)
        Trainer(engine, EngineConfig(micro_batch=4), ObjectiveConfig(), seed=6).train(
            ReadingList(readings(LabelForm.CLM)), TRAIN, work, tracker
        )
        assert engine.updates_done == 2 * STEPS
        return model

    class Killed(Exception):
        pass

    def end() -> None:
        raise Killed

    whole = adapted(tmp_path / "whole", NoTracker())
    with pytest.raises(Killed):
        adapted(tmp_path / "killed", At(6, end))
    assert same_bits(adapted(tmp_path / "killed", NoTracker()), whole)


def test_a_damaged_state_is_named(tmp_path: Path) -> None:
    model = made()
    engine = engine_of(model)
    trained(model, tmp_path)
    place = tmp_path / "step-00000012" / "rank-00000.safetensors"
    place.write_bytes(place.read_bytes()[:-8])
    with pytest.raises(CheckpointError, match=r"step-00000012: a damaged training state .*remove it"):
        load_newest_state(tmp_path, engine)


def test_a_state_holds_router_state_and_lagged_shares(tmp_path: Path) -> None:
    model, shares = made(), [torch.tensor([0.2, 0.3, 0.5], dtype=torch.float64), torch.full((5,), 0.2, dtype=torch.float64)]
    engine = engine_of(model)
    for _, buffer in model.named_buffers():
        buffer.normal_()
    for parameter in model.parameters():
        moments = {which: torch.zeros_like(parameter) for which in training_state.MOMENTS}
        engine._adamw.state[parameter] = {"step": torch.tensor(3.0), **moments}
    with StateWriter(tmp_path, engine, keep=1) as states:
        states.save(Progress(step=3, lagged_shares_LE=shares, history=[{"step": 3.0}], loads=[]))
    other = made()
    progress = load_newest_state(tmp_path, engine_of(other))
    assert progress is not None
    assert all(torch.equal(a, b) for a, b in zip(progress.lagged_shares_LE, shares, strict=True))
    assert same_bits(model, other)


def test_a_state_that_is_written_without_a_copy_holds_the_same_and_is_gone_on_from(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, whole: tuple[GPT, list[dict[str, float]]]
) -> None:
    class Killed(Exception):
        pass

    def kill() -> None:
        raise Killed

    works = {is_copied: tmp_path / str(is_copied) for is_copied in (True, False)}
    for is_copied, work in works.items():
        monkeypatch.setattr(training_state, "copies_states", lambda device, is_copied=is_copied: is_copied)
        with pytest.raises(Killed):
            trained(made(), work, At(9, kill))
        assert names(work) == ["step-00000004", "step-00000008"]
    copied, written = (load_file(work / "step-00000008" / "rank-00000.safetensors") for work in works.values())
    assert copied.keys() == written.keys()
    assert all(torch.equal(tensor, written[key]) for key, tensor in copied.items())
    for is_copied, work in works.items():  # either kind of run takes either kind of state
        monkeypatch.setattr(training_state, "copies_states", lambda device, is_copied=is_copied: not is_copied)
        resumed = made()
        assert trained(resumed, work) == whole[1]
        assert same_bits(resumed, whole[0])
