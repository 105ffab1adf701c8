"""`python -m pipelines.random_checkpoint model=NAME output=DIR [tokenizer from run.name] [model.even_routing=true]`

Write an untrained model of any size as a checkpoint, streamed: for measuring what loading and scoring a model of that size costs.
Its tokenizer is the run's (`python -m pipelines.tokenizer run.name=NAME`). `pretrain.save_precision` is bf16 unless set.
"""

from __future__ import annotations

import sys
import time
from pathlib import Path

from adapt.checkpoint.vocabulary import check_vocabulary, open_tokenizer
from adapt.core.errors import ConfigError
from adapt.core.faults import writable
from pipelines.config.schema import PipelineConfig
from pipelines.stages.run import Run

NAME = "random_checkpoint"


def make(config: PipelineConfig, point: str | None) -> None:
    """Write the checkpoint.

    Raises:
        ConfigError: there is no place for it, or there is a checkpoint already.
    """
    from adapt.checkpoint.random_weights import random_weights  # these import torch
    from adapt.checkpoint.weights import has_weights, rounded, save_model

    run = Run(config, point)
    model = run.own_model()
    if config.output is None:
        raise ConfigError("no output given; set output=DIR, the directory of the checkpoint to be made")
    place = Path(config.output)
    if has_weights(place) and not config.force:
        raise ConfigError(f"{place}: holds a checkpoint already; choose another place, or set force=true")
    tokenizer = open_tokenizer(run.require("tokenizer").path)
    check_vocabulary(tokenizer, model)
    started = time.monotonic()
    with writable(place):
        place.mkdir(parents=True, exist_ok=True)
        save_model(place, model, rounded(random_weights(model, config.seed), config.pretrain.save_precision), tokenizer)
    size = sum(file.stat().st_size for file in place.iterdir())
    sys.stdout.write(f"{place}: {size / 1e9:.2f} GB in {time.monotonic() - started:.1f} s\n")
