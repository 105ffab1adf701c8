"""Imported before ranks are forked: torch, DeepSpeed, and what both import only when a model is trained."""

from __future__ import annotations

import torch

import pipelines.stages.rank_jobs  # noqa: F401

torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])
