"""An export at a place of one's own: whole or not there, never over something else, and of use without the runs."""

from __future__ import annotations

import hashlib
import json
import shutil
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import pytest

import pseudo_label
from adapt.core import artifacts
from adapt.core.artifacts import Artifact, ArtifactStore, StageKey, open_artifact
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.store_locks import let_go
from pipelines.stages import delivery
from pipelines.stages.delivery import Delivery
from tests.support.command_line import FP32_SCORES, SMALLEST, refused


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    let_go()


def export_of(root: Path, words: str = "one", task: str = "topics", stage: str = "export") -> Artifact:
    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (result / "sub").mkdir()
        (result / "sub" / "weights").write_text(words, encoding="utf-8")
        (result / "predictor.json").write_text("{}", encoding="utf-8")
        (result / "README.md").write_text(words, encoding="utf-8")
        return {"task": task}

    return ArtifactStore(root).produce(StageKey(stage=stage, config=words), build, force=False, created=lambda: "now")[0]


def to(place: Path, root: Path, task: str = "topics", *, is_point: bool = False) -> Delivery:
    return Delivery(task=task, place=place, root=root, is_point=is_point)


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "runs"


@pytest.fixture
def place(tmp_path: Path) -> Path:
    return tmp_path / "exports" / "topics"


def test_an_export_is_copied_once_replaced_by_a_newer_one_and_needs_no_store(root: Path, place: Path) -> None:
    first, second = export_of(root), export_of(root, "two")
    assert to(place, root).make(first)
    assert not to(place, root).make(first)
    (place / "README.md").write_text("my own words", encoding="utf-8")
    assert not to(place, root).make(first), "what is for readers may be edited"
    assert to(place, root).make(second)
    shutil.rmtree(root)
    assert open_artifact(place).digest == second.digest
    assert not any(path.is_symlink() for path in place.rglob("*"))
    assert [path.name for path in place.parent.iterdir()] == ["topics"], "nothing is left beside it"
    (place / "sub" / "weights").write_text("owt", encoding="utf-8")
    with pytest.raises(CheckpointError, match=r"weights: its content differs .* copy it again"):
        open_artifact(place)


def test_a_damaged_copy_is_made_again(root: Path, place: Path) -> None:
    export = export_of(root)
    to(place, root).make(export)
    (place / "sub" / "weights").unlink()
    assert to(place, root).make(export)
    assert open_artifact(place).digest == export.digest


