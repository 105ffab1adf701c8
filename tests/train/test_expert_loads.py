"""What a training leaves of its experts' loads for pages, and of its newest step for those who watch."""

from __future__ import annotations

import json
from pathlib import Path

from adapt.train.expert_loads import ExpertLoads, MeasuredLoads, StepLoads, compared, is_kept, rounded
from adapt.train.live import LIVE_FILE, LiveFile, read_live

LINE = {"step": 3.0, "loss/total": 2.5, "loss/context": 2.0, "count/context": 9.0, "loss/prompt": 0.0, "count/prompt": 0.0}


def test_the_first_the_last_and_some_40_steps_are_kept() -> None:
    for steps in (1, 2, 39, 40, 41, 1000, 1001):
        kept = [step for step in range(1, steps + 1) if is_kept(step, steps)]
        assert kept[0] == 1
        assert kept[-1] == steps
        assert len(kept) <= 42
        assert len(kept) >= min(steps, 21)


def test_loads_come_back_as_they_were_written(tmp_path: Path) -> None:
    loads = ExpertLoads(
        steps=[StepLoads(step=1, shares=rounded([[0.25, 0.75], [1 / 3, 2 / 3]]))],
        measured=compared({"a": [[0.5, 0.5]], "empty": [[0.0, 0.0]]}, {"a": [[0.1, 0.9]], "empty": [[0.0, 0.0]]}),
    )
    loads.write(tmp_path / "figures.json")
    assert ExpertLoads.read(tmp_path / "figures.json") == loads
    assert loads.steps[0].shares[1] == [0.33333, 0.66667]
    assert loads.measured == {"a": MeasuredLoads(before=[[0.5, 0.5]], after=[[0.1, 0.9]])}


def test_the_newest_step_is_written_once_a_second_and_at_the_end(tmp_path: Path) -> None:
    now = 0.0
    asked: list[float] = []

    def peak() -> int:
        asked.append(now)
        return 7

    file = LiveFile(tmp_path, clock=lambda: now)
    for step, now in ((1.0, 0.0), (2.0, 0.9), (3.0, 1.1), (4.0, 1.2), (5.0, 1.3)):  # noqa: B007
        file.show({**LINE, "step": step}, 5, 10.0, None, peak, lambda: [[0.5, 0.5]])
    assert asked == [0.0, 1.1, 1.3]
    found = read_live(tmp_path)
    assert found is not None
    assert (found.step, found.steps, found.peak_bytes, found.shares) == (5, 5, 7, [[0.5, 0.5]])
    assert found.losses == {"total": 2.5, "context": 2.0}, "a part without a target has no loss"


def test_a_disk_that_refuses_costs_nothing(tmp_path: Path) -> None:
    LiveFile(tmp_path / "gone").show(LINE, 5, 1.0, None, lambda: 0, list)
    assert list(tmp_path.iterdir()) == []


def test_a_file_of_another_version_or_half_a_file_is_no_step(tmp_path: Path) -> None:
    assert read_live(tmp_path) is None
    for content in ("{", json.dumps({"step": 1}), "[]"):
        (tmp_path / LIVE_FILE).write_text(content, encoding="utf-8")
        assert read_live(tmp_path) is None
