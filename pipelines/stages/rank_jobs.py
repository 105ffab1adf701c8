"""What a rank does with its job: device, threads, logging, the stage's function, and user errors told to the parent."""

from __future__ import annotations

import logging
import os
import signal
import warnings
from pathlib import Path
from typing import Any

import torch
import yaml

from adapt.core.device import take_device
from adapt.core.errors import AdaptError
from adapt.core.faults import fault_in
from adapt.core.runtime import rank_from_environment, set_up_logging
from adapt.train.stopping import STOPPED_CODE, Stopped
from pipelines.ranks.launch import USER_ERROR_CODE
from pipelines.ranks.local import tell_starter
from pipelines.stages import continue_pretrain, distil, pretrain, scores

logger = logging.getLogger("pipelines")
JOBS = {
    pretrain.NAME: pretrain.train_rank,
    continue_pretrain.NAME: continue_pretrain.train_rank,
    distil.NAME: distil.train_rank,
    scores.NAME: scores.score_rank,
}


def run_rank(path: Path) -> int:
    """Run the job in `path` on this rank; a user error is told to whoever started it.

    Ctrl-C reaches a whole group of processes at once; it is the parent's to pass on.
    """
    signal.signal(signal.SIGINT, signal.SIG_IGN)
    rank = rank_from_environment()
    set_up_logging(rank.rank)
    warnings.filterwarnings("ignore", category=FutureWarning, module="torch")  # DeepSpeed's calls, nothing a user can mend
    torch.set_num_threads(int(os.environ["OMP_NUM_THREADS"]))
    job: dict[str, Any] = yaml.safe_load(path.read_text(encoding="utf-8"))
    try:
        take_device(rank)
        JOBS[job["stage"]](job, rank)
    except Stopped as stopped:
        logger.info("%s", stopped)
        return STOPPED_CODE
    except AdaptError as error:
        tell_starter(str(error))
        return USER_ERROR_CODE
    except Exception as error:
        found = fault_in(error, path.parent)
        if found is None:
            raise
        tell_starter(f"rank {rank.rank}: {found}" if rank.world_size > 1 else str(found))
        return USER_ERROR_CODE
    return 0
