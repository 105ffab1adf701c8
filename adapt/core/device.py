"""The device of a rank, made the process's own before anything is computed.

Much of CUDA works on the process's current device, whatever device its tensors are on: Triton's kernels, memory that is asked for
as `cuda`, the context that a library opens. So a rank takes its device first, in training and in scoring.
"""

from __future__ import annotations

import torch

from adapt.core.errors import ConfigError
from adapt.core.runtime import RankInfo


def take_device(rank: RankInfo) -> torch.device:
    """Return a rank's device, its own GPU where there are GPUs, and make it the process's current one.

    Raises:
        ConfigError: the machine has fewer GPUs than ranks.
    """
    if not torch.cuda.is_available():
        return torch.device("cpu")
    n_devices = torch.cuda.device_count()
    if rank.local_rank >= n_devices:
        raise ConfigError(
            f"rank {rank.rank} has no GPU: it is number {rank.local_rank + 1} on its machine, where {n_devices} can be seen; "
            "lower engine.world_size, or the slots of engine.hostfile"
        )
    device = torch.device("cuda", rank.local_rank)
    torch.cuda.set_device(device)
    return device