def test_a_copy_that_was_killed_goes_on_and_the_older_one_stays_till_then(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = export_of(root), export_of(root, "two")
    to(place, root).make(first)
    copied = delivery._copied
    calls: list[str] = []

    def until(source: Path, copy: Path) -> str:
        calls.append(source.name)
        if source.name == "weights":
            copy.write_text("t", encoding="utf-8")
            raise KeyboardInterrupt
        return copied(source, copy)

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(delivery, "_copied", until)
        to(place, root).make(second)
    assert open_artifact(place).digest == first.digest
    done = calls[:-1]
    assert done

    def counted(source: Path, copy: Path) -> str:
        calls.append(source.name)
        return copied(source, copy)

    monkeypatch.setattr(delivery, "_copied", counted)
    assert to(place, root).make(second)
    assert not set(done) & set(calls[len(done) + 1 :]), "what was copied is not copied again"
    assert open_artifact(place).digest == second.digest


def test_a_kill_between_two_renames_is_mended(root: Path, place: Path) -> None:
    first, second = export_of(root), export_of(root, "two")
    to(place, root).make(first)
    place.rename(place.with_name(".topics.old"))
    assert not to(place, root).make(first)
    place.rename(place.with_name(".topics.old"))
    assert to(place, root).make(second)
    assert open_artifact(place).digest == second.digest


def test_a_source_whose_bytes_changed_is_refused_and_the_older_copy_stays(
    root: Path, place: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    first, second = export_of(root), export_of(root, "two")
    to(place, root).make(first)
    (second.path / "sub" / "weights").write_text("owt", encoding="utf-8")
    monkeypatch.setattr(artifacts, "_ALWAYS_HASHED_BYTES", 0)  # as for large files
    with pytest.raises(CheckpointError, match="weights: its content differs from its manifest"):
        to(place, root).make(second)
    assert open_artifact(place).digest == first.digest


def test_places_that_hold_something_else_are_refused_and_left_as_they_are(root: Path, tmp_path: Path) -> None:
    export, other = export_of(root), export_of(root, task="reviews", words="three")
    base = export_of(root, stage="pretrain", words="four")
    for name, fill, said in [
        ("notes", lambda at: (at / "notes.txt").write_text("mine"), r"holds something else \(notes.txt\)"),
        ("other", lambda at: shutil.copytree(other.path, at, dirs_exist_ok=True), "holds the export of task 'reviews'"),
        ("base", lambda at: shutil.copytree(base.path, at, dirs_exist_ok=True), "holds a result of stage pretrain"),
        ("mixed", lambda at: (shutil.copytree(export.path, at, dirs_exist_ok=True), (at / "mine").touch()), r"else \(mine\)"),
    ]:
        at = tmp_path / name
        at.mkdir()
        fill(at)
        before = sorted(at.rglob("*"))
        with pytest.raises(ConfigError, match=said):
            to(at, root).make(export)
        assert sorted(at.rglob("*")) == before
    (tmp_path / "file").touch()
    for at, said in [
        (tmp_path / "file", "is a file"),
        (root, "belongs to the runs"),
        (tmp_path, "belongs to the runs"),
        (ArtifactStore(root).link("mine/export/topics", export), "belongs to the runs"),
        (tmp_path / "file" / "below", "cannot be written"),
    ]:
        with pytest.raises(ConfigError, match=said):
            to(at, root).check()


def test_points_of_a_sweep_do_not_replace_each_other(root: Path, place: Path) -> None:
    first, second = export_of(root), export_of(root, "two")
    assert to(place, root, is_point=True).make(first)
    assert not to(place, root, is_point=True).make(first)
    with pytest.raises(ConfigError, match="another export of 'topics', perhaps another point's"):
        to(place, root, is_point=True).make(second)
    assert open_artifact(place).digest == first.digest


def test_a_link_is_followed_and_an_empty_directory_filled(root: Path, place: Path, tmp_path: Path) -> None:
    (tmp_path / "disk").mkdir()
    place.parent.mkdir()
    place.symlink_to(tmp_path / "disk")
    export = export_of(root)
    assert to(place, root).make(export)
    assert place.is_symlink()
    assert open_artifact(tmp_path / "disk").digest == export.digest


def test_a_runs_export_is_written_where_it_is_wanted_and_answers_without_the_runs(
    copied_run: Path, tmp_path: Path, run_here: Callable[[str, list[str]], str], monkeypatch: pytest.MonkeyPatch,
    capsys: pytest.CaptureFixture[str],
) -> None:  # fmt: skip
    place, rows = tmp_path / "mine", [{"sentence": "很好，下次还来。"}, {"sentence": "太差了。"}]
    line = [*SMALLEST, "task=demo_reviews", f"run.dir={copied_run}", f"export.output={place}"]
    (tmp_path / "taken").mkdir()
    (tmp_path / "taken" / "notes").touch()
    words = ["export.output", "holds something else (notes)"]
    refused("run", [*line[:-1], f"export.output={tmp_path}/taken", "stages=[evaluate,export]"], words, monkeypatch, capsys)
    assert f"written to {place}" in run_here("export", line)
    assert f"unchanged at {place}" in run_here("export", line)
    expected = pseudo_label.load(copied_run / "demo" / "export" / "demo_reviews", FP32_SCORES).predict(rows)
    shutil.rmtree(copied_run)
    assert pseudo_label.load(place, FP32_SCORES).predict(rows) == expected
    (tmp_path / "rows.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows), encoding="utf-8")
    output = tmp_path / "out.jsonl"
    run_here("predict", [f"checkpoint={place}", f"input={tmp_path}/rows.jsonl", f"output={output}", f"run.dir={tmp_path}/new"])
    assert [json.loads(text)["prediction"] for text in output.read_text().splitlines()] == [one.label for one in expected]
    card = (place / "README.md").read_text(encoding="utf-8")
    assert f"`{json.loads((place / 'provenance.json').read_text())['base']}`" in card
    assert "| dev | adapted | combined |" in card
    assert "Compared with the best without adapting: " in card
    assert "predictor.predict([{'sentence': '...'}])" in card
    with (place / "predictor.json").open("a", encoding="utf-8") as stream:
        stream.write(" ")
    with pytest.raises(CheckpointError, match=r"predictor.json: has \d+ bytes, its manifest says"):
        pseudo_label.load(place)


def test_weights_that_lack_a_few_bytes_are_refused_by_load(tiny_export: Path, tmp_path: Path) -> None:
    place = Path(shutil.copytree(tiny_export, tmp_path / "copy"))
    artifacts.write_manifest(place, StageKey(stage="export", config={}), {}, "now")
    digest = hashlib.sha256((place / "predictor.json").read_bytes()).hexdigest()
    assert pseudo_label.load(place, FP32_SCORES).predict([{"sentence": "好"}])
    text = (place / "predictor.json").read_text(encoding="utf-8")
    (place / "predictor.json").write_text(text.replace('"n_fitted": 0', '"n_fitted": 1'), encoding="utf-8")
    assert hashlib.sha256((place / "predictor.json").read_bytes()).hexdigest() != digest
    with pytest.raises(CheckpointError, match="predictor.json: its content differs"):
        pseudo_label.load(place, FP32_SCORES)
    (place / "predictor.json").unlink()
    (place / "config.json").unlink()
    with pytest.raises(CheckpointError, match=r"config.json, predictor.json is missing; .* copy it again"):
        pseudo_label.load(place, FP32_SCORES)
