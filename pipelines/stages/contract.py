"""What a stage is: what it reads, how it builds, and how the key of its artifact follows from what it reads.

A stage declares all that it reads in one frozen dataclass. The fields make the key (`key_of`), and `build` is given them and a
`Workshop`, which knows no setting: what is not declared cannot be read. Fields that no result depends on (how many threads, where
progress is shown) are declared with `unkeyed` and its reason.
"""

from __future__ import annotations

import datetime
import logging
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, fields
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar, Generic, TypeVar

from adapt.core.artifacts import Artifact, ArtifactStore, StageKey, sha256_of_file
from adapt.core.errors import ChangedInput
from adapt.core.typed import to_plain
from pseudo_label.tasks import TaskConfig

if TYPE_CHECKING:
    from pipelines.stages.run import Run

logger = logging.getLogger("pipelines")
_UNKEYED = "unkeyed"
USED = ".used"  # below a run: links to what its stages needed on their way
_MOST_KEPT = 4  # things read once in a walk that are kept in memory
T = TypeVar("T")


def unkeyed(reason: str, **options: Any) -> Any:
    """Declare a field that `build` reads and that no result depends on, for the reason given."""
    assert reason, "say why no result depends on it"
    return field(metadata={_UNKEYED: reason}, **options)


@dataclass(frozen=True)
class Files:
    """User files that a stage reads: paths by the names under which the key counts their content.

    `counted` is each file's stamp (what changes when it is written) and sha256 when it was last counted.
    """

    paths: Mapping[str, Path] = field(default_factory=dict)
    counted: dict[str, tuple[tuple[int, ...], str]] = field(default_factory=dict, init=False, repr=False, compare=False)

    def digests(self) -> dict[str, str]:
        """Return sha256 by name."""
        for name, path in self.paths.items():
            stamp = _stamp(path)  # before the sum: what is written meanwhile shows
            self.counted[name] = stamp, sha256_of_file(path)
        return {name: self.counted[name][1] for name in self.paths}

    def refuse_changed(self) -> None:
        """Raise ChangedInput where a file is no longer what was counted; one that is gone since cannot be compared."""
        for name, (stamp, digest) in self.counted.items():
            path = self.paths[name]
            try:
                found = _stamp(path)
                is_same = found == stamp or sha256_of_file(path) == digest
            except FileNotFoundError:
                continue
            if not is_same:
                raise ChangedInput(f"{path}: changed while it was read, and nothing was kept of it; run the command again")
            self.counted[name] = found, digest


def _stamp(path: Path) -> tuple[int, ...]:
    found = path.stat()
    return found.st_size, found.st_mtime_ns, found.st_ino, found.st_dev


@dataclass(frozen=True)
class Reads:
    """The base of what stages read. A field counts in the key by its type.

    Artifacts are inputs under the field's name (a mapping of them: under its own names), `Files` are files, nested `Reads` count
    with their own fields, and everything else is configuration. A task's order of labels counts too, which its mapping hides.
    """


R = TypeVar("R", bound=Reads)


def key_of(stage: str, version: int, reads: Reads) -> StageKey:
    """Return the key of what a stage makes of what it reads."""
    config: dict[str, Any] = {}
    inputs: dict[str, Artifact] = {}
    files: dict[str, str] = {}
    sources: list[Files] = []
    _count(reads, config, inputs, files, sources)

    def refuse_changed() -> None:
        for source in sources:
            source.refuse_changed()

    return StageKey(stage=stage, version=version, config=config, inputs=inputs, files=files, refuse_changed=refuse_changed)


