"""Scores as artifacts: killed scoring goes on, ranks change nothing, and what does not touch scores never scores again."""

from __future__ import annotations

import os
import re
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from adapt.core.artifacts import open_artifact
from adapt.train.engine_config import EngineConfig
from pipelines.config.locations import conf_dir, demo_dir
from pipelines.stages import scores
from tests.support.command_line import ROOT, SMALLEST, in_fp32, in_process, on_base, records, run_inside
from tests.support.made_once import made_once

TASK = "demo_topics"  # its labels do not stand in the order of the alphabet
CHUNK_ROWS = 10
IN_SMALL_CHUNKS = (
    f"import pipelines.stages.scores; pipelines.stages.scores._CHUNK_ROWS = {CHUNK_ROWS}; "
    "from pipelines.command_line.compose import main; main('pseudo_label')"
)
# 280 rows: two chunks of the usual size.
MODEL = ["pseudo_label.teachers=[model]"]  # the others take no scores
ALL_ROWS = ["pseudo_label.max_rows=null", "pseudo_label.estimates_noise=false", "pseudo_label.coarse_to_fine=true", *MODEL]
KILLED_ROWS = [*ALL_ROWS[1:], "pseudo_label.max_rows=120"]
RunHere = Callable[[str, list[str]], str]


def score_files(place: Path) -> dict[str, bytes]:
    """Return the content of a run's scores and labels by the place they are linked at."""
    links = [*place.glob("demo/score/*/*"), *place.glob("demo/pseudo_label/*")]
    assert len(links) >= 2
    return {str(path.relative_to(place)): path.read_bytes() for link in links for path in link.glob("*.parquet")}


def artifacts(place: Path) -> set[str]:
    """Return the score artifacts in a run's store."""
    return {path.parent.name for path in place.glob("store/score/*/manifest.json")}


def own_task(place: Path, change: Callable[[str], str]) -> str:
    """Write a changed copy of the task's file and return the argument that uses it."""
    place.mkdir()
    text = (conf_dir() / "task" / f"{TASK}.yaml").read_text(encoding="utf-8")
    assert change(text) != text
    (place / f"{TASK}.yaml").write_text(change(text), encoding="utf-8")
    return f"task_dir={place}"


def own_data(place: Path, change: Callable[[list[str]], list[str]]) -> Path:
    """Write a changed copy of the task's unlabeled rows, no other split, and return its place."""
    lines = (demo_dir() / "clue" / TASK / "unlabeled.json").read_text(encoding="utf-8").splitlines()
    path = place / TASK / "unlabeled.json"
    path.parent.mkdir(parents=True)
    path.write_text("\n".join(change(lines)) + "\n", encoding="utf-8")
    return path


