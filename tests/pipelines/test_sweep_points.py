"""Points of a sweep, in turn and side by side: one that fails does not stop the others, and the end says how each went."""

from __future__ import annotations

import contextlib
import os
import subprocess
import sys
import time
from pathlib import Path

import pytest

from adapt.core.artifacts import open_artifact
from adapt.core.errors import ConfigError
from pipelines.command_line.sweep import DIED, begin, recorded, summary, taken_record, verdict
from pipelines.config.locations import demo_dir
from pipelines.walk.sweep_record import PointRecord, SweepRecord, read_record
from tests.support.command_line import ROOT, SMALLEST, command, in_process, refused, run
from tests.support.started_runs import ranks_below

GO_ON = "the same command runs what is left to do"
LAUNCHERS = {"joblib": ["hydra.launcher.n_jobs=2"], "submitit_local": []}


def test_a_point_that_fails_does_not_stop_those_behind_it(tmp_path: Path) -> None:
    sizes = ["2350", "9999999", "2300"]
    sweep = [*SMALLEST, "stages=[tokenizer]", f"tokenizer.vocab_size={','.join(sizes)}", f"run.dir={tmp_path}"]
    done = run("run", "-m", *sweep)
    assert done.returncode == 2
    assert "Traceback" not in done.stderr
    names = [f"tokenizer.vocab_size={size}" for size in sizes]
    *_, heading, first, second, third, last = done.stderr.splitlines()
    assert heading == "sweep:"
    assert first == f"  {names[0]}: done"
    assert second.startswith(f"  {names[1]}: data.corpus: cannot train a vocabulary of 9999999")
    assert third == f"  {names[2]}: done"
    assert last == f"error: 1 of 3 points failed: {names[1]}; {GO_ON}"
    assert [(tmp_path / "demo" / name / "tokenizer").exists() for name in names] == [True, False, True]
    assert not list((tmp_path / "demo").glob(".points-*"))


def test_a_sweep_whose_points_are_all_done_says_so(tmp_path: Path) -> None:
    done = run("run", "-m", *SMALLEST, "stages=[tokenizer]", "seed=1,2", f"run.dir={tmp_path}")
    assert done.returncode == 0, done.stderr
    assert done.stderr.splitlines()[-3:] == ["sweep:", "  seed=1: done", "  seed=2: done"]


@pytest.mark.slow
@pytest.mark.parametrize("launcher", LAUNCHERS)
def test_points_run_side_by_side_share_what_they_have_in_common_and_fail_by_themselves(launcher: str, tmp_path: Path) -> None:
    pytest.importorskip(f"hydra_plugins.hydra_{launcher.partition('_')[0]}_launcher")
    sweep = [
        *SMALLEST, "stages=[tokenizer,pretrain]", "engine.threads=1", "pretrain.steps=40", "seed=1,2", "engine.expert_parallel=1,3",
        f"run.dir={tmp_path}", f"hydra/launcher={launcher}", *LAUNCHERS[launcher],
    ]  # fmt: skip
    with (tmp_path / "said.txt").open("w+", encoding="utf-8") as said:
        process = subprocess.Popen(command("run", "-m", *sweep), cwd=ROOT, stdout=said, stderr=said)
        most = 0
        while process.poll() is None:
            most = max(most, len(ranks_below(tmp_path)))
            time.sleep(0.05)
        said.seek(0)
        lines = said.read().splitlines()
    assert process.returncode == 2
    assert most == 2, "a rank of each point at once"
    points = {f"seed={seed},engine.expert_parallel={n}": n == 1 for seed in (1, 2) for n in (1, 3)}
    told = dict(line.strip().split(": ", 1) for line in lines[lines.index("sweep:") + 1 : -1])
    assert list(told) == list(points)
    for name, is_good in points.items():
        assert told[name] == "done" if is_good else "expert_parallel: 3 does not divide the 1 ranks" in told[name]
        assert (tmp_path / "demo" / name / "pretrain").exists() is is_good
    failed = ", ".join(name for name, is_good in points.items() if not is_good)
    assert lines[-1] == f"error: 2 of 4 points failed: {failed}; {GO_ON}"
    good = [name for name, is_good in points.items() if is_good]
    assert len({open_artifact((tmp_path / "demo" / name / "tokenizer").resolve()).path for name in good}) == 1
    assert len({open_artifact((tmp_path / "demo" / name / "pretrain").resolve()).path for name in good}) == 2


