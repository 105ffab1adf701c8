"""The command `watch`: what it says of runs that go on, ended, failed or were killed, by the files that they leave."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import pytest

from adapt.core.errors import ConfigError
from adapt.core.progress import progress
from adapt.core.typed import to_plain
from adapt.train.live import LIVE_FILE, LiveTraining
from pipelines.command_line.plain_options import parsed, run_plainly
from pipelines.stages import progress_record
from pipelines.stages.progress_record import DIRECTORY, DONE, FAILED, KILLED, RUNNING, STOPPED, ProgressRecord, records_of
from pipelines.tools import watch
from pipelines.tools.watch import WatchConfig
from pipelines.tools.watch_views import views
from tests.support.command_line import ROOT

TRAINING = LiveTraining(
    at=0.0, step=41, steps=71, tokens_per_s=1234.5, peak_bytes=612_000_000, left_s=8.4,
    losses={"context": 2.0, "total": 3.25, "balance": 1.0}, shares=[[0.25, 0.75], [0.0, 1.0]],
)  # fmt: skip


def said(root: Path, *words: str, capsys: pytest.CaptureFixture[str]) -> str:
    config = parsed(WatchConfig, watch.without_flags([f"run.dir={root}", "--once", *words]))
    assert watch.main(config) == 0
    return capsys.readouterr().out


def change(root: Path, name: str, **changes: Any) -> None:
    """Change what the newest command of a run says of itself."""
    place = sorted((root / name / DIRECTORY).glob("*.json"))[-1]
    place.write_text(json.dumps({**json.loads(place.read_text(encoding="utf-8")), **changes}), encoding="utf-8")


def test_a_running_training_shows_step_losses_speed_time_left_experts_and_memory(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    record, work = ProgressRecord(tmp_path / "news", "news"), tmp_path / "work"
    work.mkdir()
    with record.going_on(["continue_pretrain"], {}):
        record.begin("continue_pretrain", "tnews", work)
        assert "news: continue_pretrain tnews, for 0 s" in said(tmp_path, capsys=capsys)
        (work / LIVE_FILE).write_text(json.dumps(to_plain(TRAINING)), encoding="utf-8")
        text = said(tmp_path, capsys=capsys)
    assert text.splitlines() == [
        "news: continue_pretrain tnews, for 0 s",
        "  step 41 of 71, about 8 s left, 1,234 tokens/s, memory 612 MB",
        "  loss total 3.250, context 2.000, balance 1.000",
        "  experts: most 2.00 (layer 2, expert 2), least 0.00 (layer 2, expert 1) of an even share, 1 of 4 without a token",
    ]


def test_scoring_shows_how_far_it_has_come(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(progress_record, "_EVERY_S", 0.01)
    record = ProgressRecord(tmp_path / "news", "news")
    with record.going_on(["evaluate"], {}):
        record.begin("evaluate", "tnews", tmp_path)
        for index in progress(range(4), "scoring tnews", total=4, unit="row"):
            while index == 2 and records_of(tmp_path / "news")[-1].done < 2:
                time.sleep(0.01)
            if index == 2:
                assert "  scoring tnews: row 2 of 4, about 0 s left" in said(tmp_path, capsys=capsys).splitlines()


def test_several_runs_and_points_are_shown_those_that_go_on_first(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ProgressRecord(tmp_path / "z_done", "z_done").going_on(["evaluate"], {}):
        pass
    sweep, alone = ProgressRecord(tmp_path / "sweep" / "seed=1", "sweep/seed=1"), ProgressRecord(tmp_path / "b", "b")
    with sweep.going_on(["pretrain"], {}), alone.going_on(["pretrain"], {}):
        lines = said(tmp_path, capsys=capsys).splitlines()
        assert [line.split(":")[0] for line in lines if not line.startswith(" ")] == ["b", "sweep/seed=1", "z_done"]
        assert said(tmp_path, "run.name=sweep", capsys=capsys).splitlines() == ["sweep/seed=1: starting, for 0 s"]


@pytest.mark.parametrize(
    ("error", "state", "words"),
    [
        (ConfigError("data.root: no such place"), FAILED, "failed in pretrain 0 s ago: data.root: no such place"),
        (ValueError("odd\nmore"), FAILED, "failed in pretrain 0 s ago: ValueError: odd"),
        (KeyboardInterrupt(), STOPPED, "stopped in pretrain 0 s ago: interrupted; the same command goes on from the last saved"),
    ],
)
def test_a_run_that_ended_is_shown_with_its_last_line(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], error: BaseException, state: str, words: str
) -> None:
    record = ProgressRecord(tmp_path / "a", "a")
    with pytest.raises(type(error)), record.going_on(["pretrain"], {}):
        record.begin("pretrain", None, tmp_path)
        raise error
    assert records_of(tmp_path / "a")[-1].ended_as == state
    assert f"a: {words}" in said(tmp_path, capsys=capsys)


def test_a_run_that_is_done_shows_what_came_out_last(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    record = ProgressRecord(tmp_path / "a", "a")
    with record.going_on(["evaluate"], {}):
        record.begin("evaluate", "tnews", tmp_path)
        record.say("evaluate tnews: 60 %")
    assert said(tmp_path, capsys=capsys) == "a: done 0 s ago: evaluate tnews: 60 %\n"
    assert records_of(tmp_path / "a")[-1].ended_as == DONE
    change(tmp_path, "a", at=time.time() - 3 * 3600)
    assert "nothing runs" in said(tmp_path, "ended_hours=2", capsys=capsys)
    assert "a: done 3.0 h ago" in said(tmp_path, "ended_hours=2", "run.name=a", capsys=capsys)


def test_a_killed_command_is_told_from_one_that_runs(tmp_path: Path) -> None:
    child = subprocess.Popen([sys.executable, "-c", "input()"], stdin=subprocess.PIPE, text=True)
    with ProgressRecord(tmp_path / "a", "a").going_on(["pretrain"], {}):
        born = Path(f"/proc/{child.pid}/stat").read_text(encoding="utf-8").rpartition(")")[2].split()[19]
        change(tmp_path, "a", process=child.pid, born=born)
        assert records_of(tmp_path / "a")[-1].ended_as == RUNNING
        change(tmp_path, "a", born="1")
        assert records_of(tmp_path / "a")[-1].ended_as == KILLED, "another process has its number now"
        change(tmp_path, "a", born=born)
        child.kill()
        child.communicate()
        assert records_of(tmp_path / "a")[-1].ended_as == KILLED


def test_a_command_of_another_machine_is_there_while_it_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(progress_record, "_BEAT_S", 0.01)
    monkeypatch.setattr(progress_record, "_EVERY_S", 0.01)
    with ProgressRecord(tmp_path / "a", "a").going_on(["pretrain"], {}):
        before = records_of(tmp_path / "a")[-1].at
        while records_of(tmp_path / "a")[-1].at == before:
            time.sleep(0.01)
    change(tmp_path, "a", host="elsewhere", state=RUNNING)
    monkeypatch.setattr(progress_record, "_BEAT_S", 30.0)
    assert records_of(tmp_path / "a")[-1].ended_as == RUNNING
    change(tmp_path, "a", at=time.time() - 600)
    assert records_of(tmp_path / "a")[-1].ended_as == KILLED


def test_only_the_newest_records_are_kept_and_damaged_ones_left_out(tmp_path: Path) -> None:
    for _ in range(20):
        with ProgressRecord(tmp_path / "a", "a").going_on([], {}):
            pass
    assert len(records_of(tmp_path / "a")) == 13
    (tmp_path / "a" / DIRECTORY / "1.json").write_text("{", encoding="utf-8")
    assert len(records_of(tmp_path / "a")) == 13


def test_a_record_that_cannot_be_written_ends_no_run(tmp_path: Path) -> None:
    (tmp_path / "a").write_text("a file where the run would be", encoding="utf-8")
    with ProgressRecord(tmp_path / "a", "a").going_on(["pretrain"], {}):
        pass
    assert records_of(tmp_path / "a") == []


@pytest.mark.parametrize(
    ("words", "expected"),
    [
        (["run.dir=/nowhere/at/all"], "run.dir: /nowhere/at/all is no directory"),
        (["run.name=nobody"], "has no run 'nobody'"),
        (["every_s=0"], "every_s: 0 is not above 0"),
        (["run.nam=x"], "run.nam"),
        (["--twice"], "'--twice': expected key=value"),
    ],
)
def test_mistakes_are_one_line(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], expected: str
) -> None:
    monkeypatch.setattr(sys, "argv", ["watch", *([] if "run.dir" in words[0] else [f"run.dir={tmp_path}"]), *words])
    assert run_plainly(WatchConfig, watch.main, watch.__doc__ or "") == 2
    [line] = capsys.readouterr().err.splitlines()
    assert expected in line


def test_a_pipe_gets_text_until_nothing_runs(tmp_path: Path) -> None:
    with ProgressRecord(tmp_path / "a", "a").going_on([], {}):
        pass
    words = [sys.executable, "-m", "pipelines.watch", f"run.dir={tmp_path}"]
    done = subprocess.run(words, cwd=ROOT, capture_output=True, text=True, timeout=120, env={**os.environ, "COLUMNS": "80"})
    assert (done.returncode, done.stderr) == (0, "")
    assert done.stdout.startswith("a: done")


def test_the_screen_has_a_panel_for_each_run_and_a_bar_for_each_expert(tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="needs the extra `watch`")
    from rich.console import Console

    from pipelines.tools.watch_screen import drawn

    record, work = ProgressRecord(tmp_path / "news", "news"), tmp_path / "work"
    work.mkdir()
    (work / LIVE_FILE).write_text(json.dumps(to_plain(TRAINING)), encoding="utf-8")
    console = Console(width=100, record=True, file=(tmp_path / "out").open("w"))
    with record.going_on(["pretrain"], {}):
        record.begin("pretrain", None, work)
        console.print(drawn(views(tmp_path, None, 1.0), tmp_path))
    text = console.export_text()
    assert "news: pretrain, for" in text
    assert "step 41 of 71" in text
    assert "layer  1 ▂▅" in text
    assert "layer  2 ·▆" in text
