"""A directory is complete if and only if it has a manifest, whatever interrupted its making."""

from __future__ import annotations

import json
import multiprocessing
import os
import time
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from adapt.core import artifacts
from adapt.core.artifacts import MANIFEST, Artifact, ArtifactStore, InputRef, StageKey, is_artifact, open_artifact, write_atomically
from adapt.core.errors import CheckpointError, ConfigError

KEY = StageKey(stage="cooking", config={"salt": 1})


class Killed(BaseException):
    """Stands for a kill: nothing may catch it."""


def build_text(text: str) -> Any:
    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (result / "sub").mkdir()
        (result / "sub" / "dish.txt").write_text(text, encoding="utf-8")
        (result / "empty").write_bytes(b"")
        return {"score": 0.5}

    return build


def kill(*_: object) -> Any:
    raise Killed


def never_build(result: Path, work: Path) -> Mapping[str, Any]:
    raise AssertionError("was built although it was there")


def make(store: ArtifactStore, key: StageKey = KEY, text: str = "soup", *, force: bool = False) -> Artifact:
    return store.produce(key, build_text(text), force=force, created=lambda: "today")[0]


def found(store: ArtifactStore) -> Artifact:
    """Take what is there; building anything is an error."""
    return store.produce(KEY, never_build, force=False, created=lambda: "later")[0]


def beside(place: Path, ending: str) -> Path:
    return place.with_name(f".{place.name}.{ending}")


def dish(artifact: Artifact) -> str:
    return artifact.file("sub/dish.txt").read_text(encoding="utf-8")


@pytest.fixture
def store(tmp_path: Path) -> ArtifactStore:
    return ArtifactStore(tmp_path / "runs")


def test_an_artifact_says_what_it_was_made_from(store: ArtifactStore) -> None:
    first = make(store)
    second = make(store, StageKey(stage="eating", config={"n": 2}, inputs={"food": first}, files={"menu": "abc"}))
    opened = open_artifact(second.path)
    assert opened == second
    with pytest.raises(CheckpointError, match="has no dessert.txt.*'eating'"):
        opened.file("dessert.txt")
    assert (opened.stage, opened.config, opened.metrics, opened.created) == ("eating", {"n": 2}, {"score": 0.5}, "today")
    assert opened.inputs["food"] == InputRef(path=str(first.path), digest=first.digest)
    assert json.loads((second.path / MANIFEST).read_text())["input_files"] == {"menu": "abc"}


def test_a_second_produce_builds_nothing(store: ArtifactStore) -> None:
    first, was_built = store.produce(KEY, build_text("soup"), force=False, created=lambda: "today")
    again, was_built_again = store.produce(KEY, never_build, force=False, created=lambda: "tomorrow")
    assert (was_built, was_built_again, again) == (True, False, first)


def test_force_builds_again_and_replaces(store: ArtifactStore) -> None:
    first = make(store)
    second = make(store, text="stew", force=True)
    assert second.path == first.path
    assert dish(second) == "stew"
    assert second.digest != first.digest


def test_only_the_result_and_the_lock_stay_behind(store: ArtifactStore) -> None:
    artifact = make(store)
    make(store, force=True)
    left = {p.name for p in artifact.path.parent.iterdir()}
    assert left == {artifact.path.name, f".{artifact.path.name}.lock"}


def half_a_build(result: Path, work: Path) -> Any:
    (result / "half").write_text("half")
    raise Killed


def test_a_build_that_raises_leaves_nothing_complete(store: ArtifactStore) -> None:
    with pytest.raises(Killed):
        store.produce(KEY, half_a_build, force=False, created=lambda: "today")
    assert not list(store.root.rglob(MANIFEST)) and not store.place(KEY).exists()
    assert not (make(store).path / "half").exists()


def test_a_forced_build_that_raises_leaves_the_old_artifact_whole(store: ArtifactStore) -> None:
    first = make(store)
    with pytest.raises(Killed):
        store.produce(KEY, half_a_build, force=True, created=lambda: "today")
    assert open_artifact(first.path) == first
    assert found(store) == first


