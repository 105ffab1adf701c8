"""What a store holds, who links and reads it, and what of it nobody needs.

An artifact is needed where a run's link leads to it, where one that is needed was made from it, where another run directory that
left a note here reads it, and where a link or an artifact below one of the places that are looked at besides leads to it.
"""

from __future__ import annotations

import enum
import os
import re
import time
from collections.abc import Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from adapt.core.json_files import parsed_json
from adapt.core.store_locks import tried
from adapt.core.store_places import GONE, LOCK, MANIFEST, NEW, OLD, STORE, WORK, beside, finished, is_key
from adapt.core.store_readers import readers_of

_BESIDE_DEPTH, _BESIDE_ENTRIES = 3, 20_000
_UNFINISHED = re.compile(r"\..+\.\d+")  # a link under the name that `ArtifactStore.link` makes it under
_SPOOLED = ".input-"  # rows from a pipe, below the run directory


class Unneeded(enum.Enum):
    """Why something may go."""

    UNLINKED = "unlinked"
    INTERRUPTED = "interrupted"
    LITTER = "litter"


@dataclass(frozen=True, kw_only=True)
class Link:
    """A link of a run, by its name below the run directory, and the artifact that it leads to: `<stage>/<key>`."""

    name: str
    artifact: str


@dataclass(frozen=True, kw_only=True)
class Stored:
    """An artifact of the store, `<stage>/<key>`; `n_bytes` with what is left of making it; `made` in seconds since 1970."""

    name: str
    place: Path
    n_bytes: int
    made: float
    links: tuple[str, ...] = ()
    readers: tuple[str, ...] = ()

    @property
    def stage(self) -> str:
        return self.name.partition("/")[0]


@dataclass(frozen=True, kw_only=True)
class Removable:
    """Something that nobody needs; `final` is the key's place where it belongs to one, and whose locks must be had."""

    kind: Unneeded
    place: Path
    n_bytes: int
    made: float
    reason: str
    final: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Survey:
    """What was found. `in_use` is what would go if no process used it; `notes` say what limits the finding."""

    kept: list[Stored]
    removable: list[Removable]
    in_use: list[Removable]
    dangling: list[Link]
    notes: list[str]


@dataclass
class _Needs:
    """Why artifacts are needed, by `<stage>/<key>`."""

    links: dict[str, list[str]] = field(default_factory=dict)
    readers: dict[str, list[str]] = field(default_factory=dict)
    notes: list[str] = field(default_factory=list)


def survey(root: Path, others: Iterable[Path] = ()) -> Survey:
    """Look at the store of a run directory; `others` are places elsewhere whose links and artifacts count too.

    Nothing is changed. What a process builds or reads at this moment is found by its locks.
    """
    store, needs = (root / STORE).resolve(), _Needs()
    removable = _read_runs(root, store, needs)
    for place in others:
        _read_place(place, store, needs)
    if not _read_place(root.resolve().parent, store, needs, depth=_BESIDE_DEPTH, left_out=root.resolve()):
        needs.notes.append(f"only part of {root.resolve().parent} was looked at for links; name others in clean.keep_for")
    _read_notes(root, store, needs)
    finals = list(_keys(store))
    made_from = {_name(final): _inputs(whole) for final in finals if (whole := finished(final)) is not None}
    run_links = [Link(name=name, artifact=artifact) for artifact, names in needs.links.items() for name in names]
    _add_inputs(made_from, needs)
    kept: list[Stored] = []
    in_use: list[Removable] = []
    for final in finals:
        found, rest = _sorted(final, needs)
        kept += [] if found is None else [found]
        for one in rest:
            (removable if _is_free(one) else in_use).append(one)
    dangling = [link for link in run_links if link.artifact not in made_from]
    return Survey(kept=kept, removable=removable, in_use=in_use, dangling=dangling, notes=needs.notes)


