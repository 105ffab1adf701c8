"""Artifacts: directories that are complete if and only if their `manifest.json` exists.

A stage's result lives in a store, addressed by a key over what the stage reads (its configuration and the digests of its
inputs), so that sweep points share what they have in common. A run's directory holds links into the store under readable
names. A result is built in a scratch directory and renamed into place after its manifest was written, so that a kill
leaves the old result or none.
"""

from __future__ import annotations

import contextlib
import hashlib
import importlib.metadata
import logging
import os
import platform
import shutil
import subprocess
import time
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.core.errors import ChangedInput, CheckpointError, ConfigError
from adapt.core.faults import faults_in_words, refuse_closed, writable
from adapt.core.json_files import json_text, parsed_json
from adapt.core.store_locks import hold, locked
from adapt.core.store_places import FIGURES_FILE as FIGURES_FILE
from adapt.core.store_places import LINKS_LOCK, LOCK, NEW, UNDIGESTED, WORK, beside, is_artifact, recover, swap_in, tidy
from adapt.core.store_places import MANIFEST as MANIFEST
from adapt.core.store_places import METRICS_FILE as METRICS_FILE
from adapt.core.store_places import STORE as STORE
from adapt.core.store_readers import note_reader
from adapt.core.typed import digest_of

logger = logging.getLogger(__name__)

README_FILE = "README.md"
UNLISTED = (README_FILE,)  # for readers only: a manifest does not list them, so they may be edited
SCHEMA_VERSION = 1
_MANIFEST_KEYS = ("stage", "key", "digest", "config", "inputs", "files", "metrics", "created")
_RECORDED_PACKAGES = (
    "torch", "deepspeed", "sentencepiece", "datasets", "hydra-core", "numpy", "safetensors", "transformers", "tokenizers"
)  # fmt: skip
_HASH_STEP_BYTES = 1 << 22
_ALWAYS_HASHED_BYTES = 1 << 26
_LONGEST_PATH = 1000
_MOST_NAMED = 5
_MEND = "run its stage again with force=true, or, where it was copied, copy it again"


@dataclass(frozen=True, kw_only=True)
class InputRef:
    """An input artifact of a stage: where it was and what it held."""

    path: str
    digest: str


@dataclass(frozen=True, kw_only=True)
class Artifact:
    """A complete directory with its manifest's content; `seconds` is how long its last build took, where that was recorded."""

    path: Path
    stage: str
    key: str
    digest: str
    config: Any
    inputs: Mapping[str, InputRef]
    metrics: Mapping[str, Any]
    created: str
    seconds: float | None = field(default=None, compare=False)

    def file(self, name: str) -> Path:
        """Return the path of a file of this artifact.

        Raises:
            CheckpointError: it has no such file.
        """
        path = self.path / name
        if not path.exists():
            raise CheckpointError(f"{self.path}: has no {name}; is this the artifact of stage '{self.stage}' you meant?")
        return path


@dataclass(frozen=True, kw_only=True)
class StageKey:
    """What decides whether a stage's result can be taken as it is; `version` is that of the stage's algorithm.

    `refuse_changed` raises ChangedInput where `files` are no longer what was counted.
    """

    stage: str
    config: Any
    inputs: Mapping[str, Artifact] = field(default_factory=dict)
    files: Mapping[str, str] = field(default_factory=dict)  # user files by name -> sha256
    version: int = 1
    refuse_changed: Callable[[], None] = field(default=lambda: None, compare=False)

    def digest(self) -> str:
        inputs = {name: artifact.digest for name, artifact in self.inputs.items()}
        return digest_of(
            {
                "schema": SCHEMA_VERSION,
                "stage": self.stage,
                "version": self.version,
                "config": self.config,
                "inputs": inputs,
                "files": self.files,
            }
        )