@pytest.mark.parametrize("launcher", ["joblib", "submitit_local", "submitit_slurm"])
def test_a_launcher_that_is_not_installed_is_named(launcher: str, tmp_path: Path) -> None:
    arguments = ["run", "-m", f"hydra/launcher={launcher}", *SMALLEST, "seed=1,2", f"run.dir={tmp_path}"]
    code = f"""
import runpy, sys
sys.modules["hydra_plugins"] = None  # as where the extra is not installed
sys.argv = {arguments!r}
runpy.run_module("pipelines.run", run_name="__main__", alter_sys=True)
"""
    done = subprocess.run([sys.executable, "-c", code], cwd=ROOT, capture_output=True, text=True, timeout=60)
    assert done.returncode == 2
    assert done.stderr.splitlines() == [
        f"error: hydra/launcher={launcher}: is not installed; run `pip install 'moe-adapt[sweeps]'`"
    ]


def test_points_side_by_side_are_not_forced(tmp_path: Path) -> None:
    pytest.importorskip("hydra_plugins.hydra_joblib_launcher")
    sweep = [*SMALLEST, "stages=[tokenizer]", "seed=1,2", "force=true", "hydra/launcher=joblib", f"run.dir={tmp_path}"]
    done = run("run", "-m", *sweep)
    assert done.returncode == 2
    assert "  seed=1: force: points side by side share artifacts" in done.stderr
    assert not list(tmp_path.glob("store/*/*/manifest.json"))


def test_a_bad_value_of_a_group_is_refused_before_any_point_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    sweep = ["-m", *SMALLEST, "model=tiny,smal", f"run.dir={tmp_path}"]
    refused("run", sweep, ["Could not find 'model/smal'"], monkeypatch, capsys)
    assert not (tmp_path / "store").exists()


def planned(*names: str) -> SweepRecord:
    points = [PointRecord(number=number, name=name, run=f"demo/{name}") for number, name in enumerate(names)]
    return SweepRecord(command="a command", baseline=None, points=points, most=len(points))


NAMES = ("p0", "p1", "p2", "p3", "p4", "p5")


@pytest.fixture
def began(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setenv("MOE_ADAPT_POINTS", "")
    begin(tmp_path, planned(*NAMES))
    return tmp_path


def test_every_end_of_a_point_is_recorded(began: Path) -> None:
    ends: list[BaseException | None] = [None, ConfigError("seed: is odd"), ValueError("two\nlines"), KeyboardInterrupt()]
    points = planned(*NAMES).points
    for number, end in reversed(list(enumerate(ends))):
        passed_on = contextlib.nullcontext() if end is None or isinstance(end, ConfigError) else pytest.raises(type(end))
        with passed_on, recorded(points[number]) as reached:
            reached.objective = 0.5
            if end is not None:
                raise end
    if os.fork() == 0:
        with recorded(points[4]):
            os._exit(1)
    os.wait()
    found = taken_record()
    assert found is not None
    assert [point.error for point in found.points] == [None, "seed: is odd", "ValueError: two", "interrupted", DIED, None]
    assert [point.name for point in found.points] == list(NAMES)
    assert [point.status for point in found.points] == ["done", *["failed"] * 4, "missing"]
    assert [point.objective for point in found.points] == [0.5, *[None] * 5]
    assert list(began.iterdir()) == []
    assert summary(found).splitlines()[:3] == ["sweep:", "  p0: done", "  p1: seed: is odd"]
    assert summary(found).splitlines()[-1] == "  p5: not reached"
    assert verdict(found) == f"5 of 6 points failed: p1, p2, p3, p4, p5; {GO_ON}"
    assert taken_record() is None


def test_all_points_done_leave_no_verdict(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_ADAPT_POINTS", "")
    begin(tmp_path, planned("p0"))
    with recorded(planned("p0").points[0]):
        pass
    found = taken_record()
    assert found is not None and verdict(found) is None


def test_what_a_killed_sweep_left_is_removed_and_what_a_running_one_has_stays(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("MOE_ADAPT_POINTS", "")
    (tmp_path / ".points-0").mkdir()
    (tmp_path / ".points-0" / "lock").touch()
    running = tmp_path / ".points-1"
    running.mkdir()
    (running / "lock").touch()
    code = f"""
from pathlib import Path
from adapt.core.store_locks import hold
hold(Path({str(running / "lock")!r}))
print(1, flush=True)
input()
"""
    with subprocess.Popen([sys.executable, "-c", code], cwd=ROOT, stdin=subprocess.PIPE, stdout=subprocess.PIPE) as other:
        assert other.stdout is not None and other.stdout.readline()
        begin(tmp_path, planned("p0"))
        other.communicate(b"\n")
    assert sorted(path.name for path in tmp_path.glob(".points-*")) == sorted([".points-1", f".points-{os.getpid()}"])


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["hydra/sweeper=search", "pretrain.optimizer.lr=interval(0.1,0.2)"], "set sweep.objective=label_free or accuracy"),
        (
            ["hydra/sweeper=optuna", "sweep.objective=accuracy", "seed=1,2"],
            "hydra.sweeper.direction: every sweep.objective is made large",
        ),
        (["seed=1,2", "baseline=seed=3"], "baseline: no point or run is 'seed=3' (did you mean 'seed="),
    ],
)
def test_sweeps_that_cannot_be_judged_are_refused_before_any_point_runs(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], words: list[str], said: str
) -> None:
    if "sweeper" in words[0]:
        pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    refused("run", ["-m", *SMALLEST, "stages=[tokenizer]", *words, f"run.dir={tmp_path}"], [said], monkeypatch, capsys)
    assert list(tmp_path.iterdir()) == []


