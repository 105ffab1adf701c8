"""A rank: reads the frozen job, trains, and leaves; started by `pipelines.launch`, never by hand."""

from __future__ import annotations

import ctypes
import os
import signal
import sys
from pathlib import Path
from typing import Any

import torch
import yaml

from adapt.core.errors import AdaptError
from adapt.core.runtime import rank_from_environment, set_up_logging
from pipelines import continue_pretrain, pretrain
from pipelines.launch import USER_ERROR_CODE

_PR_SET_PDEATHSIG = 1
JOBS = {pretrain.NAME: pretrain.train_rank, continue_pretrain.NAME: continue_pretrain.train_rank}


def main(path: Path) -> int:
    """Run one rank's part of the job in `path`; return its exit code."""
    _die_with_parent()
    rank = rank_from_environment()
    set_up_logging(rank.rank)
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        JOBS[job["stage"]](job, rank)
    except AdaptError as error:
        (path.parent / f"rank-{rank.rank}.error").write_text(str(error), encoding="utf-8")
        return USER_ERROR_CODE
    return 0


def _die_with_parent() -> None:
    """Ask the kernel to end this process when its parent ends, so that no rank trains on behind a killed command."""
    if sys.platform == "linux":
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
        if os.getppid() != int(os.environ.get("MOE_ADAPT_PARENT", os.getppid())):
            os._exit(1)


if __name__ == "__main__":
    code = main(Path(sys.argv[1]))
    sys.stderr.flush()
    os._exit(code)  # other ranks may be gone: no collective clean-up on the way out