def sha256_of_file(path: Path) -> str:
    """Return the sha256 of a file's bytes."""
    digest = hashlib.sha256()
    with path.open("rb") as stream:
        while block := stream.read(_HASH_STEP_BYTES):
            digest.update(block)
    return digest.hexdigest()


def open_artifact(path: Path) -> Artifact:
    """Read a manifest and check that the files it names are there and whole.

    Sizes are always checked, hashes for files up to 64 MiB (larger files carry hashes of their own).

    Raises:
        CheckpointError: no manifest, a newer schema, or a file that is missing or changed.
    """
    hold(path / MANIFEST)
    manifest = read_manifest(path)
    place = path.resolve()
    missing = [entry["path"] for entry in manifest["files"] if not (path / entry["path"]).is_file()]
    if missing:
        rest = f" and {len(missing) - _MOST_NAMED} more" if len(missing) > _MOST_NAMED else ""
        raise CheckpointError(f"{path}: {', '.join(missing[:_MOST_NAMED])}{rest} is missing; {_MEND}")
    for entry in manifest["files"]:
        file = path / entry["path"]
        if not Path(os.path.realpath(file)).is_relative_to(place):
            raise CheckpointError(f"{path / MANIFEST}: names the file '{entry['path']}', which is not in its directory")
        if file.stat().st_size != entry["size"]:
            raise CheckpointError(f"{file}: has {file.stat().st_size} bytes, its manifest says {entry['size']}; {_MEND}")
        if entry["size"] <= _ALWAYS_HASHED_BYTES and sha256_of_file(file) != entry["sha256"]:
            raise CheckpointError(f"{file}: its content differs from its manifest; {_MEND}")
    return Artifact(
        path=path,
        stage=manifest["stage"],
        key=manifest["key"],
        digest=manifest["digest"],
        config=manifest["config"],
        inputs={name: InputRef(**ref) for name, ref in manifest["inputs"].items()},
        metrics=manifest["metrics"],
        created=manifest["created"],
        seconds=manifest.get("seconds"),
    )


def artifact_at(link: Path) -> Artifact | None:
    """Open the artifact behind a run's link; None where the link is missing or its artifact incomplete.

    Raises:
        CheckpointError: the artifact is damaged, or gone: the link leads nowhere.
    """
    refuse_dangling(link, "run its stage again")
    return open_linked(link) if is_artifact(link) else None


def open_linked(link: Path) -> Artifact:
    """Open the artifact that a run's link leads to, also where the link is replaced meanwhile. Raises as `open_artifact` does."""
    while True:
        place = link.resolve()
        try:
            return open_artifact(place)
        except CheckpointError:
            if link.resolve() == place:
                raise


def is_dangling(link: Path) -> bool:
    """Say whether a path is a link that leads nowhere."""
    return link.is_symlink() and not link.exists()


def refuse_dangling(link: Path, advice: str) -> None:
    """Raise CheckpointError, with what to do, where a run's link leads nowhere."""
    if is_dangling(link):
        raise CheckpointError(f"{link}: its artifact is gone (it links to {link.readlink()}, which is not there); {advice}")


def read_manifest(path: Path) -> dict[str, Any]:
    """Read an artifact's manifest. Raises CheckpointError where there is none, or it is damaged or of a newer schema."""
    try:
        manifest = parsed_json((path / MANIFEST).read_text(encoding="utf-8"))
    except (FileNotFoundError, NotADirectoryError):
        raise CheckpointError(f"{path}: is not a complete artifact (no {MANIFEST})") from None
    except (OSError, ValueError) as error:
        raise CheckpointError(f"{path / MANIFEST}: not valid JSON ({error}); delete it and run its stage again") from error
    if not isinstance(manifest, dict):
        raise CheckpointError(f"{path / MANIFEST}: expected a JSON object")
    if manifest.get("schema_version") != SCHEMA_VERSION:
        raise CheckpointError(
            f"{path / MANIFEST}: schema version {manifest.get('schema_version')}, this program reads {SCHEMA_VERSION}"
        )
    lacking = [key for key in _MANIFEST_KEYS if key not in manifest]
    if lacking:
        raise CheckpointError(f"{path / MANIFEST}: lacks {', '.join(lacking)}")
    if not _is_sound(manifest):
        raise CheckpointError(
            f"{path / MANIFEST}: damaged (its entries are not those of a manifest); run its stage again with force=true"
        )
    return manifest


