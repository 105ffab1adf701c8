"""What a training took of a rank's memory, beside what the plan says that it takes.

The peak is the process's own on a CPU, with the program and its libraries, and that of torch's allocator on a GPU. The plan is
`memory_plan`'s, for the project's own models; that of a Hugging Face base would have to be traced, which takes longer than is right
behind a training.
"""

from __future__ import annotations

import resource
import sys

import torch
from torch import nn

from adapt.checkpoint.offload import OffloadConfig
from adapt.model.counting import count_parameters
from adapt.model.gpt import GPT
from adapt.train.engine_config import EngineConfig
from adapt.train.memory_plan import plan_activations, plan_memory

_KILOBYTE = 1 if sys.platform == "darwin" else 1024  # what the system counts in


def peak_bytes() -> int:
    """Return the most memory that this rank has held so far."""
    if torch.cuda.is_available():
        return int(torch.cuda.max_memory_allocated())
    return resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * _KILOBYTE


def planned_bytes(model: nn.Module, engine: EngineConfig, offload: OffloadConfig) -> int | None:
    """Return what a rank's training is planned to take; None for a Hugging Face model."""
    if not isinstance(model, GPT):
        return None
    counts = count_parameters(model.config)
    trained = sum(parameter.numel() for parameter in model.parameters() if parameter.requires_grad)
    n_trained = None if all(parameter.requires_grad for parameter in model.parameters()) else trained
    activations = plan_activations(model.config, engine, model.router_traits.experts_per_token)
    return int(sum({**plan_memory(counts, engine, offload, n_trained), **activations}.values()))