def test_a_search_goes_on_where_it_was_and_survives_a_point_that_fails(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    pytest.importorskip("hydra_plugins.hydra_optuna_sweeper")
    sweep = [
        "-m", "hydra/sweeper=search", "hydra.sweeper.n_trials=3", "sweep.objective=label_free",
        *SMALLEST, "task=demo_reviews", f"checkpoint={demo_dir()}/base", f"run.dir={tmp_path}",
        "stages=[pseudo_label]", "pseudo_label.teachers=[lexical]",
        "pseudo_label.teaching_rounds=0", "pseudo_label.selection.share=interval(0.2,0.9)", "engine.expert_parallel=choice(1,3)",
    ]  # fmt: skip
    code, text = in_process("run", sweep, monkeypatch, capsys)
    starts = [line for line in text.splitlines() if " of at most 3: " in line]
    assert len(starts) == 3 and starts[0].startswith("point 1 of at most 3: ")
    record = read_record(tmp_path / "demo")
    assert record is not None and len(record.points) == 3
    assert {point.status for point in record.points} == {"done", "failed"}
    for point in record.points:
        assert (point.objective is not None) is point.is_done
    assert code == 2
    again, text = in_process("run", sweep, monkeypatch, capsys)
    assert again == code
    assert [line for line in text.splitlines() if " of at most 3: " in line] == starts, "the same points, in the same order"
    assert text.count("unchanged, skipped") == sum(point.is_done for point in record.points)


def test_points_whose_names_differ_only_by_signs_that_are_left_out_have_directories_of_their_own(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    places = [tmp_path / "v" / "1", tmp_path / "v1"]
    for place in places:
        place.mkdir(parents=True)
    sweep = ["-m", *SMALLEST, "stages=[report]", f"task_dir={places[0]},{places[1]}", f"run.dir={tmp_path}/runs"]
    code, text = in_process("run", sweep, monkeypatch, capsys)
    assert code == 2 and "2 of 2 points failed" in text, text  # there is nothing to report yet
    record = read_record(tmp_path / "runs" / "demo")
    assert record is not None and [point.settings["task_dir"] for point in record.points] == [str(place) for place in places]
    names = [point.name for point in record.points]
    assert len(set(names)) == 2 and len({name.rpartition("-")[0] for name in names}) == 1
    assert {point.run for point in record.points} == {f"demo/{name}" for name in names}
    assert all(f"/{name}: nothing to report" in text for name in names)
