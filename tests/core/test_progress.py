"""How much time is left, by a clock that the test winds."""

from __future__ import annotations

import logging
from collections.abc import Iterator

import pytest

from adapt.core import progress as module
from adapt.core.progress import TimeLeft, progress


class Clock:
    def __init__(self) -> None:
        self.now = 0.0

    def __call__(self) -> float:
        return self.now


def lines(seconds_by_item: list[float], *, total: int, first_s: float = 5.0, done: int = 0, afterwards_s: float = 0.0) -> list[str]:
    clock = Clock()
    left = TimeLeft("training", total, "step", done=done, first_s=first_s, afterwards_s=afterwards_s, clock=clock)
    said = []
    for seconds in seconds_by_item:
        clock.now += seconds
        said.append(left.advance())
    return [line for line in said if line is not None]


def test_the_time_left_does_not_count_what_the_first_step_makes_once() -> None:
    assert lines([30.0, 2.0], total=100) == ["training: 2 of 100 steps, about 3 min left"], "98 steps of 2 s"


def test_the_time_left_counts_what_comes_after_the_last_step_and_only_steps_of_this_process() -> None:
    assert lines([4.0, 4.0], total=20, done=10, afterwards_s=30.0) == ["training: 12 of 20 steps, about 62 s left"]


def test_lines_come_every_minute_and_not_for_what_is_about_to_end() -> None:
    found = lines([1.0] * 200, total=200)
    assert [line.split(" of ")[0] for line in found] == ["training: 5", "training: 65", "training: 125", "training: 185"]
    assert found[1] == "training: 65 of 200 steps, about 2 min left"


def test_a_log_says_how_far_a_loop_has_come(monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture) -> None:
    monkeypatch.setattr(module.logger, "parent", logging.getLogger())
    monkeypatch.setattr(module, "TimeLeft", lambda what, total, unit: TimeLeft(what, total, unit, first_s=0.0))

    def rows() -> Iterator[int]:
        yield from range(4)

    with caplog.at_level(logging.INFO):
        assert list(progress(rows(), "scoring demo", total=4, unit="row")) == [0, 1, 2, 3]
    assert [record.getMessage() for record in caplog.records] == ["scoring demo: 2 of 4 rows, about 0 s left"]


def test_items_that_cost_less_and_less_are_timed_by_their_cost() -> None:
    clock = Clock()
    left = TimeLeft("merging", 100, "hundred", cost=lambda n: n**0.5, clock=clock)
    for item in range(1, 5):
        clock.now = item**0.5
        left.advance()
    assert left.left_s == pytest.approx(8.0), "the work is done after 10 s, of which 2 have passed"
