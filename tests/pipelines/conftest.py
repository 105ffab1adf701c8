"""One smallest whole run, shared by the tests that look at its results."""

from __future__ import annotations

from pathlib import Path

import pytest
from command_line import SMALLEST, run


@pytest.fixture(scope="session")
def smallest_run(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Return the run directory (`<run.dir>/demo`) of a finished walk."""
    place = tmp_path_factory.mktemp("runs")
    done = run("run", *SMALLEST, f"run.dir={place}")
    assert done.returncode == 0, done.stderr
    (place / "output.txt").write_text(done.stdout, encoding="utf-8")
    return place / "demo"