def test_the_work_directory_outlives_a_kill_and_goes_after_success(store: ArtifactStore) -> None:
    works: list[Path] = []

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        works.append(work)
        if not (work / "progress").exists():
            (work / "progress").write_text("half way")
            raise Killed
        return {}

    with pytest.raises(Killed):
        store.produce(KEY, build, force=False, created=lambda: "today")
    store.produce(KEY, build, force=False, created=lambda: "today")
    assert len(works) == 2
    assert not works[0].exists()


def test_a_forced_build_starts_from_an_empty_work_directory(store: ArtifactStore) -> None:
    first = make(store)
    work = beside(first.path, "work")
    work.mkdir()
    (work / "stale").write_text("stale")

    def build(result: Path, work: Path) -> Mapping[str, Any]:
        return {"found": len(list(work.iterdir()))}

    assert store.produce(KEY, build, force=True, created=lambda: "today")[0].metrics == {"found": 0}


def replace_by_directory(file: Path) -> None:
    file.unlink()
    file.mkdir()


@pytest.mark.parametrize(
    "damage", [lambda f: f.write_text("soap"), lambda f: f.write_text("so"), Path.unlink, replace_by_directory]
)
def test_a_changed_truncated_or_missing_file_is_refused_by_name(store: ArtifactStore, damage: Callable[[Path], None]) -> None:
    artifact = make(store)
    damage(artifact.file("sub/dish.txt"))
    with pytest.raises(CheckpointError, match=r"dish\.txt"):
        open_artifact(artifact.path)
    with pytest.raises(CheckpointError, match=r"dish\.txt"):
        found(store)
    assert dish(make(store, force=True)) == "soup"


@pytest.mark.parametrize("version", [artifacts.SCHEMA_VERSION + 1, artifacts.SCHEMA_VERSION - 1, None, "1"])
def test_another_schema_is_refused(store: ArtifactStore, version: object) -> None:
    place = make(store).path / MANIFEST
    place.write_text(json.dumps({**json.loads(place.read_text()), "schema_version": version}))
    with pytest.raises(CheckpointError, match="schema version"):
        open_artifact(place.parent)


def test_a_directory_without_a_whole_manifest_is_refused(tmp_path: Path) -> None:
    with pytest.raises(CheckpointError, match="not a complete artifact"):
        open_artifact(tmp_path)
    (tmp_path / MANIFEST).write_text('{"schema_version": ')
    with pytest.raises(CheckpointError, match="not valid JSON"):
        open_artifact(tmp_path)


def lay_out(store: ArtifactStore, **dishes: str) -> None:
    """Put whole artifacts where a kill may have left them: `final`, `old` or `new`."""
    place = store.place(KEY)
    for ending, text in dishes.items():
        made = make(ArtifactStore(store.root / "other" / ending), text=text)
        target = place if ending == "final" else beside(place, ending)
        target.parent.mkdir(parents=True, exist_ok=True)
        made.path.rename(target)


SWAPS = [({"old": "soup", "new": "stew"}, "stew"), ({"old": "soup"}, "soup"), ({"new": "stew"}, "stew")]


@pytest.mark.parametrize(("left", "expected"), [*SWAPS, ({"final": "stew", "old": "soup"}, "stew")])
def test_an_interrupted_swap_is_finished_or_undone(store: ArtifactStore, left: dict[str, str], expected: str) -> None:
    lay_out(store, **left)
    assert dish(found(store)) == expected
    assert not beside(store.place(KEY), "old").exists()


def test_a_swap_whose_new_result_is_incomplete_is_undone(store: ArtifactStore) -> None:
    lay_out(store, old="soup", new="stew")
    (beside(store.place(KEY), "new") / MANIFEST).unlink()
    assert dish(found(store)) == "soup"


@pytest.mark.parametrize(("owner", "name"), [(artifacts, "write_manifest"), (artifacts, "swap_in"), (Path, "rename")])
def test_a_kill_at_the_end_of_a_forced_build_leaves_a_whole_artifact(
    store: ArtifactStore, monkeypatch: pytest.MonkeyPatch, owner: object, name: str
) -> None:
    make(store)
    with monkeypatch.context() as patch:
        patch.setattr(owner, name, kill)
        with pytest.raises(Killed):
            make(store, text="stew", force=True)
    assert dish(found(store)) == "soup"


