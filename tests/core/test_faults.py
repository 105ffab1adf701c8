"""Faults of the machine in words: what libraries raise, the room that is asked for, and limits on memory and files."""

from __future__ import annotations

import errno
import os
import resource
from collections.abc import Iterator
from pathlib import Path

import pytest

from adapt.core.errors import ConfigError
from adapt.core.faults import advice_on, fault_in, faults_in_words, need_room, refuse_closed, said_bytes, writable
from adapt.core.limits import _of_groups, largest_file


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (OSError(errno.ENOSPC, os.strerror(errno.ENOSPC)), ["cannot be written (No space left on device", "free space"]),
        (
            OSError(errno.EROFS, os.strerror(errno.EROFS), "/other/x"),
            ["/other/x: ", "Read-only file system", "mount it"],
        ),
        (OSError(errno.EFBIG, os.strerror(errno.EFBIG)), ["File too large", "ulimit -f"]),
        (OSError(errno.EMFILE, os.strerror(errno.EMFILE)), ["cannot be opened", "ulimit -n"]),
        (RuntimeError("I/O error: No space left on device (os error 28)"), ["No space left on device", "free space"]),
        (RuntimeError("DefaultCPUAllocator: can't allocate memory: you tried to allocate 9 bytes"), ["memory is used up"]),
        (RuntimeError("CUDA out of memory. Tried to allocate 2 GiB"), ["memory is used up", "engine.micro_batch"]),
        (MemoryError(), ["memory is used up", "scorer.max_batch_tokens"]),
    ],
)
def test_a_fault_is_one_line_that_names_a_place_and_a_remedy(error: Exception, words: list[str], tmp_path: Path) -> None:
    with pytest.raises(ConfigError) as said, faults_in_words(tmp_path):
        raise error
    assert said.value.__cause__ is error
    assert "\n" not in str(said.value)
    for word in [*words, "the same command goes on"]:
        assert word in str(said.value)


def test_advice_is_known_for_faults_of_disks_only() -> None:
    assert advice_on(OSError(errno.EROFS, os.strerror(errno.EROFS))) == "mount it for writing"
    assert advice_on(RuntimeError("I/O error: No space left on device (os error 28)")) == "free space"
    assert advice_on(ValueError("no number")) is None and advice_on(OSError(errno.ENOENT, os.strerror(errno.ENOENT))) is None


def test_a_directory_that_vanished_is_named_and_a_file_that_was_never_made_is_no_fault_of_the_machine(tmp_path: Path) -> None:
    gone = FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(tmp_path / "gone" / "file"))
    assert "gone/file: vanished" in str(fault_in(gone, tmp_path))
    assert "vanished" in str(fault_in(gone, tmp_path / "gone"))
    assert fault_in(FileNotFoundError(errno.ENOENT, "No such file", str(tmp_path / "file")), tmp_path) is None
    assert fault_in(KeyError("a fault of the program's"), tmp_path) is None


def test_what_vanished_is_told_from_what_can_never_be_made(tmp_path: Path) -> None:
    work = tmp_path / "store" / "stage" / f".{'0a' * 10}.work"
    for place in (tmp_path / "gone", work):  # the second one was made, and is gone already
        place.mkdir(parents=True, exist_ok=True)
        if place is work:
            place.rmdir()
        with pytest.raises(ConfigError, match="vanished while the command worked there"), writable(place):
            if place.exists():
                place.rmdir()
            (place / "file").write_text("a", encoding="utf-8")
    with pytest.raises(ConfigError, match="cannot be written"), writable(tmp_path / "never"):
        (tmp_path / "never" / "file").write_text("a", encoding="utf-8")


def test_a_place_that_takes_no_files_is_refused_whatever_its_permissions_say(tmp_path: Path) -> None:
    refuse_closed(tmp_path / "new" / "deep")
    assert list(tmp_path.iterdir()) == []
    (tmp_path / "file").write_text("a", encoding="utf-8")
    for place in (tmp_path / "file" / "x", Path("/proc/x")):
        if place.parent.exists():
            with pytest.raises(ConfigError, match=f"{place}: cannot be written .at {place.parent}: .*; choose another place"):
                refuse_closed(place)


def test_room_is_asked_for_before_anything_is_written(tmp_path: Path) -> None:
    need_room(tmp_path, 1, "a byte")
    with pytest.raises(ConfigError, match=r"an export needs 1e\+12 GB there, and .* are free; free space"):
        need_room(tmp_path, 10**21, "an export")
    assert [said_bytes(n) for n in (7, 5_500_000, 2_340_000_000)] == ["7 bytes", "5.5 MB", "2.34 GB"]


@pytest.fixture
def small_files() -> Iterator[int]:
    """Limit this process to files of 100 kB."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (100_000, hard))
    yield 100_000
    resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


def test_the_limit_on_a_file_s_size_counts_as_room(small_files: int, tmp_path: Path) -> None:
    assert largest_file() == small_files
    with pytest.raises(ConfigError, match=r"needs 200 kB, and `ulimit -f` allows files of 100 kB"):
        need_room(tmp_path, 200_000, "an export")
    said = r"file: cannot be written \(File too large\); raise `ulimit -f`"
    with pytest.raises(ConfigError, match=said), faults_in_words(tmp_path / "file"):
        (tmp_path / "file").write_bytes(b"\0" * 200_000)


@pytest.mark.parametrize(
    ("groups", "files", "expected"),
    [
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "max\n"}, [5000]),
        ("0::/a/b\n", {"a/memory.max": "5000\n", "a/b/memory.max": "3000\n"}, [3000, 5000]),
        ("5:cpu,memory:/c\n1:cpu:/d\n", {"memory/c/memory.limit_in_bytes": "7000"}, [7000]),
        ("5:memory:/c\n", {"memory/c/memory.limit_in_bytes": "9223372036854771712"}, []),
        ("0::/\n", {}, []),
    ],
)
def test_limits_of_control_groups_are_read_from_the_own_group_up(
    groups: str, files: dict[str, str], expected: list[int], tmp_path: Path
) -> None:
    (tmp_path / "own").write_text(groups, encoding="utf-8")
    for name, content in files.items():
        (tmp_path / "groups" / name).parent.mkdir(parents=True, exist_ok=True)
        (tmp_path / "groups" / name).write_text(content, encoding="utf-8")
    found = list(_of_groups(tmp_path / "groups", tmp_path / "own"))
    assert [limit.n_bytes for limit in found] == expected
    assert all(limit.is_shared and "control group" in limit.what for limit in found)
