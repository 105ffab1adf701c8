"""Being asked to stop: SIGTERM and SIGINT become a wish that the training loop grants at its next step boundary.

While a loop runs, the signals set a flag; the ranks add their flags up with the step's sums, so that all of them leave after the
same step. Outside of a loop there is nothing to save, and the signals end a process as they always do.
"""

from __future__ import annotations

import contextlib
import signal
from collections.abc import Iterator
from types import FrameType

STOPPED_CODE = 143
SIGNALS = (signal.SIGTERM, signal.SIGINT)


class Stopped(Exception):
    """Training was asked to stop and has saved its state; the same job goes on from there."""


class StopRequest:
    """Whether this process was asked to stop."""

    def __init__(self) -> None:
        self.is_made = False

    def make(self, number: int, frame: FrameType | None) -> None:
        """Take a signal for a request."""
        self.is_made = True


@contextlib.contextmanager
def stop_requests() -> Iterator[StopRequest]:
    """Turn signals into a request while the context lasts; only the main thread may enter it."""
    request = StopRequest()
    before = {number: signal.signal(number, request.make) for number in SIGNALS}
    try:
        yield request
    finally:
        for number, handler in before.items():
            signal.signal(number, handler)
