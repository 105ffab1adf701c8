"""The project's loggers, given back as they were: a command points them at its standard error, which a test's end may close."""

from __future__ import annotations

import contextlib
import logging
from collections.abc import Iterator

NAMES = ("adapt", "pseudo_label", "pipelines")


@contextlib.contextmanager
def kept_loggers() -> Iterator[None]:
    """Give the loggers back their handlers and levels at the end of the block."""
    loggers = [logging.getLogger(name) for name in NAMES]
    before = [(log.handlers[:], log.propagate, log.level) for log in loggers]
    try:
        yield
    finally:
        for log, (handlers, propagate, level) in zip(loggers, before, strict=True):
            log.handlers[:], log.propagate = handlers, propagate
            log.setLevel(level)