def test_a_link_follows_its_artifact_and_is_replaced_in_one_step(store: ArtifactStore, monkeypatch: pytest.MonkeyPatch) -> None:
    first, second = make(store), make(store, StageKey(stage="cooking", config={"salt": 2}), "stew")
    place = store.link("run/dish", first)
    assert place.is_symlink()
    assert open_artifact(place.resolve()) == first
    with monkeypatch.context() as patch:
        patch.setattr(Path, "replace", kill)
        with pytest.raises(Killed):
            store.link("run/dish", second)
    assert place.resolve() == first.path.resolve()
    assert store.link("run/dish", second).resolve() == second.path.resolve()
    assert [p.name for p in place.parent.iterdir()] == ["dish"]


def test_a_store_may_be_moved_with_its_links(store: ArtifactStore) -> None:
    place = store.link("run/dish", make(store))
    store.root.rename(store.root.with_name("moved"))
    assert is_artifact(store.root.with_name("moved") / place.relative_to(store.root))


def test_a_link_never_replaces_a_real_directory(store: ArtifactStore) -> None:
    (store.root / "run" / "dish").mkdir(parents=True)
    with pytest.raises(ConfigError, match="is a directory of something else"):
        store.link("run/dish", make(store))
    assert not (store.root / "run" / "dish").is_symlink()


def test_a_place_below_a_file_is_refused_in_one_clear_line(store: ArtifactStore) -> None:
    store.root.mkdir(parents=True, exist_ok=True)
    (store.root / "store").write_text("")
    for attempt in (lambda: make(store), lambda: ArtifactStore(store.root / "store" / "runs")):
        with pytest.raises(ConfigError, match="cannot be written"):
            attempt()


def _build_slowly(root: Path, log: Path, both_ready: Any) -> None:
    def build(result: Path, work: Path) -> Mapping[str, Any]:
        (log / f"built-by-{os.getpid()}").touch()
        time.sleep(0.1)
        return build_text("soup")(result, work)

    both_ready.wait()
    ArtifactStore(root).produce(KEY, build, force=False, created=lambda: "today")


def test_two_processes_with_one_key_build_once(store: ArtifactStore, tmp_path: Path) -> None:
    spawn = multiprocessing.get_context("spawn")
    both_ready = spawn.Barrier(2, timeout=20)
    processes = [spawn.Process(target=_build_slowly, args=(store.root, tmp_path, both_ready)) for _ in range(2)]
    for process in processes:
        process.start()
    for process in processes:
        process.join(timeout=30)
        assert process.exitcode == 0
    assert len(list(tmp_path.glob("built-by-*"))) == 1
    assert dish(found(store)) == "soup"


def test_the_key_changes_with_all_that_a_stage_reads_and_with_nothing_else(tmp_path: Path, store: ArtifactStore) -> None:
    soup, stew = make(store), make(store, StageKey(stage="cooking", config={"salt": 2}), "stew")
    base: dict[str, Any] = {"stage": "eating", "config": {"n": 1, "m": 2}, "inputs": {"food": soup}, "files": {"menu": "a"}}
    changes: list[dict[str, Any]] = [{"stage": "tasting"}, {"config": {"n": 2, "m": 2}}, {"files": {"menu": "b"}}, {"files": {}}]
    changes += [{"inputs": {"food": stew}}, {"inputs": {"meal": soup}}, {"inputs": {}}, {"version": 2}]
    keys = [StageKey(**{**base, **change}).digest() for change in [{}, *changes]]
    assert len(set(keys)) == len(keys)
    moved = make(ArtifactStore(tmp_path / "elsewhere"))
    same = {"config": {"m": 2, "n": 1}, "inputs": {"food": moved}}
    assert StageKey(**{**base, **same}).digest() == keys[0]


def test_an_atomic_write_leaves_the_old_text_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    place = tmp_path / "text"
    write_atomically(place, "旧")
    with monkeypatch.context() as patch:
        patch.setattr(os, "fsync", kill)
        with pytest.raises(Killed):
            write_atomically(place, "新")
    assert place.read_text(encoding="utf-8") == "旧"
    write_atomically(place, "新")
    assert place.read_text(encoding="utf-8") == "新"
