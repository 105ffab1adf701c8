"""A rank: reads the frozen job, trains, and leaves; started by `pipelines.ranks`, never by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path

_PR_SET_PDEATHSIG = 1


def die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that no rank trains on behind a killed command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("MOE_ADAPT_PARENT", os.getppid())):
            os._exit(1)


def main(path: Path) -> int:
    """Run one rank's part of the job in `path`; return its exit code."""
    from pipelines.stages.rank_jobs import run_rank  # after die_with_parent: importing torch takes seconds

    return run_rank(path)


if __name__ == "__main__":
    die_with_parent()
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # other ranks may be gone: no collective clean-up on the way out