@pytest.fixture(scope="module")
def on_one_rank(smallest_run: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return a run whose rows were all scored by one process."""

    def make(place: Path) -> None:
        done = run_inside("pseudo_label", *on_base(smallest_run, place, TASK), *ALL_ROWS, "engine.world_size=1")
        assert done.returncode == 0, done.stderr

    return made_once(tmp_path_factory, "on_one_rank", make)


@pytest.fixture
def parts_at_the_end(monkeypatch: pytest.MonkeyPatch) -> dict[str, tuple[int, int]]:
    """Return a mapping that gets inode and time of change of every part when the parts are joined."""
    found: dict[str, tuple[int, int]] = {}
    original = scores.join_scores

    def join(path: Path, parts: list[Path]) -> None:
        found.update({str(part): (part.stat().st_ino, part.stat().st_mtime_ns) for part in parts})
        original(path, parts)

    monkeypatch.setattr(scores, "join_scores", join)
    return found


def test_killed_scoring_goes_on_behind_its_last_part(
    smallest_run: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch,
    parts_at_the_end: dict[str, tuple[int, int]],
) -> None:  # fmt: skip
    place = tmp_path / "killed"
    arguments = [*on_base(smallest_run, place, TASK), *KILLED_ROWS]
    child = subprocess.Popen(
        [sys.executable, "-c", IN_SMALL_CHUNKS, *in_fp32(arguments)],
        cwd=ROOT, env={**os.environ, "OMP_NUM_THREADS": "1"}, stdout=subprocess.DEVNULL, stderr=subprocess.DEVNULL,
    )  # fmt: skip
    deadline = time.monotonic() + 60
    while not list(place.glob("store/score/.*.work/part-*.parquet")) and time.monotonic() < deadline:
        time.sleep(0.005)
    child.send_signal(signal.SIGKILL)
    child.wait()
    left = sorted(place.glob("store/score/.*.work/part-*.parquet"))
    assert 0 < len(left) < 120 / CHUNK_ROWS, "killed too early or too late"
    assert not artifacts(place)
    before = {str(part): (part.stat().st_ino, part.stat().st_mtime_ns) for part in left}
    left[-1].with_name(f"part-{len(left):05d}.unfinished").write_bytes(b"PAR1, and then the kill")

    monkeypatch.setattr(scores, "_CHUNK_ROWS", CHUNK_ROWS)
    run_here("pseudo_label", arguments)
    after = {part: parts_at_the_end[part] for part in before}
    assert after == before, "a part that was there was written again"
    assert len(parts_at_the_end) > len(before)
    assert not list(place.glob("store/score/.*.work")), "the parts go once they are joined"

    run_here("pseudo_label", [*on_base(smallest_run, tmp_path / "whole", TASK), *KILLED_ROWS])
    assert score_files(place) == score_files(tmp_path / "whole")


def test_one_rank_and_two_ranks_give_the_same_bits(
    on_one_rank: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere, scorings: list[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    launched = []
    original = scores.launch

    def launch(job: dict[str, Any], work: Path, engine: EngineConfig, n_ranks: int | None = None) -> None:
        launched.append(n_ranks)
        original(job, work, engine, n_ranks)

    monkeypatch.setattr(scores, "launch", launch)
    run_here("pseudo_label", [*on_base(smallest_run, tmp_path, TASK), *ALL_ROWS, "engine.world_size=2"])
    assert launched == [2]
    assert scorings == [], "two ranks score, the command itself does not"
    assert score_files(tmp_path) == score_files(on_one_rank)


def test_an_interrupted_rank_leaves_its_parts_to_two_ranks(
    on_one_rank: Path, smallest_run: Path, tmp_path: Path, run_here: RunHere, monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str], parts_at_the_end: dict[str, tuple[int, int]],
) -> None:  # fmt: skip
    arguments = [*on_base(smallest_run, tmp_path, TASK), *ALL_ROWS]
    original = scores.write_scores

    def write(path: Path, *content: Any) -> None:
        if path.stem != "part-00000":
            raise KeyboardInterrupt
        original(path, *content)

    with monkeypatch.context() as only_here:
        only_here.setattr(scores, "write_scores", write)
        code, text = in_process("pseudo_label", arguments, monkeypatch, capsys)
    assert code == 130
    assert "the same command goes on" in text
    part = next(tmp_path.glob("store/score/.*.work/part-00000.parquet"))
    before = (part.stat().st_ino, part.stat().st_mtime_ns)
    run_here("pseudo_label", [*arguments, "engine.world_size=2"])
    assert len(parts_at_the_end) == 2
    assert parts_at_the_end[str(part)] == before
    assert score_files(tmp_path) == score_files(on_one_rank)


def test_an_error_of_a_rank_is_one_line_of_the_command(
    smallest_run: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    long = '{"id": 270, "sentence": "' + "长" * 400 + '"}'
    own_data(tmp_path / "clue", lambda lines: [*lines[:270], long, *lines[271:]])
    uncut = own_task(tmp_path / "tasks", lambda text: text.replace("shorten: [sentence]", "shorten: []"))
    arguments = [*on_base(smallest_run, tmp_path / "runs", TASK), *ALL_ROWS, uncut, f"data.root={tmp_path}/clue"]
    code, text = in_process("pseudo_label", [*arguments, "engine.world_size=2"], monkeypatch, capsys)
    assert code == 2, text
    assert len([line for line in text.splitlines() if line.startswith("error: ")]) == 1
    assert "line 271" in text
    assert "Traceback" not in text
    assert not list(tmp_path.glob("runs/**/manifest.json"))


@pytest.mark.parametrize(
    ("before", "after"),
    [
        ([], ["pseudo_label.selection.share=0.2"]),
        ([], ["pseudo_label.method=prior"]),
        ([], ["pseudo_label.held_out_share=0.3"]),
        (["pseudo_label.criterion=sum"], ["pseudo_label.criterion=mean"]),
        (["pseudo_label.criterion=total"], ["pseudo_label.criterion=perplexity"]),
        (["pseudo_label.coarse_to_fine=true"], ["pseudo_label.coarse_to_fine=true", "pseudo_label.coarse.beam=2"]),
    ],
)
def test_another_decision_makes_new_labels_without_scoring(
    before: list[str], after: list[str], copied_run: Path, run_here: RunHere, scorings: list[str]
) -> None:
    arguments = [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}", "pseudo_label.estimates_noise=false"]
    labels = copied_run / "demo" / "pseudo_label" / TASK / "labels.parquet"
    run_here("pseudo_label", [*arguments, *before])
    first, made = labels.read_bytes(), artifacts(copied_run)
    scorings.clear()
    text = run_here("pseudo_label", [*arguments, *after])
    assert "skipped" not in text
    assert scorings == []
    assert artifacts(copied_run) == made
    assert labels.read_bytes() != first


def test_evaluation_takes_the_scores_that_labelling_left(
    smallest_run: Path, tmp_path: Path, run_here: RunHere, scorings: list[str]
) -> None:
    # Both read the same unlabeled rows, and dev.
    arguments = [*on_base(smallest_run, tmp_path, TASK), *MODEL, "evaluate.fit_rows=80", "evaluate.splits=[dev]"]
    run_here("pseudo_label", arguments)
    assert scorings
    scorings.clear()
    assert "dev base prior" in run_here("evaluate", arguments)
    assert scorings == []


def test_force_scores_again_each_split_once(smallest_run: Path, tmp_path: Path, run_here: RunHere, scorings: list[str]) -> None:
    small = ["pseudo_label.max_rows=20", "evaluate.fit_rows=10", "evaluate.methods=[prior]", "stages=[pseudo_label,evaluate]"]
    arguments = [*on_base(smallest_run, tmp_path, TASK), *MODEL, *small]
    run_here("run", arguments)
    first, content = len(scorings), score_files(tmp_path)
    scorings.clear()
    assert run_here("run", arguments).count("unchanged, skipped") == 2
    assert scorings == []
    run_here("run", [*arguments, "force=true"])
    assert len(scorings) == first
    assert score_files(tmp_path) == content


@pytest.mark.parametrize("what", ["an unlabeled row", "a prompt", "the precision"])
def test_what_scores_depend_on_scores_again(
    what: str, smallest_run: Path, tmp_path: Path, run_here: RunHere, scorings: list[str]
) -> None:
    unlabeled = own_data(tmp_path / "clue", lambda lines: lines[:12])
    arguments = [*on_base(smallest_run, tmp_path, TASK), *MODEL, f"data.root={tmp_path}/clue"]
    run_here("pseudo_label", arguments)
    made = artifacts(tmp_path)
    scorings.clear()
    if what == "an unlabeled row":
        with unlabeled.open("a", encoding="utf-8") as stream:
            stream.write('{"id": 12, "sentence": "新款手机今天上市"}\n')
    elif what == "a prompt":
        arguments.append(own_task(tmp_path / "tasks", lambda text: text.replace("，关于{label}", "，说的是{label}")))
    else:
        arguments.append("scorer.precision=bf16")
    assert "skipped" not in run_here("pseudo_label", arguments)
    assert scorings
    assert len(artifacts(tmp_path) - made) == 1


def test_what_only_changes_speed_scores_nothing_again(copied_run: Path, run_here: RunHere, scorings: list[str]) -> None:
    arguments = [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}"]
    made = artifacts(copied_run)
    speed = ["engine.world_size=2", "engine.threads=1", "scorer.max_batch_tokens=512", "scorer.layout=rows", "scorer.window=16"]
    assert "skipped" in run_here("pseudo_label", [*arguments, *speed])
    # With other labels asked for, the stage itself is not skipped.
    assert "skipped" not in run_here("pseudo_label", [*arguments, *speed, "pseudo_label.selection.share=0.2"])
    assert scorings == []
    assert artifacts(copied_run) == made


def test_bf16_scores_are_others_that_lie_near(copied_run: Path, run_here: RunHere) -> None:
    link = copied_run / "demo" / "score" / TASK / "unlabeled-pretrain"
    found = []
    for precision in ("fp32", "bf16"):
        labels = [*MODEL, "pseudo_label.estimates_noise=false", f"scorer.precision={precision}", "pseudo_label.max_rows=20"]
        run_here("pseudo_label", [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}", *labels])
        found.append(np.asarray([record["sums"] for record in records(link / "scores.parquet") if record["prompt"] == "reference"]))
        assert open_artifact(link.resolve()).config["precision"] == precision
    exact, rounded = found
    assert not np.array_equal(exact, rounded)
    np.testing.assert_allclose(rounded, exact, rtol=0.03, atol=0.1)


def test_labels_listed_in_another_order_keep_their_scores(copied_run: Path, tmp_path: Path, run_here: RunHere) -> None:
    place = copied_run / "demo" / "pseudo_label" / TASK / "labels.parquet"
    arguments = [*SMALLEST, f"task={TASK}", f"run.dir={copied_run}", "pseudo_label.method=prior"]
    run_here("pseudo_label", arguments)
    order = ["sports", "finance", "tech", "food"]
    before = {record["line"]: dict(zip(order, record["scores"], strict=True)) for record in records(place)}

    def turn(text: str) -> str:
        return re.sub("label_words: .*", "label_words: {food: 美食, tech: 科技, finance: 财经, sports: 体育}", text, count=1)

    run_here("pseudo_label", [*arguments, own_task(tmp_path / "tasks", turn)])
    assert records(place)
    for record in records(place):
        after = dict(zip(reversed(order), record["scores"], strict=True))
        assert after == pytest.approx(before[record["line"]], abs=1e-4)
        assert record["label"] == max(after, key=after.__getitem__)
