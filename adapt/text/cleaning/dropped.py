"""What filters of a library drop, counted and sampled: pieces in, a file of counts for each input file out."""

from __future__ import annotations

from dataclasses import asdict
from pathlib import Path
from typing import Any

from adapt.core.artifacts import write_atomically
from adapt.core.json_files import json_text
from adapt.text.cleaning.sieve import Tally


def write_whole(place: Path, value: Any) -> None:
    """Write a JSON file so that it is there as a whole or not at all, in a directory that may be missing."""
    place.parent.mkdir(parents=True, exist_ok=True)
    write_atomically(place, json_text(value))


class Dropped:
    """Counts what a filter of the library drops, as its writer of excluded documents."""

    def __init__(self, reason: str, place: Path, n_samples: int) -> None:
        self.reason, self.place, self.n_samples = reason, place, n_samples

    def __enter__(self) -> Dropped:
        self.tally, self.rank = Tally(), 0
        return self

    def write(self, piece: Any, rank: int = 0, reason: str | None = None) -> None:
        self.rank = rank
        domain = piece.metadata["domain"]
        self.tally.drop(reason or self.reason, piece.text, self.n_samples)
        self.tally.kept[domain] = self.tally.kept.get(domain, 0) - 1
        self.tally.characters_kept -= len(piece.text)

    def __exit__(self, *raised: object) -> None:
        if self.tally.dropped:
            write_whole(self.place / f"{self.rank:05d}.tally.json", asdict(self.tally))
