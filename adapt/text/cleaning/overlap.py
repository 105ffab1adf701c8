"""Documents that share a passage with evaluation texts, in any width, case and punctuation.

Of evaluation texts and documents only letters, digits and Chinese characters count (`folds`). All windows of W of them in
evaluation texts are kept as 64-bit hashes, each with its file; so a document meets one wherever it begins. An evaluation text
shorter than W counts as a whole. A hash is sum of r(c_i) B^i mod 2^64 with a random 64-bit r for each character and an odd B: a
window's hash is a difference of prefix sums times B^-start (Karp and Rabin 1987). Nothing is compared character by character: with
10^7 windows and 10^10 positions, some 0.005 documents are dropped by chance. Legend: N characters, W windows.
"""

from __future__ import annotations

import functools
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from adapt.core.json_files import read_object, write_json
from adapt.core.runtime import generator_for
from adapt.text.cleaning.characters import Batch, folded, folds
from adapt.text.corpus import is_plain, read_lines
from adapt.text.rows.reading import open_rows, rows_of

Hashes = NDArray[np.uint64]
_BASE = 0x9E37_79B9_7F4A_7C15 | 1
_INVERSE = pow(_BASE, -1, 1 << 64)
_FILTER_BITS = 24  # a table of 16 MB: most windows of a document are told apart without a search


@dataclass(frozen=True)
class EvaluationIndex:
    """Windows of evaluation texts by hash; `files` names the files, `width` and `shortest` are in characters.

    `stems` are the first `shortest` characters of the texts that count as a whole, `wholes` their hashes, `lengths` their lengths.
    """

    files: list[str]
    width: int
    shortest: int
    windows_W: Hashes
    window_files_W: NDArray[np.uint16]
    stems: Hashes
    wholes: Hashes
    whole_files: NDArray[np.uint16]
    lengths: NDArray[np.int64]

    @classmethod
    def of(cls, files: Mapping[str, Path], width: int, shortest: int) -> EvaluationIndex:
        """Read files of rows and index every text in them. Raises DataError for a row that is none."""
        return cls.of_texts({name: _texts_of(file) for name, file in files.items()}, width, shortest)

    @classmethod
    def of_texts(cls, found: Mapping[str, Iterable[str]], width: int, shortest: int) -> EvaluationIndex:
        """Index texts by the name of what they come from."""
        names = sorted(found)
        windows: list[Hashes] = []
        owners: list[NDArray[np.uint16]] = []
        wholes: dict[int, int] = {}
        stems: set[int] = set()
        lengths: set[int] = set()
        for number, name in enumerate(names):
            texts = sorted({plain for text in found[name] if len(plain := folded(text)) >= shortest})
            for start in range(0, len(texts), 4096):
                batch = Batch.of(texts[start : start + 4096])
                sums = _prefix_sums(batch.codes_N)
                for begin, length in zip(batch.starts_D.tolist(), batch.lengths_D.tolist(), strict=True):
                    if length >= width:
                        windows.append(_hashes(sums, np.arange(begin, begin + length - width + 1), width))
                        owners.append(np.full(len(windows[-1]), number, np.uint16))
                    else:
                        wholes.setdefault(int(_hashes(sums, np.asarray([begin]), length)[0]), number)
                        stems.add(int(_hashes(sums, np.asarray([begin]), shortest)[0]))
                        lengths.add(length)
        all_windows = np.concatenate(windows) if windows else np.zeros(0, np.uint64)
        all_owners = np.concatenate(owners) if owners else np.zeros(0, np.uint16)
        kept, first = np.unique(all_windows, return_index=True)
        order = sorted(wholes)
        return cls(
            names, width, shortest, kept, all_owners[first],
            np.asarray(sorted(stems), np.uint64), np.asarray(order, np.uint64),
            np.asarray([wholes[key] for key in order], np.uint16), np.asarray(sorted(lengths), np.int64),
        )  # fmt: skip

    def save(self, directory: Path) -> None:
        """Write the index, to be opened by processes that share its memory."""
        directory.mkdir(parents=True, exist_ok=True)
        for name in ("windows_W", "window_files_W", "stems", "wholes", "whole_files", "lengths"):
            np.save(directory / f"{name}.npy", getattr(self, name))
        write_json(directory / "index.json", {"files": self.files, "width": self.width, "shortest": self.shortest})

    @classmethod
    def open(cls, directory: Path) -> EvaluationIndex:
        """Open what `save` wrote; arrays stay on disk until they are read."""
        said = read_object(directory / "index.json")
        arrays = [
            np.load(directory / f"{name}.npy", mmap_mode="r")
            for name in ("windows_W", "window_files_W", "stems", "wholes", "whole_files", "lengths")
        ]
        return cls(said["files"], said["width"], said["shortest"], *arrays)

    def overlaps(self, batch: Batch) -> dict[int, int]:
        """Return the documents of a batch that share a passage with an evaluation file, and which file (its number)."""
        plain_N = folds()[batch.codes_N]
        places = np.flatnonzero(plain_N)
        plain_N, documents_N = plain_N[places], batch.documents_N[places]
        if not len(plain_N):
            return {}
        sums = _prefix_sums(plain_N)
        found: dict[int, int] = {}
        starts = _starts(documents_N, self.width)
        for start, owner in self._lookup(sums, starts, self.width, self._window_filter, self.windows_W, self.window_files_W):
            found.setdefault(int(documents_N[start]), owner)
        begins = _starts(documents_N, self.shortest)
        begins = begins[_is_in(_hashes(sums, begins, self.shortest), self._stem_filter, self.stems)]
        for length in self.lengths.tolist() if len(begins) else ():
            fitting = begins[begins + length <= len(plain_N)]
            fitting = fitting[documents_N[fitting + length - 1] == documents_N[fitting]]
            for start, owner in self._lookup(sums, fitting, length, None, self.wholes, self.whole_files):
                found.setdefault(int(documents_N[start]), owner)
        return found

    def _lookup(
        self, sums: Hashes, starts: NDArray[np.int64], length: int, bitmap: NDArray[np.bool_] | None, keys: Hashes, owners: Any
    ) -> Iterable[tuple[int, int]]:
        if not len(keys) or not len(starts):
            return []
        hashes = _hashes(sums, starts, length)
        if bitmap is not None:
            passed = bitmap[hashes >> np.uint64(64 - _FILTER_BITS)]
            hashes, starts = hashes[passed], starts[passed]
        at = np.minimum(np.searchsorted(keys, hashes), len(keys) - 1)
        hit = keys[at] == hashes
        return zip(starts[hit].tolist(), (int(owners[place]) for place in at[hit]), strict=True)

    @functools.cached_property
    def _window_filter(self) -> NDArray[np.bool_]:
        return _bitmap(self.windows_W)

    @functools.cached_property
    def _stem_filter(self) -> NDArray[np.bool_]:
        return _bitmap(self.stems)


