"""What nobody needs is found and removed; what a run, another run directory or a process needs is left, at any moment."""

from __future__ import annotations

import multiprocessing
import os
import shutil
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from adapt.core import store_removal
from adapt.core.artifacts import Artifact, ArtifactStore, open_artifact, open_linked
from adapt.core.store_locks import let_go, locked, tried
from adapt.core.store_places import GONE, LOCK, NEW, OLD, WORK, beside
from adapt.core.store_removal import remove
from adapt.core.store_survey import Removable, Unneeded, survey
from tests.support.stores import made_in


@pytest.fixture(autouse=True)
def _nothing_held() -> Iterator[None]:
    yield
    let_go()


@pytest.fixture
def root(tmp_path: Path) -> Path:
    return tmp_path / "project" / "runs"


def cleaned(root: Path, others: tuple[Path, ...] = ()) -> list[str]:
    """Remove everything that can go, as a process that holds nothing would; return what went, below the store."""
    let_go()
    _, gone = remove(root, lambda: survey(root, others), lambda one: True)
    return sorted(str(one.place.relative_to(root.resolve())).removeprefix("store/") for one in gone)


def name(artifact: Artifact) -> str:
    return "/".join(artifact.path.parts[-2:])


def test_what_no_run_links_to_goes_and_what_linked_artifacts_were_made_from_stays(root: Path) -> None:
    base = made_in(root, "pretrain")
    labels = made_in(root, "pseudo_label", base=base)
    adapted = made_in(root, "continue_pretrain", link="mine/continue_pretrain/topics", base=base, labels=labels)
    old = made_in(root, "continue_pretrain", 1, base=base)
    let_go()
    found = survey(root)
    assert [name(adapted), name(base), name(labels)] == [one.name for one in found.kept]
    assert found.kept[0].links == ("mine/continue_pretrain/topics",)
    assert set(found.kept[1].readers) == {name(adapted), name(labels)}
    assert [(one.kind, one.place) for one in found.removable] == [(Unneeded.UNLINKED, old.path)]
    assert found.removable[0].n_bytes == sum(file.stat().st_size for file in old.path.iterdir())
    assert cleaned(root) == [name(old)]
    assert not old.path.exists()
    assert not beside(old.path, LOCK).exists()
    assert open_artifact(adapted.path) == adapted
    assert cleaned(root) == []


def test_links_through_moved_and_linked_run_directories_count(root: Path, tmp_path: Path) -> None:
    big = tmp_path / "big" / "mine"
    big.mkdir(parents=True)
    root.mkdir(parents=True)
    (root / "mine").symlink_to(big)
    kept = made_in(root, "export", link="mine/export/topics")
    assert (root / "mine" / "export" / "topics").resolve() == kept.path, "a link in a directory that is itself a link leads home"
    assert cleaned(root) == []


def test_a_store_that_another_run_directory_shares_or_reads_is_left_to_it(root: Path, tmp_path: Path) -> None:
    base, shared, free = made_in(root, "pretrain"), made_in(root, "export"), made_in(root, "export", 1)
    other, sharing = tmp_path / "elsewhere" / "a" / "runs", tmp_path / "far" / "a" / "b" / "c" / "runs"
    made_in(other, "continue_pretrain", link="mine/continue_pretrain/topics", base=base)
    sharing.mkdir(parents=True)
    (sharing / "store").symlink_to(root / "store")
    ArtifactStore(sharing).link("theirs/export/topics", shared)
    assert cleaned(root) == [name(free)]
    shutil.rmtree(sharing / "theirs")
    assert cleaned(root) == [name(shared)]
    other.rename(other.with_name("unmounted"))
    let_go()
    found = survey(root)
    assert [one.name for one in found.kept] == [name(base)]
    assert "not there now" in found.notes[0]


def test_a_link_beside_the_run_directory_and_a_copy_in_a_named_place_keep_what_they_need(root: Path, tmp_path: Path) -> None:
    base = made_in(root, "pretrain")
    served, copied = made_in(root, "export"), made_in(root, "continue_pretrain", base=base)
    shutil.copytree(copied.path, tmp_path / "far" / "copy")
    (root.parent / "serving").mkdir()
    (root.parent / "serving" / "model").symlink_to(served.path)
    assert cleaned(root, (tmp_path / "far",)) == [name(copied)]
    assert cleaned(root) == [name(base)]
    assert served.path.exists()


@pytest.mark.parametrize("ending", [NEW, OLD])
def test_a_result_between_the_two_renames_of_a_swap_counts_as_there(root: Path, ending: str) -> None:
    artifact = made_in(root, "export", link="mine/export/topics")
    artifact.path.rename(beside(artifact.path, ending))
    assert survey(root).dangling == []
    assert cleaned(root) == []
    assert made_in(root, "export") == artifact


