"""What a training took of a rank's memory, and what it was planned to take.

The peak is the process's own private memory on a CPU, with the program but without the files that it maps (libraries, checkpoints),
and that of torch's allocator on a GPU. A plan is made outside the ranks: tracing a Hugging Face base would count for their peak.
"""

from __future__ import annotations

import resource
import sys
from pathlib import Path

import torch

from adapt.checkpoint.hf_directory import is_delta, is_hf_directory
from adapt.checkpoint.offload import OffloadConfig
from adapt.checkpoint.weights import load_config
from adapt.model.config import GPTConfig
from adapt.text.packing import RowSource
from adapt.train.engine_config import EngineConfig
from adapt.train.hf_memory_plan import plan_foreign
from adapt.train.memory_checks import computes_on_cpus
from adapt.train.memory_plan import OwnModel, plan_own
from adapt.train.train_config import TrainConfig

_KILOBYTE = 1 if sys.platform == "darwin" else 1024  # what the system counts in
_STATUS = Path("/proc/self/status")
_MOST_ROWS = 1000


def peak_bytes() -> int:
    """Return the most memory that this rank has held so far."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE - _mapped_bytes()


def longest_row(rows: RowSource) -> int:
    """Return the tokens of the longest row, of at most a thousand rows that are spread over all."""
    step = max(len(rows) // _MOST_ROWS, 1)
    return max((sum(len(reading) for reading in rows.row(index, 0)) for index in range(0, len(rows), step)), default=0)


def planned_bytes(
    model: GPTConfig | Path, engine: EngineConfig, offload: OffloadConfig, train: TrainConfig, tokens: int
) -> int | None:
    """Return what a rank's training of a model of some sizes, or of a checkpoint, was planned to take for rows of so many tokens.

    None where a plan has no activations: of a sparse Hugging Face base, and of a delta.
    """
    on_cpu = computes_on_cpus(engine)
    if isinstance(model, Path) and is_delta(model):
        return None
    if isinstance(model, Path) and is_hf_directory(model):
        plan = plan_foreign(
            model, engine, offload, train.trains, train.lora, tokens,
            on_cpu=on_cpu, batch_rows=train.batch_rows, is_kept_near=train.is_kept_near,
        )  # fmt: skip
        return int(plan.total) if plan.training.passing is not None else None
    sizes = model if isinstance(model, GPTConfig) else load_config(model)
    own = OwnModel.of(sizes, train.trains)
    planned = plan_own(
        own, engine, offload, on_cpu=on_cpu, tokens=tokens, batch_rows=train.batch_rows, is_kept_near=train.is_kept_near
    )
    return int(planned.total)


def _mapped_bytes() -> int:
    """Return the pages of files that are in memory now; 0 where the system does not say."""
    lines = _STATUS.read_text(encoding="ascii").splitlines() if _STATUS.is_file() else []
    return sum(int(line.split()[1]) * 1024 for line in lines if line.startswith("RssFile:"))