def _is_sound(manifest: dict[str, Any]) -> bool:
    """Say whether a manifest's entries are of the types that they are written with."""
    files, inputs = manifest["files"], manifest["inputs"]
    names = [manifest[key] for key in ("stage", "key", "digest", "created")]
    return (
        isinstance(files, list)
        and isinstance(inputs, dict)
        and isinstance(manifest["metrics"], dict)
        and all(isinstance(f, dict) and _has_types(f, path=str, size=int, sha256=str) and _is_path(f["path"]) for f in files)
        and all(
            isinstance(ref, dict) and set(ref) == {"path", "digest"} and _has_types(ref, path=str, digest=str)
            for ref in inputs.values()
        )
        and all(isinstance(name, str) for name in names)
    )


def _is_path(path: str) -> bool:
    return "\0" not in path and len(path) < _LONGEST_PATH and all(len(part.encode()) < 256 for part in path.split("/"))


def _has_types(entry: dict[str, Any], **types: type) -> bool:
    return all(isinstance(entry.get(name), kind) for name, kind in types.items())


def write_manifest(path: Path, key: StageKey, metrics: Mapping[str, Any], created: str, seconds: float | None = None) -> None:
    """Describe every file under `path` and write the manifest, last and atomically."""
    files = []
    for file in sorted(p for p in path.rglob("*") if p.is_file() and str(p.relative_to(path)) not in (MANIFEST, *UNLISTED)):
        files.append({"path": str(file.relative_to(path)), "size": file.stat().st_size, "sha256": sha256_of_file(file)})
    inputs = {name: {"path": str(a.path.absolute()), "digest": a.digest} for name, a in key.inputs.items()}
    hashed = [entry for entry in files if entry["path"] not in UNDIGESTED]
    content = {"stage": key.stage, "files": hashed, "inputs": {n: r["digest"] for n, r in inputs.items()}}
    manifest = {
        "schema_version": SCHEMA_VERSION,
        "stage": key.stage,
        "version": key.version,
        "key": key.digest(),
        "digest": digest_of(content),
        "config": key.config,
        "inputs": inputs,
        "input_files": dict(key.files),
        "files": files,
        "metrics": dict(metrics),
        "versions": _versions(),
        "git_commit": _git_commit(),
        "created": created,
        "seconds": seconds,
    }
    write_atomically(path / MANIFEST, json_text(manifest))


def write_atomically(path: Path, text: str) -> None:
    """Write a text file so that a reader sees the old content or the new, never a part."""
    scratch = path.with_name(f".{path.name}.{os.getpid()}")
    with scratch.open("w", encoding="utf-8") as stream:
        stream.write(text)
        stream.flush()
        os.fsync(stream.fileno())
    scratch.replace(path)


def short_key(place: Path) -> str:
    """Return the name that an artifact has in the store, from its directory or from the one that its stage works in."""
    return place.name.removeprefix(".").removesuffix(WORK)


