"""An export at a place of the user's own: real files, compared with their sums while they are copied, put in place as a whole.

Files are copied into a hidden directory beside the place, which a later command goes on with; it gets its name when all are there.
"""

from __future__ import annotations

import hashlib
import os
import shutil
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from adapt.core.artifacts import MANIFEST, STORE, UNLISTED, Artifact, open_artifact, read_manifest, sha256_of_file
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.faults import need_room, refuse_closed, writable
from adapt.core.progress import progress
from adapt.core.store_locks import locked
from adapt.core.store_places import LOCK, NEW, beside, is_artifact, recover, swap_in
from pipelines.stages.run import Run
from pseudo_label.tasks import TaskConfig

_KEY = "export.output"
_EXPORT = "export"
_STEP_BYTES = 1 << 22
_MOST_NAMED = 3


@dataclass(frozen=True, kw_only=True)
class Delivery:
    """A task's export and the place that it is wanted at; `root` is the directory of the runs, whose store is no such place.

    What points of a sweep export differs, so of them a place takes the export of one only.
    """

    task: str
    place: Path
    root: Path
    is_point: bool

    @classmethod
    def of(cls, run: Run, task: str) -> Delivery | None:
        """Return where a task's export is wanted: `export.output`, with several tasks a directory in it; None where it is not set.

        Raises:
            ConfigError: it is empty.
        """
        output = run.config.export.output
        if output is None:
            return None
        if not output:
            raise ConfigError(f"{_KEY}: is empty; name a directory")
        place = Path(output) if len(run.config.tasks) == 1 else Path(output) / task
        return cls(task=task, place=place, root=run.store.root, is_point=run.name != run.group)

    def check(self, digest: str | None = None) -> None:
        """Raise ConfigError where the place cannot be written, or holds something else than an export of this task.

        With a digest, another point's export is something else too.
        """
        target, root = self.place.resolve(), self.root.resolve()
        if target.is_relative_to((root / STORE).resolve()) or root.is_relative_to(target):
            raise ConfigError(f"{_KEY}: {self.place} belongs to the runs; name a directory of its own")
        if target.exists() and not target.is_dir():
            raise ConfigError(f"{_KEY}: {self.place} is a file; name a directory")
        refuse_closed(target.parent, f"{_KEY}={self.place}")
        there = sorted(entry.name for entry in target.iterdir()) if target.is_dir() else []
        if not there:
            return
        found = _manifest_of(target)
        listed = {MANIFEST, *UNLISTED, *({entry["path"].partition("/")[0] for entry in found["files"]} if found else ())}
        others = [name for name in there if name not in listed]
        if found is None or others:
            names = ", ".join((others or there)[:_MOST_NAMED])
            raise ConfigError(f"{_KEY}: {self.place} holds something else ({names}); name a new or empty directory")
        of_task = found["metrics"].get("task")
        if found["stage"] != _EXPORT or of_task != self.task:
            what = f"the export of task '{of_task}'" if found["stage"] == _EXPORT else f"a result of stage {found['stage']}"
            raise ConfigError(f"{_KEY}: {self.place} holds {what}; name another directory for '{self.task}'")
        if self.is_point and digest is not None and found["digest"] != digest:
            raise ConfigError(
                f"{_KEY}: {self.place} holds another export of '{self.task}', perhaps another point's of this sweep; put what the "
                f"points vary into the name, as in '{_KEY}={self.place}/seed${{seed}}'"
            )

    def make(self, artifact: Artifact) -> bool:
        """Copy an export to its place, unless it is there and whole; return whether it was copied.

        Raises:
            ConfigError: the place cannot be written, or holds something else.
            CheckpointError: a file of the export is not the one that was written.
        """
        target = self.place.resolve()
        with writable(target):
            target.parent.mkdir(parents=True, exist_ok=True)
            lock = beside(target, LOCK)
            with locked(lock, f"waiting for another process that writes {self.place}"):
                recover(target)
                self.check(artifact.digest)
                is_new = not _is_there(target, artifact)
                if is_new:
                    _copy(artifact, beside(target, NEW))
                    swap_in(beside(target, NEW), target)
                lock.unlink()
        return is_new


def check_deliveries(run: Run, tasks: Sequence[TaskConfig]) -> None:
    """Raise ConfigError, before anything is made, for a place that cannot take its export."""
    for task in tasks:
        delivery = Delivery.of(run, task.name)
        if delivery is not None:
            delivery.check()


def _manifest_of(target: Path) -> dict[str, Any] | None:
    try:
        return read_manifest(target)
    except CheckpointError:
        return None


def _is_there(target: Path, artifact: Artifact) -> bool:
    try:
        return is_artifact(target) and open_artifact(target).digest == artifact.digest
    except CheckpointError:
        return False


def _copy(artifact: Artifact, scratch: Path) -> None:
    """Fill a directory with an artifact's files, but for those that are there and whole; the manifest comes last."""
    scratch.mkdir(exist_ok=True)
    entries = {entry["path"]: entry for entry in read_manifest(artifact.path)["files"]}
    for left in scratch.rglob("*"):
        if not left.is_dir() and str(left.relative_to(scratch)) not in entries:
            left.unlink()
    todo = [entry for name, entry in entries.items() if not _is_whole(scratch / name, entry)]
    need_room(scratch, sum(entry["size"] for entry in todo), "the export")
    for entry in progress(todo, "copying the export", unit="file"):
        source, copy = artifact.path / entry["path"], scratch / entry["path"]
        copy.parent.mkdir(parents=True, exist_ok=True)
        if _copied(source, copy) != entry["sha256"]:
            copy.unlink()
            raise CheckpointError(f"{source}: its content differs from its manifest; run its stage again with force=true")
    for name in (*UNLISTED, MANIFEST):
        if (artifact.path / name).is_file():
            shutil.copyfile(artifact.path / name, scratch / name)


def _is_whole(copy: Path, entry: dict[str, Any]) -> bool:
    return copy.is_file() and copy.stat().st_size == entry["size"] and sha256_of_file(copy) == entry["sha256"]


def _copied(source: Path, copy: Path) -> str:
    """Copy a file to the disk; return its sha256."""
    digest = hashlib.sha256()
    with source.open("rb") as stream, copy.open("wb") as target:
        while block := stream.read(_STEP_BYTES):
            digest.update(block)
            target.write(block)
        target.flush()
        os.fsync(target.fileno())
    return digest.hexdigest()