def _count(reads: Reads, config: dict[str, Any], inputs: dict[str, Artifact], files: dict[str, str], sources: list[Files]) -> None:
    """Add what counts of `reads` to three mappings. A name that is there already would hide one of the two: it is refused."""

    def add(place: dict[str, Any], new: Mapping[str, Any]) -> None:
        twice = sorted(set(place) & set(new))
        assert not twice, f"{type(reads).__name__}: two things that it reads are called {', '.join(twice)}"
        place.update(new)

    for one in fields(reads):
        value = getattr(reads, one.name)
        if _UNKEYED in one.metadata:
            continue
        if isinstance(value, Reads):
            _count(value, config, inputs, files, sources)
        elif isinstance(value, Files):
            add(files, value.digests())
            sources.append(value)
        elif isinstance(value, Artifact):
            add(inputs, {one.name: value})
        elif isinstance(value, Mapping) and value and all(isinstance(inner, Artifact) for inner in value.values()):
            add(inputs, value)
        elif isinstance(value, tuple) and value and all(isinstance(inner, Reads) for inner in value):
            nested: list[dict[str, Any]] = [{} for _ in value]
            for place, inner in zip(nested, value, strict=True):
                _count(inner, place, inputs, files, sources)
            add(config, {one.name: nested})
        else:
            add(config, {one.name: to_plain(value)})
            if isinstance(value, TaskConfig):
                add(config, {f"{one.name}_order": order_of(value)})


def order_of(task: TaskConfig) -> list[list[str]]:
    """Return the order of a task's fields, labels and groups, which scores and biases follow: keys do not see it in a mapping."""
    return [list(task.fields), task.labels, list(task.label_tree or {})]


class Workshop:
    """What stages build with: the store for what they need on their way, a memory of what was read, and a voice."""

    def __init__(self, store: ArtifactStore, name: str, *, force: bool) -> None:
        self.store = store
        self._name, self._force = name, force
        self.asked_by: str | None = None  # the stage that is being built
        self._produced: set[str] = set()
        self._said: set[str] = set()
        self._kept: dict[str, Any] = {}

    def produce(self, key: StageKey, build: Callable[[Path, Path], Mapping[str, Any]], name: str) -> Artifact:
        """Build an artifact that a stage needs on its way, or take the one that is there; linked under the run as `name`.

        Two stages may need two of one name: below `.used` each stage has links of its own, so that `clean` keeps both.

        With `force` it is built again once in a walk, however many stages need it.
        """
        is_forced = self._force and key.digest() not in self._produced
        artifact, _ = self.store.produce(key, build, force=is_forced, created=now)
        self._produced.add(key.digest())
        self.store.link(f"{self._name}/{name}", artifact)
        if self.asked_by is not None:
            self.store.link(f"{self._name}/{USED}/{self.asked_by}/{name}", artifact)
        return artifact

    def say_once(self, message: str) -> None:
        """Log a message that several stages have reason to log."""
        if message not in self._said:
            self._said.add(message)
            logger.info("%s", message)

    def read_once(self, what: str, read: Callable[[], T]) -> T:
        """Return what was read under this name before in this walk, else read it; the last few are kept."""
        if what not in self._kept:
            self._kept[what] = read()
            while len(self._kept) > _MOST_KEPT:
                del self._kept[next(iter(self._kept))]
        found: T = self._kept[what]
        return found


class Stage(ABC, Generic[R]):
    """One stage: its name, the version of its algorithm, whether it runs once per task, what it reads and what it makes.

    Raise `version` by 1 with every change after which the stage would make something else of the same reads.
    """

    name: ClassVar[str]
    version: ClassVar[int] = 1
    is_per_task: ClassVar[bool] = True

    @abstractmethod
    def reads(self, run: Run, task: TaskConfig | None) -> R:
        """Return all that building reads. Raises AdaptError where it cannot be had, or makes no sense."""

    @abstractmethod
    def build(self, reads: R, shop: Workshop, result: Path, work: Path) -> Mapping[str, Any]:
        """Fill `result` and return metrics; `work` outlives a kill."""

    @abstractmethod
    def describe(self, artifact: Artifact) -> str:
        """Return what came out in a line."""

    def deliver(self, reads: R, artifact: Artifact, place: Path) -> None:
        """Do what is done with the artifact every time, also when it was there already; `place` is the run's link to it."""

    def key(self, reads: R) -> StageKey:
        """Return the key of what would be built."""
        return key_of(self.name, self.version, reads)


def now() -> str:
    """Return the time as a manifest records it."""
    return datetime.datetime.now(datetime.UTC).isoformat(timespec="seconds")