class ArtifactStore:
    """The shared store of a run directory: `<root>/store/<stage>/<key>`, with links under `<root>/<run name>/`."""

    def __init__(self, root: Path) -> None:
        refuse_closed(root)
        self.root = root

    def place(self, key: StageKey) -> Path:
        return self.root / STORE / key.stage / key.digest()[:20]

    def produce(
        self,
        key: StageKey,
        build: Callable[[Path, Path], Mapping[str, Any]],
        *,
        force: bool,
        created: Callable[[], str],
    ) -> tuple[Artifact, bool]:
        """Return the artifact for `key`, building it unless a complete one is there; and whether it was built.

        `build(result_dir, work_dir)` fills `result_dir` and returns metrics. `work_dir` outlives a kill, so that a long
        stage can go on where it was. Concurrent builders of one key wait for each other.
        """
        final = self.place(key)
        for one in key.inputs.values():
            note_reader(one.path, self.root)
        with self._locked(final):
            recover(final)
            if is_artifact(final) and not force:
                return open_artifact(final), False
            scratch, work = beside(final, NEW), beside(final, WORK)
            shutil.rmtree(scratch, ignore_errors=True)
            if force and is_artifact(final):
                shutil.rmtree(work, ignore_errors=True)
            with writable(self.root):
                scratch.mkdir()
                work.mkdir(exist_ok=True)
            try:
                with faults_in_words(scratch):
                    started = time.monotonic()
                    metrics = _built(key, build, scratch, work)
                    write_manifest(scratch, key, metrics, created(), round(time.monotonic() - started, 3))
                    swap_in(scratch, final)
            except BaseException as error:
                if isinstance(error, ChangedInput):
                    shutil.rmtree(work, ignore_errors=True)
                tidy(scratch, work)
                raise
            shutil.rmtree(work, ignore_errors=True)
            return open_artifact(final), True

    def link(self, name: str, artifact: Artifact) -> Path:
        """Point `<root>/<name>` at an artifact of the store, replacing an older link in one step."""
        place = self.root / name
        note_reader(artifact.path, self.root)
        links = self.root / STORE / LINKS_LOCK
        with writable(place.parent), locked(links, "waiting for `pipelines.clean`", is_shared=True):
            place.parent.mkdir(parents=True, exist_ok=True)
            if place.is_dir() and not place.is_symlink():
                raise ConfigError(f"{place}: is a directory of something else; choose another run.name")
            scratch = place.with_name(f".{place.name}.{os.getpid()}")
            scratch.unlink(missing_ok=True)
            scratch.symlink_to(os.path.relpath(self._real(artifact), place.parent.resolve()))
            scratch.replace(place)
        return place

    def _real(self, artifact: Artifact) -> Path:
        """Return an artifact's directory without links before the store, which may itself be one."""
        found = artifact.path.resolve()
        own = self.root.resolve().joinpath(STORE, *found.parts[-2:])
        return own if own.resolve() == found else found

    @contextlib.contextmanager
    def _locked(self, final: Path) -> Iterator[None]:
        """Have a key's lock; another process that builds it is waited for."""
        with contextlib.ExitStack() as stack:
            with writable(self.root):
                final.parent.mkdir(parents=True, exist_ok=True)
                stack.enter_context(locked(beside(final, LOCK), f"waiting for another to build {final.parent.name} {final.name}"))
            yield


def _built(key: StageKey, build: Callable[[Path, Path], Mapping[str, Any]], scratch: Path, work: Path) -> Mapping[str, Any]:
    """Build, and raise ChangedInput where files that the key counts changed meanwhile, whatever else came of it."""
    try:
        metrics = build(scratch, work)
    except Exception:
        key.refuse_changed()  # it may have stumbled over that
        raise
    key.refuse_changed()
    return metrics


def _versions() -> dict[str, str]:
    found = {"python": platform.python_version()}
    for package in _RECORDED_PACKAGES:
        with contextlib.suppress(importlib.metadata.PackageNotFoundError):
            found[package] = importlib.metadata.version(package)
    return found


def _git_commit() -> str | None:
    here = Path(__file__).resolve().parent
    try:
        done = subprocess.run(["git", "rev-parse", "HEAD"], cwd=here, capture_output=True, text=True, timeout=10)
    except (OSError, subprocess.TimeoutExpired):
        return None
    return done.stdout.strip() or None if done.returncode == 0 else None
