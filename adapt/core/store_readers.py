"""Notes in a store of who reads from it elsewhere: another run directory whose artifacts were made from this store's.

A link or a manifest of another run directory cannot be found from here, so whoever makes one leaves a note.
"""

from __future__ import annotations

import contextlib
import logging
import os
from dataclasses import dataclass
from pathlib import Path

from adapt.core.json_files import json_text, parsed_json
from adapt.core.store_places import READERS, STORE, is_key, store_of
from adapt.core.typed import digest_of

logger = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Reader:
    """A run directory that reads an artifact, `<stage>/<key>`, of another one's store; `file` is the note."""

    root: Path
    artifact: str
    file: Path


def note_reader(place: Path, root: Path) -> None:
    """Leave a note beside the artifact at `place` that the run directory `root` reads it; nothing where it lies in its own store.

    A store that cannot be written to is left as it is, which is said.
    """
    store = store_of(place)
    if store is None or (store == (root / STORE).resolve() and store.parent == root.resolve()):
        return
    content = {"reader": str(root.resolve()), "artifact": "/".join(place.resolve().parts[-2:])}
    file = store / READERS / f"{digest_of(content)[:20]}.json"
    if file.is_file():
        return
    try:
        file.parent.mkdir(exist_ok=True)
        scratch = file.with_name(f".{file.name}.{os.getpid()}")
        scratch.write_text(json_text(content), encoding="utf-8")
        scratch.replace(file)
    except OSError as error:
        logger.info("%s: reads %s, which cannot be noted there (%s)", root, place, error.strerror)


def readers_of(store: Path) -> list[Reader]:
    """Return the notes in a store; one that is damaged is left out."""
    found = []
    for file in sorted((store / READERS).glob("*.json")):
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            content = parsed_json(file.read_text(encoding="utf-8"))
            stage, _, key = content["artifact"].partition("/")
            if is_key(key):
                found.append(Reader(root=Path(content["reader"]), artifact=f"{stage}/{key}", file=file))
    return found
