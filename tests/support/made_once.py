"""What takes long to make and is only read: made by one of the processes that share a test session, found by the others."""

from __future__ import annotations

import fcntl
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest

_DONE = "made"


def made_once(factory: pytest.TempPathFactory, name: str, make: Callable[[Path], None]) -> Path:
    """Return a directory that `make` filled, in this process or in another of the session; tests copy it to write into it.

    Under pytest-xdist a session-scoped fixture runs once per worker, and the workers' temporary directories lie in one of the
    session's, which is where this is kept. A worker waits while another makes it; if making fails, the next one tries.
    """
    own = factory.getbasetemp()
    session = own.parent if "PYTEST_XDIST_WORKER" in os.environ else own
    place = session / name
    with (session / f"{name}.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        done = session / f"{name}.{_DONE}"
        if not done.exists():
            shutil.rmtree(place, ignore_errors=True)
            place.mkdir()
            make(place)
            done.touch()
    return place
