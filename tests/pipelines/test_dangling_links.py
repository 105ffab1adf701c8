"""A run's link whose artifact is gone is named with the command that makes it again, never taken for a stage that never ran."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

import pseudo_label
from adapt.core.artifacts import ArtifactStore, artifact_at, open_artifact
from adapt.core.errors import CheckpointError
from pipelines.stages import report
from pipelines.stages.models import input_place, open_model_artifact
from pipelines.stages.run import Run
from pipelines.stages.up_to_date import belonging
from pipelines.walk.tables import accuracy_table, teachers_table
from pipelines.walk.verdict import verdict_on
from tests.support.command_line import composed
from tests.support.stores import made_in


def run_at(root: Path) -> Run:
    return Run(composed("report", [f"run.dir={root}", "run.name=news", "tasks=[demo_reviews]"]))


def test_a_stage_that_needs_what_is_gone_says_which_command_makes_it(tmp_path: Path) -> None:
    shutil.rmtree(made_in(tmp_path, "evaluate", link="news/evaluate/demo_reviews").path)
    run = run_at(tmp_path)
    [task] = run.tasks()
    again = "python -m pipelines.evaluate run.name=news task=demo_reviews"
    for act in (run.require, run.find):
        with pytest.raises(CheckpointError, match=f"its artifact is gone .*which is not there.; run `{again}` again"):
            act("evaluate", task)


def test_a_report_refuses_to_leave_out_what_is_gone(tmp_path: Path) -> None:
    shutil.rmtree(made_in(tmp_path, "continue_pretrain", link="news/continue_pretrain/demo_reviews").path)
    with pytest.raises(CheckpointError, match="continue_pretrain/demo_reviews: its artifact is gone"):
        report._artifacts(run_at(tmp_path))


def test_the_end_of_a_walk_leaves_out_what_is_gone_and_says_so_once(tmp_path: Path, caplog: pytest.LogCaptureFixture) -> None:
    for stage in ("pseudo_label", "continue_pretrain", "evaluate"):
        shutil.rmtree(made_in(tmp_path, stage, link=f"news/{stage}/demo_reviews").path)
    run = run_at(tmp_path)
    with caplog.at_level("INFO", logger="pipelines"):
        found, left_out = belonging(run, "demo_reviews")
        assert (accuracy_table({"demo_reviews": found}), teachers_table({"demo_reviews": found})) == ("", "")
        assert verdict_on(found) is None
        assert not left_out
    said = [record.message for record in caplog.records if "its artifact is gone" in record.message]
    assert len(said) == 3
    assert any(line.endswith("run `python -m pipelines.evaluate run.name=news task=demo_reviews` again") for line in said)


def test_a_checkpoint_and_an_export_whose_artifact_is_gone_are_said_to_be_so(tmp_path: Path) -> None:
    shutil.rmtree(made_in(tmp_path, "export", link="news/export/topics").path)
    link = tmp_path / "news" / "export" / "topics"
    for act in (open_model_artifact, pseudo_label.load, artifact_at):
        with pytest.raises(CheckpointError, match="topics: its artifact is gone"):
            act(link)


def test_an_input_is_found_where_the_store_was_moved_to_and_another_ones_result_is_not_it(tmp_path: Path) -> None:
    base = made_in(tmp_path / "runs", "pretrain")
    adapted = made_in(tmp_path / "runs", "continue_pretrain", base=base)
    assert input_place(adapted, "base") == base.path
    (tmp_path / "runs").rename(tmp_path / "moved")
    place = tmp_path / "moved" / "store" / "continue_pretrain" / adapted.path.name
    moved = open_artifact(place)
    assert input_place(moved, "base") == tmp_path / "moved" / "store" / "pretrain" / base.path.name
    shutil.rmtree(tmp_path / "moved" / "store" / "pretrain")
    assert input_place(moved, "base") is None
    assert input_place(moved, "labels") is None


def test_an_input_is_recorded_by_its_whole_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    base = made_in(Path("runs"), "pretrain")
    adapted = made_in(Path("runs"), "continue_pretrain", base=base)
    assert Path(adapted.inputs["base"].path) == tmp_path / "runs" / "store" / "pretrain" / base.path.name
    assert ArtifactStore(Path("runs")).link("news/pretrain", base).resolve() == Path(adapted.inputs["base"].path)
