"""Progress bars for anything over a few seconds; silent when standard error is not a terminal."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from typing import TypeVar

from tqdm import tqdm

T = TypeVar("T")


def progress(items: Iterable[T], what: str, total: int | None = None, unit: str = "it") -> Iterator[T]:
    """Iterate with a bar that appears after two seconds."""
    yield from tqdm(items, desc=what, total=total, unit=unit, delay=2.0, disable=None, leave=False)