def bytes_of(place: Path) -> int:
    """Return the bytes of a file, or of all files below a directory."""
    if place.is_symlink() or not place.is_dir():
        return _size(place)
    return sum(_size(Path(folder) / name) for folder, _, names in os.walk(place) for name in names)


def _size(file: Path) -> int:
    try:
        return file.lstat().st_size
    except OSError:  # it went away while it was looked at
        return 0


def _keys(store: Path) -> Iterator[Path]:
    """Yield the place of every key that a store has anything of."""
    for stage in _listed(store):
        if stage.is_dir() and not stage.name.startswith("."):
            names = {entry.name.removesuffix(GONE).lstrip(".").partition(".")[0] for entry in _listed(stage)}
            yield from (stage / name for name in sorted(names) if is_key(name))


def _listed(place: Path) -> list[Path]:
    try:
        return sorted(place.iterdir())
    except OSError:
        return []


def _name(final: Path) -> str:
    return "/".join(final.parts[-2:])


def _sorted(final: Path, needs: _Needs) -> tuple[Stored | None, list[Removable]]:
    """Tell what of a key is kept from what is not needed."""
    whole, name = finished(final), _name(final)
    links, readers = tuple(needs.links.get(name, ())), tuple(needs.readers.get(name, ()))
    is_needed = bool(links or readers)
    kept, rest = None, []
    if whole is not None and is_needed:
        kept = Stored(name=name, place=final, n_bytes=bytes_of(whole), made=_made(whole), links=links, readers=readers)
    elif whole is not None:
        rest.append(_removable(Unneeded.UNLINKED, whole, final, "no run links to it"))
    elif final.exists() and not is_needed:
        rest.append(_removable(Unneeded.LITTER, final, final, f"has no {MANIFEST}"))
    reasons = {
        WORK: (Unneeded.INTERRUPTED, "the same command would go on from it" if whole is None else "left by a build that ended"),
        NEW: (Unneeded.INTERRUPTED, "a build that was interrupted"),
        OLD: (Unneeded.INTERRUPTED, "replaced by a newer build"),
    }
    for ending, (kind, reason) in reasons.items():
        place = beside(final, ending)
        if place.exists() and place != whole:
            rest.append(_removable(kind, place, final, reason))
    for place in _listed(final.parent):
        if place.name.startswith(f".{final.name}.") and place.name.endswith(GONE):
            rest.append(_removable(Unneeded.LITTER, place, None, "was being deleted"))
    lock = beside(final, LOCK)
    if lock.exists() and not rest and whole is None and not final.exists():
        rest.append(_removable(Unneeded.LITTER, lock, final, "a lock of nothing"))
    return kept, rest


def _removable(kind: Unneeded, place: Path, final: Path | None, reason: str) -> Removable:
    return Removable(kind=kind, place=place, n_bytes=bytes_of(place), made=_made(place), reason=reason, final=final)


def _made(place: Path) -> float:
    """Return when something was last written."""
    try:
        manifest = place / MANIFEST
        if manifest.is_file():
            return manifest.stat().st_mtime
        return max([place.lstat().st_mtime, *(inner.lstat().st_mtime for inner in _listed(place))])
    except OSError:
        return time.time()


def _is_free(one: Removable) -> bool:
    """Say whether no process builds or reads something now."""
    if one.final is None:
        return True
    with tried(beside(one.final, LOCK)) as is_mine:
        if not is_mine:
            return False
    with tried(one.place / MANIFEST) as is_mine:
        return is_mine


def _read_runs(root: Path, store: Path, needs: _Needs) -> list[Removable]:
    """Add the links of all runs below a run directory; return what commands that were killed left there."""
    litter = []
    for entry in _listed(root):
        if entry.name.startswith(_SPOOLED) and entry.is_file():
            with tried(entry) as is_mine:
                if is_mine:
                    litter.append(_removable(Unneeded.LITTER, entry, None, "rows from a pipe, of a command that was killed"))
    todo, seen = [root], {store}
    while todo:
        folder = todo.pop()
        real = folder.resolve()
        if real in seen:
            continue
        seen.add(real)
        for entry in _listed(folder):
            artifact = _led_to(entry, store) if entry.is_symlink() else None
            if artifact is None and entry.is_dir():
                todo.append(entry)
            elif artifact is not None and _UNFINISHED.fullmatch(entry.name):
                litter.append(_removable(Unneeded.LITTER, entry, None, "a link that was not finished"))
            elif artifact is not None:
                needs.links.setdefault(artifact, []).append(str(entry.relative_to(root)))
    return litter


