"""A tracked run that goes on after a kill is one run: every step once, without gaps, and its results at the end."""

from __future__ import annotations

from pathlib import Path

import pytest

from adapt.core.errors import ConfigError
from adapt.train import trackers
from adapt.train.trackers import open_tracker
from adapt.train.tracking import NoTracker, RunIdentity, TrackedTable, TrackerConfig, TrackerKind
from tests.support.wandb_files import read_offline

LINES = [{"step": float(step), "loss/total": 1 / step} for step in range(1, 6)]
TABLE = TrackedTable(columns=("label", "answer", "rows"), rows=[["good", "bad", 3], ["a|b", "bad", 1]])


def identity(place: Path) -> RunIdentity:
    return RunIdentity(name="sweep/point/task", group="sweep", stage="adapt", key="0123", directory=place, config={"seed": 1})


def track_twice(config: TrackerConfig, place: Path) -> str:
    """Track four steps; go on from the state of step 2, as after a kill, to the fifth."""
    with open_tracker(config, identity(place), is_main=True) as tracker:
        tracker.follow([])
        for line in LINES[:4]:
            tracker.log(line, int(line["step"]))
    with open_tracker(config, identity(place), is_main=True) as tracker:
        tracker.follow(LINES[:2])
        for line in LINES[2:]:
            tracker.log(line, int(line["step"]))
        tracker.conclude({"accuracy": 0.5, "verdict": "gained"}, {"confusion": TABLE})
    return tracker.hint


def test_wandb_has_one_run_with_every_step_once(tmp_path: Path) -> None:
    hint = track_twice(TrackerConfig(kind=TrackerKind.WANDB), tmp_path)
    [directory] = (tmp_path / "wandb").glob("offline-run-*")
    assert hint == f"wandb sync {directory}"
    found = read_offline(directory)
    assert found.id == identity(tmp_path).id
    assert found.steps == [1, 2, 3, 4, 5]
    assert [line["loss/total"] for line in found.history] == [line["loss/total"] for line in LINES]
    assert found.config["seed"] == 1
    assert (found.summary["accuracy"], found.summary["verdict"]) == (0.5, "gained")
    assert found.summary["confusion.nrows"] == 2
    assert not list(directory.glob("files/output.log")), "the terminal's output is not recorded"


def test_tensorboard_has_one_run_with_every_step_once(tmp_path: Path) -> None:
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    hint = track_twice(TrackerConfig(kind=TrackerKind.TENSORBOARD), tmp_path)
    assert hint == f"tensorboard --logdir {tmp_path / 'tensorboard'}"
    [place] = (tmp_path / "tensorboard").iterdir()
    events = accumulator.EventAccumulator(str(place))
    events.Reload()
    assert [event.step for event in events.Scalars("loss/total")] == [1, 2, 3, 4, 5]
    assert [(event.step, event.value) for event in events.Scalars("accuracy")] == [(5, 0.5)]
    tables = {name: events.Tensors(name)[0].tensor_proto.string_val[0].decode() for name in events.Tags()["tensors"]}
    assert "| verdict | gained |" in tables["results/text_summary"]
    assert "| a\\|b | bad | 1 |" in tables["confusion/text_summary"]


def test_other_ranks_track_nothing(tmp_path: Path) -> None:
    assert isinstance(open_tracker(TrackerConfig(kind=TrackerKind.WANDB), identity(tmp_path), is_main=False), NoTracker)
    assert not list(tmp_path.iterdir())


def test_a_tracker_that_is_not_installed_is_refused(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trackers, "is_installed", lambda: False)
    with pytest.raises(ConfigError, match=r"pip install 'moe-adapt\[tensorboard\]'"):
        open_tracker(TrackerConfig(kind=TrackerKind.TENSORBOARD), identity(tmp_path), is_main=True)
