"""Imported before ranks are forked: torch, DeepSpeed, PEFT, and all that a rank imports only when it trains or scores."""

from __future__ import annotations

import gc

import peft  # noqa: F401
import torch
from transformers.models.llama import modeling_llama  # noqa: F401

import adapt.train.job  # noqa: F401
import pipelines.stages.rank_jobs  # noqa: F401
from adapt.model.routers.contract import all_routers
from adapt.text import tokenized_corpus

tokenized_corpus._datasets()
all_routers()
torch.set_num_threads(1)
torch.optim.AdamW([torch.zeros(1)])
gc.collect()
gc.freeze()  # ranks share these objects, and their collectors need not look at them
