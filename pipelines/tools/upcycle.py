"""`python -m pipelines.upcycle source=DIR output=DIR [experts=8] [key=value ...]`

Make a sparse checkpoint from a dense one: experts are copies of each layer's feed-forward part, routers are new, and the logits are
the source's to fp32 rounding, which is checked before the result is left in its place. Training then makes experts differ.

  source            a dense checkpoint of this project, or a Hugging Face directory of llama, mistral, qwen2 or qwen3
  output            directory to be made: a checkpoint of the source's kind (mixtral, qwen2_moe or qwen3_moe of the latter)
  experts           experts of a layer (8); of a model of this project also one count for each MoE layer: experts=[0,4,8]
  router.name       of a model of this project: top2 (default) or another router; its settings are router.KEY=VALUE
  is_residual       of a model of this project: true adds a copy as a dense MLP next to the experts
  expert_residual_layers   of a model of this project: depth of the network after the experts (0)
  experts_per_token of a Hugging Face model: 2 unless given, from 2 on
  layers            of qwen2 and qwen3: numbers of the layers that become sparse, from 0; all unless given
  split             of a Hugging Face model: parts that each copy is cut into, which are experts of their own (1)
  noise             standard deviation of noise on each copy, as a share of its weights' root mean square (0: answers stay equal)
  seed              of new routers and of noise (0)
  compare           false leaves out the comparison, for which source and result are loaded in fp32, one after the other
  force             true writes over a checkpoint that is there
"""

from __future__ import annotations

import shutil
import sys
import time
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from adapt.checkpoint.upcycling.options import UpcycleOptions
from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.faults import writable
from adapt.core.runtime import generator_for

if TYPE_CHECKING:
    from adapt.checkpoint.upcycling.foreign import Plan

_ROWS, _ROW_TOKENS = 4, 48
_TOLERANCE = 1e-4  # of the largest logit: fp32 rounding through some tens of layers


@dataclass(frozen=True, kw_only=True)
class UpcycleConfig(UpcycleOptions):
    """A dense checkpoint, and the sparse one that is made of it."""

    source: str
    output: str
    compare: bool = True
    force: bool = False


def upcycle(config: UpcycleConfig) -> int:
    """Write the sparse checkpoint, compare it with the source, and put it into its place.

    Raises:
        ConfigError: the options make no model, or the directory holds something else.
        CheckpointError: the source cannot be upcycled, or the result answers otherwise.
    """
    from adapt.checkpoint.hf_directory import is_delta, is_hf_directory  # these import torch
    from adapt.checkpoint.upcycling.foreign import write_sparse_sibling
    from adapt.checkpoint.upcycling.own import write_sparse
    from adapt.checkpoint.weights import count_weights, has_weights
    from pipelines.stages.models import open_model_artifact, weights_of

    place, started = Path(config.output), time.monotonic()
    source = weights_of(open_model_artifact(Path(config.source), "source"))
    if is_delta(source):
        raise CheckpointError(f"{source}: is a delta, which has no weights of its own; export it with export.form=merged first")
    if place.resolve() == source.resolve():
        raise ConfigError(f"{place}: is the source; choose another output")
    if place.is_dir() and any(place.iterdir()) and not (config.force and has_weights(place)):
        advice = "choose another place, or set force=true" if has_weights(place) else "choose another place"
        raise ConfigError(f"{place}: is not empty; {advice}")
    scratch = place.with_name(f".{place.name}.unfinished")
    with writable(place):
        shutil.rmtree(scratch, ignore_errors=True)
        scratch.mkdir(parents=True)
        try:
            is_foreign = is_hf_directory(source)
            what = _foreign_words(write_sparse_sibling(scratch, source, config)) if is_foreign else ""
            if not is_foreign:
                write_sparse(scratch, source, config)
            said = _compared(source, scratch, config.noise) if config.compare else "not compared with the source"
            shutil.rmtree(place, ignore_errors=True)
            scratch.rename(place)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    before, after = count_weights(source), count_weights(place)
    sys.stdout.write(f"{place}: {what}{after:,} weights of {before:,}, {time.monotonic() - started:.0f} s\n  {said}\n")
    return 0


def _foreign_words(plan: Plan) -> str:
    return f"{plan.family.name} with {plan.n_experts} experts in {len(plan.layers)} layers, {plan.experts_per_token} a token; "


def _compared(source: Path, result: Path, noise: float) -> str:
    """Compare the logits of source and result on some rows of tokens, and say what came out.

    Raises:
        CheckpointError: they differ by more than rounding, though copies are equal.
    """
    from adapt.checkpoint.weights import load_model
    from adapt.model.compared_logits import compared, logits_of

    model = load_model(source)
    draws = generator_for("upcycle", "rows").integers(model.vocab_size, size=(_ROWS, min(_ROW_TOKENS, model.context_length)))
    rows = draws.tolist()
    expected = logits_of(model, rows)
    del model
    found = compared(expected, logits_of(load_model(result), rows))
    if not noise and not found.relative <= _TOLERANCE:
        raise CheckpointError(f"{result}: does not answer as {source} does ({found}); nothing is kept")
    return str(found)
