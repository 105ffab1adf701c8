"""`python -m pipelines.record_sums checkpoint=DIR`

Record size and sha256 of a checkpoint's configuration and tokenizer in its index, and the sha256 of every tensor that has none yet;
from then on a file that was damaged or exchanged is refused when the checkpoint is opened. Checkpoints written by this project have
these sums; this is for older ones, and for a configuration or tokenizer that you changed yourself.

  checkpoint   a bare checkpoint, or a Hugging Face directory with an index (of the latter, only configuration and tokenizer)
"""

from __future__ import annotations

import sys
from dataclasses import dataclass
from pathlib import Path

from adapt.checkpoint.weights import record_sums
from adapt.core.artifacts import MANIFEST, is_artifact
from adapt.core.errors import CheckpointError
from adapt.core.faults import writable


@dataclass(frozen=True, kw_only=True)
class RecordConfig:
    """The directory of the checkpoint."""

    checkpoint: str


def record(config: RecordConfig) -> int:
    """Record the sums and say of how many tensors and files.

    Raises:
        CheckpointError: it is no checkpoint with an index, it is damaged, or a manifest has its sums already.
    """
    place = Path(config.checkpoint)
    if is_artifact(place):
        raise CheckpointError(f"{place}: has a {MANIFEST}, which records the sums of all its files; nothing is to be done")
    with writable(place):
        n_tensors, n_files = record_sums(place)
    sys.stdout.write(f"{place}: sums of {n_tensors} tensors and {n_files} files recorded\n")
    return 0