def _bitmap(keys: Hashes) -> NDArray[np.bool_]:
    """Return which first bits of hashes there are. A byte each: looking one up is one read."""
    found = np.zeros(1 << _FILTER_BITS, np.bool_)
    found[np.asarray(keys) >> np.uint64(64 - _FILTER_BITS)] = True
    return found


def _is_in(hashes: Hashes, bitmap: NDArray[np.bool_], keys: Hashes) -> NDArray[np.bool_]:
    found = bitmap[hashes >> np.uint64(64 - _FILTER_BITS)]
    places = np.flatnonzero(found)
    if len(places):
        at = np.minimum(np.searchsorted(keys, hashes[places]), len(keys) - 1)
        found[places] = keys[at] == hashes[places]
    return found


def _starts(documents_N: NDArray[np.int64], length: int) -> NDArray[np.int64]:
    """Return the places at which so many characters of one document begin."""
    if len(documents_N) < length:
        return np.zeros(0, np.int64)
    return np.flatnonzero(documents_N[length - 1 :] == documents_N[: len(documents_N) - length + 1])


class _Powers:
    """Powers of the base and of its inverse, as many as the longest batch needed so far."""

    up: Hashes = np.ones(1, np.uint64)
    down: Hashes = np.ones(1, np.uint64)

    @classmethod
    def reach(cls, size: int) -> None:
        if len(cls.up) < size:
            size = 1 << (size - 1).bit_length()
            steps = np.full(size, _BASE, np.uint64), np.full(size, _INVERSE, np.uint64)
            for powers in steps:
                powers[0] = 1
            cls.up, cls.down = (np.multiply.accumulate(powers) for powers in steps)


@functools.cache
def _random() -> Hashes:
    """Return 64 random bits for each code point, the same ones every time."""
    return generator_for("corpus overlap").integers(0, 1 << 64, 0x11_0000, dtype=np.uint64)


def _prefix_sums(codes_N: NDArray[np.uint32]) -> Hashes:
    """Return sums of r(c_i) B^i over the first 0, 1, ... characters."""
    _Powers.reach(len(codes_N) + 1)
    sums = np.zeros(len(codes_N) + 1, np.uint64)
    np.cumsum(_random()[codes_N] * _Powers.up[: len(codes_N)], out=sums[1:])
    return sums


def _hashes(sums: Hashes, starts: NDArray[np.int64], length: int) -> Hashes:
    """Return the hash of `length` characters from each start."""
    return (sums[starts + length] - sums[starts]) * _Powers.down[starts]


def _texts_of(path: Path) -> Iterable[str]:
    """Yield every text in a file's rows, those in lists and objects too; a file of plain text has a text a line."""
    if is_plain(path):
        yield from (line for _, line in read_lines(path))
        return
    for row in rows_of(open_rows(path)):
        left: list[Any] = list(row.record.values())
        while left:
            value = left.pop()
            if isinstance(value, str):
                yield value
            elif isinstance(value, dict):
                left += value.values()
            elif isinstance(value, list):
                left += value