def _led_to(link: Path, store: Path) -> str | None:
    """Return the artifact, `<stage>/<key>`, that a link leads to or into; the artifact itself may be gone."""
    target = Path(os.path.realpath(link))
    if not target.is_relative_to(store):
        return None
    parts = target.relative_to(store).parts
    if len(parts) < 2:
        return None
    return f"{parts[0]}/{parts[1].removesuffix(NEW).removesuffix(OLD).lstrip('.')}"


def _read_place(
    place: Path, store: Path, needs: _Needs, *, depth: int | None = None, left_out: Path | None = None, is_reader: bool = False
) -> bool:
    """Add what links and artifacts below a place need; False where there was more than can be looked at.

    Artifacts of a reader that left a note are believed by the names of their inputs, also where this store was moved since.
    """
    todo, seen, n_entries = [(place, 0)], {store}, 0
    while todo:
        folder, level = todo.pop()
        real = Path(os.path.realpath(folder))
        if real in seen or real == left_out:
            continue
        seen.add(real)
        for entry in _listed(folder):
            n_entries += 1
            if depth is not None and n_entries > _BESIDE_ENTRIES:
                return False
            if entry.is_symlink() and (artifact := _led_to(entry, store)) is not None:
                needs.readers.setdefault(artifact, []).append(str(entry))
            elif entry.name == MANIFEST:
                for artifact in _inputs(folder, within=None if is_reader else store):
                    needs.readers.setdefault(artifact, []).append(str(folder))
            elif entry.is_dir() and (depth is None or (level < depth and not entry.is_symlink())):
                todo.append((entry, level + 1))
    return True


def _read_notes(root: Path, store: Path, needs: _Needs) -> None:
    """Add what run directories read that left a note; of one that is not there now, its notes count."""
    looked_at: set[Path] = set()
    for reader in readers_of(store):
        if not reader.root.is_dir():
            needs.readers.setdefault(reader.artifact, []).append(str(reader.root))
            needs.notes.append(f"{reader.root}: not there now, and reads {reader.artifact}; if it is gone, delete {reader.file}")
        elif reader.root != root.resolve() and reader.root not in looked_at:
            looked_at.add(reader.root)
            _read_place(reader.root, store, needs, is_reader=True)


def _inputs(place: Path, within: Path | None = None) -> list[str]:
    """Return the artifacts that one was made from, `<stage>/<key>`; only those that lay in a certain store, if it is given.

    A store may have been moved since: of an artifact in the store itself, its inputs are found by the ends of their paths.
    """
    try:
        manifest: Any = parsed_json((place / MANIFEST).read_text(encoding="utf-8"))
        paths = [Path(ref["path"]) for ref in manifest["inputs"].values()]
    except (OSError, ValueError, KeyError, TypeError, AttributeError):
        return []
    if within is not None:
        paths = [path for path in paths if Path(os.path.realpath(path)).is_relative_to(within)]
    return [_name(path) for path in paths if is_key(path.name)]


def _add_inputs(made_from: dict[str, list[str]], needs: _Needs) -> None:
    """Add what needed artifacts were made from, and what those were made from."""
    todo = [name for name in made_from if name in needs.links or name in needs.readers]
    done = set(todo)
    while todo:
        name = todo.pop()
        for inner in made_from.get(name, ()):
            if inner not in needs.links:
                needs.readers.setdefault(inner, []).append(name)
            if inner not in done:
                done.add(inner)
                todo.append(inner)