def test_interrupted_work_and_litter_go_and_are_told_apart(root: Path) -> None:
    artifact = made_in(root, "pretrain", link="mine/pretrain")
    key = artifact.path.with_name("0" * 20)
    for place in (beside(key, WORK), beside(key, NEW), beside(artifact.path, f".77{GONE}"), artifact.path.with_name("1" * 20)):
        place.mkdir()
        (place / "state").write_text("x" * 100, encoding="utf-8")
    beside(artifact.path.with_name("2" * 20), LOCK).touch()
    (root / "mine" / ".pretrain.123").symlink_to(artifact.path)
    (root / ".input-abc.csv").write_text("text\n", encoding="utf-8")
    (root / "mine" / "notes.txt").write_text("mine", encoding="utf-8")
    (artifact.path.parent / "README").write_text("not of the store", encoding="utf-8")
    let_go()
    kinds = {one.place.name: one.kind for one in survey(root).removable}
    assert kinds == {
        f".{key.name}{WORK}": Unneeded.INTERRUPTED,
        f".{key.name}{NEW}": Unneeded.INTERRUPTED,
        f".{artifact.path.name}.77{GONE}": Unneeded.LITTER,
        "1" * 20: Unneeded.LITTER,
        f".{'2' * 20}{LOCK}": Unneeded.LITTER,
        ".pretrain.123": Unneeded.LITTER,
        ".input-abc.csv": Unneeded.LITTER,
    }
    assert len(cleaned(root)) == 7
    assert survey(root).removable == []
    assert (root / "mine" / "notes.txt").exists()
    assert (artifact.path.parent / "README").exists()


def test_what_a_process_reads_or_builds_is_left_and_goes_when_it_ended(root: Path) -> None:
    read, built = made_in(root, "export"), made_in(root, "export", 1)
    work = beside(built.path, WORK)
    shutil.rmtree(built.path)
    work.mkdir()
    let_go()
    open_artifact(read.path)
    with locked(beside(built.path, LOCK)):
        found, gone = remove(root, lambda: survey(root), lambda one: True)
    assert gone == []
    assert sorted(one.place.name for one in found.in_use) == sorted([read.path.name, work.name])
    assert cleaned(root) == sorted([name(read), f"export/{work.name}"])


def test_what_is_taken_between_looking_and_removing_is_left(root: Path) -> None:
    artifact = made_in(root, "export")
    let_go()

    def look() -> Any:
        found = survey(root)
        open_artifact(artifact.path)
        return found

    assert remove(root, look, lambda one: True)[1] == []
    assert open_artifact(artifact.path) == artifact


def test_a_kill_while_it_removes_leaves_nothing_that_looks_whole(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    artifact = made_in(root, "export")
    let_go()

    def half(place: Path) -> None:
        (place / "weights").unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch, pytest.raises(KeyboardInterrupt):
        patch.setattr(store_removal, "_delete", lambda place: half(place) if place.is_dir() else None)
        remove(root, lambda: survey(root), lambda one: True)
    assert not artifact.path.exists()
    assert made_in(root, "export") == artifact, "it is made anew"
    ArtifactStore(root).link("mine/export/topics", artifact)
    assert [path.rpartition(".")[2] for path in cleaned(root)] == [GONE[1:]]


def test_a_file_that_cannot_be_removed_is_one_line(root: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    made_in(root, "export")
    let_go()

    def refuse(place: Path) -> None:
        raise PermissionError(13, "Permission denied", str(place))

    monkeypatch.setattr(shutil, "rmtree", refuse)
    with pytest.raises(Exception, match=r"cannot be (written|removed) \(Permission denied\)") as said:
        remove(root, lambda: survey(root), lambda one: True)
    assert type(said.value).__name__ == "ConfigError"


def _build_and_link(root: Path, rounds: int) -> None:
    for n in range(rounds):
        artifact = made_in(root, "race", n % 3, link="mine/race")
        assert (artifact.path / "weights").read_text(encoding="utf-8") == f"race {n % 3}"
        open_linked(root / "mine" / "race")
        let_go()
    os._exit(0)


def test_cleaning_beside_builders_of_the_same_keys_never_costs_them_a_result(root: Path) -> None:
    (root / "store").mkdir(parents=True)
    context = multiprocessing.get_context("fork")
    builders = [context.Process(target=_build_and_link, args=(root, 15)) for _ in range(2)]
    for builder in builders:
        builder.start()
    n_gone = 0
    while any(builder.is_alive() for builder in builders):
        found: list[Removable] = remove(root, lambda: survey(root), lambda one: True)[1]
        n_gone += len(found)
    assert [builder.exitcode for builder in builders] == [0, 0]
    assert n_gone > 0
    open_artifact((root / "mine" / "race").resolve())


def test_a_lock_of_a_file_that_was_removed_while_it_was_waited_for_is_none(tmp_path: Path) -> None:
    lock = tmp_path / ".key.lock"
    with locked(lock):
        lock.unlink()
        with locked(lock), tried(lock) as is_mine:
            assert not is_mine, "the second has the lock of the new file"
