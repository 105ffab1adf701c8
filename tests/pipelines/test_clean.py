"""`clean` shows before it removes, says what is kept for whom, and names links whose artifact is gone with the command to run."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapt.core.artifacts import ArtifactStore, StageKey
from adapt.core.errors import ConfigError
from adapt.core.store_locks import let_go
from adapt.core.store_places import WORK, beside
from pipelines.stages.contract import Workshop
from pipelines.tools.clean import show
from tests.support.command_line import composed
from tests.support.stores import made_in


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    let_go()


def cleaned(root: Path, capsys: pytest.CaptureFixture[str], *words: str) -> str:
    let_go()
    show(composed("clean", [f"run.dir={root}", *words]), None)
    return capsys.readouterr().out


def test_the_first_command_shows_and_the_second_removes(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    root = tmp_path / "runs"
    kept, old = made_in(root, "export", link="news/export/topics"), made_in(root, "export", 1)
    work = beside(kept.path.with_name("0" * 20), WORK)
    work.mkdir()
    said = cleaned(root, capsys)
    assert "news/export/topics" in said
    assert "no run links to it" in said
    assert "the same command would go on from it" in said
    assert "2 things can go" in said
    assert said.endswith("; clean.remove=true removes what is listed\n")
    assert old.path.exists()
    assert work.exists()
    said = cleaned(root, capsys, "clean.remove=true", "clean.kinds=[unlinked]")
    assert "1 thing removed" in said
    assert not old.path.exists()
    assert work.exists()
    assert "1 thing removed" in cleaned(root, capsys, "clean.remove=true")
    assert "0 things can go, 0 bytes\n" in cleaned(root, capsys)
    assert kept.path.exists()


def test_what_is_younger_than_asked_for_is_left(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    old, young = made_in(tmp_path, "export"), made_in(tmp_path, "export", 1)
    os.utime(old.path / "manifest.json", (0, 0))
    said = cleaned(tmp_path, capsys, "clean.remove=true", "clean.older_than_days=1")
    assert "left, by clean.kinds or clean.older_than_days, or begun meanwhile: 1" in said
    assert not old.path.exists()
    assert young.path.exists()


def test_links_whose_artifact_is_gone_are_named_with_the_command_that_makes_it(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for stage, link in (("export", "news/long/export/topics"), ("pretrain", "news/pretrain"), ("score", "news/score/topics")):
        shutil.rmtree(made_in(tmp_path, stage, link=link).path)
    said = cleaned(tmp_path, capsys)
    assert "news/long/export/topics: run `python -m pipelines.export run.name=news/long task=topics` again" in said
    assert "news/pretrain: run `python -m pipelines.pretrain run.name=news` again" in said
    assert "news/score/topics: is made again by the stage that needs it" in said


def test_places_that_are_not_there_are_refused_before_anything_is_removed(tmp_path: Path) -> None:
    old = made_in(tmp_path / "runs", "export")
    for words, said in (
        ([f"run.dir={tmp_path}/rums"], "rums has no store"),
        ([f"run.dir={tmp_path}/runs", "clean.keep_for=[/typo]"], "clean.keep_for: /typo is no directory"),
    ):
        with pytest.raises(ConfigError, match=said):
            show(composed("clean", [*words, "clean.remove=true"]), None)
    assert old.path.exists()


def test_what_two_stages_need_under_one_name_is_kept_for_both(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    shop = Workshop(ArtifactStore(tmp_path), "news", force=False)
    places = []
    for stage, config in (("pseudo_label", 80), ("evaluate", 40)):
        shop.asked_by = stage
        key = StageKey(stage="score", config=config)
        places.append(shop.produce(key, lambda result, work: {}, "score/topics/unlabeled-pretrain").path)
    assert "0 things removed" in cleaned(tmp_path, capsys, "clean.remove=true")
    assert all(place.is_dir() for place in places)
    shop.produce(StageKey(stage="score", config=20), lambda result, work: {}, "score/topics/unlabeled-pretrain")
    assert "1 thing removed" in cleaned(tmp_path, capsys, "clean.remove=true"), "what a stage needed before goes"
