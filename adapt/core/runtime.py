"""What a process knows of itself: rank, threads, seed, logging; and the determinism that resuming rests on."""

from __future__ import annotations

import hashlib
import logging
import os
import sys
from dataclasses import dataclass
from typing import TextIO

import numpy as np

from adapt.core.errors import shown

PREFIX = "MOE_ADAPT_PREFIX"  # in the environment of what runs side by side: begins its log lines
ONCE = {"is_said_once": True}  # the `extra` of a log line that a command says once, however often it comes by


@dataclass(frozen=True, kw_only=True)
class RankInfo:
    """A process's place among the ranks; read from environment variables only."""

    rank: int
    world_size: int
    local_rank: int

    @property
    def is_main(self) -> bool:
        return self.rank == 0


def rank_from_environment() -> RankInfo:
    """Read RANK, WORLD_SIZE and LOCAL_RANK; absent ones mean a single process."""
    return RankInfo(
        rank=int(os.environ.get("RANK", "0")),
        world_size=int(os.environ.get("WORLD_SIZE", "1")),
        local_rank=int(os.environ.get("LOCAL_RANK", "0")),
    )


def set_up_logging(rank: int = 0) -> None:
    """Send this project's log lines to standard error, plainly; ranks other than 0 only warn.

    They begin with what the environment's `PREFIX` says, where several commands write to one place.
    """
    handler = _StandardError()
    handler.setFormatter(_Shown(os.environ.get(PREFIX, "").replace("%", "%%") + "%(message)s"))
    handler.addFilter(_Repeats())
    for name in ("adapt", "pseudo_label", "pipelines"):
        log = logging.getLogger(name)
        log.handlers[:] = [handler]
        log.propagate = False
        log.setLevel(logging.INFO if rank == 0 else logging.WARNING)


class _StandardError(logging.StreamHandler[TextIO]):
    """Writes to what is standard error when a line comes: what it was at first may be closed by then."""

    def emit(self, record: logging.LogRecord) -> None:
        self.stream = sys.stderr
        super().emit(record)


class _Shown(logging.Formatter):
    """Escapes control characters that data brings into a line (file names, labels, texts), so that no terminal acts on them."""

    def format(self, record: logging.LogRecord) -> str:
        return shown(super().format(record), kept="\n\t")


class _Repeats(logging.Filter):
    """Drops lines marked `ONCE` that were said before."""

    def __init__(self) -> None:
        super().__init__()
        self._said: set[str] = set()

    def filter(self, record: logging.LogRecord) -> bool:
        if not getattr(record, "is_said_once", False):
            return True
        text = record.getMessage()
        is_new = text not in self._said
        self._said.add(text)
        return is_new


def seed_for(*parts: object) -> int:
    """Derive a 63-bit seed from any printable parts; the same parts give the same seed everywhere."""
    text = "\x1f".join(str(part) for part in parts)
    return int.from_bytes(hashlib.sha256(text.encode()).digest()[:8], "little") >> 1


def generator_for(*parts: object) -> np.random.Generator:
    """Return a NumPy generator seeded from `seed_for(*parts)`."""
    return np.random.Generator(np.random.PCG64(seed_for(*parts)))
