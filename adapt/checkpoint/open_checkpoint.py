"""Opening a checkpoint for scoring: model, tokenizer and a `Scorer` from one directory."""

from __future__ import annotations

from dataclasses import dataclass, replace
from pathlib import Path

import torch

from adapt.checkpoint.delta import ChangingModel, open_changing, open_delta
from adapt.checkpoint.hf_directory import is_delta, is_hf_directory
from adapt.checkpoint.offload import OffloadConfig, Verify, WeightsIn
from adapt.checkpoint.store import open_store
from adapt.checkpoint.vocabulary import load_tokenizer
from adapt.checkpoint.weights import load_config, load_model, open_paged
from adapt.core.errors import CheckpointError, ConfigError
from adapt.model.inputs import CausalBase
from adapt.scoring.scorer_config import ScorerConfig
from adapt.scoring.tree_scorer import TreeScorer
from adapt.text.contract import TextTokenizer


@dataclass(frozen=True, kw_only=True)
class OpenCheckpoint:
    """A loaded checkpoint, ready to score; `changing` where it is a delta on a base that is in memory."""

    model: CausalBase
    tokenizer: TextTokenizer
    scorer: TreeScorer
    device: str = "cpu"
    changing: ChangingModel | None = None

    def switched_to(self, directory: Path, verify: Verify = Verify.SAMPLE) -> OpenCheckpoint:
        """Put another delta in this one's place, on the base that is in memory; from then on both score by it.

        Raises:
            CheckpointError: this or the other one is no delta, or they have different bases.
        """
        if self.changing is None or not is_delta(directory):
            what = directory if self.changing is not None else "what is open"
            raise CheckpointError(f"{what}: is no delta, so it cannot take turns with others on one base; load it by itself")
        self.changing.apply(open_delta(directory, self.changing.base, verify))
        return replace(self, tokenizer=load_tokenizer(directory, self.model))


def open_checkpoint(
    directory: Path, scorer: ScorerConfig, offload: OffloadConfig | None = None, base: Path | None = None
) -> OpenCheckpoint:
    """Open a checkpoint directory (an artifact with weights, an export, or a Hugging Face directory) on the GPU if there is one.

    `scorer` must be resolved: its precision says what the model computes in. `base` is where a delta's base is, if it is no longer
    where it was.

    Raises:
        CheckpointError: it is incomplete or damaged, or its tokenizer is another model's.
        ConfigError: its weights cannot be held as `offload` says.
    """
    offload = offload or OffloadConfig()
    device = "cuda" if torch.cuda.is_available() else "cpu"
    dtype = scorer.precision.dtype if scorer.precision.is_rounded else None
    # A tokenizer that is missing or another model's is refused before a large model is read; a foreign one needs its model.
    is_foreign = is_hf_directory(directory)
    own = None if is_foreign else load_tokenizer(directory, load_config(directory))
    model: CausalBase
    changing = None
    if is_delta(directory):
        changing = _open_delta(directory, offload, device, dtype, base)
        model = changing.model
    elif is_foreign:
        model = _open_foreign(directory, offload, device, dtype)
    elif offload.weights is WeightsIn.MEMORY:
        model = load_model(directory, device=device, dtype=dtype, verify=offload.verify)
    else:
        model = open_paged(directory, offload, device, dtype)
    tokenizer = load_tokenizer(directory, model) if own is None else own
    return OpenCheckpoint(
        model=model, tokenizer=tokenizer, scorer=TreeScorer(model, scorer, device), device=device, changing=changing
    )


def _open_delta(
    directory: Path, offload: OffloadConfig, device: str, dtype: torch.dtype | None, base: Path | None
) -> ChangingModel:
    delta = open_delta(directory, base, offload.verify)
    _check_foreign(delta.base, offload, dtype)
    return open_changing(directory, device, dtype, offload.verify, delta.base)


def _open_foreign(directory: Path, offload: OffloadConfig, device: str, dtype: torch.dtype | None) -> CausalBase:
    """Load a Hugging Face model; on a CPU its weights stay views of the mapped files where they are stored as they are computed."""
    _check_foreign(directory, offload, dtype)
    return load_model(directory, device=device, dtype=dtype, verify=offload.verify)


def _check_foreign(directory: Path, offload: OffloadConfig, dtype: torch.dtype | None) -> None:
    """Compare where a Hugging Face model's weights are to be with how they are stored.

    Raises:
        ConfigError: weights that were to be mapped would all be copied, or were to come through a ring.
    """
    if offload.weights is WeightsIn.RING:
        raise ConfigError(
            "offload.weights=ring: Hugging Face models compute all layers at once; set offload.weights=mmap or memory"
        )
    if offload.weights is WeightsIn.MMAP:
        stored = {place.dtype for place in open_store(directory, Verify.NEVER).tensors.values()}
        wanted = dtype or torch.float32
        if stored != {wanted}:
            names = ", ".join(sorted(map(str, stored)))
            raise ConfigError(
                f"offload.weights=mmap: {directory} stores {names} and would be copied whole to {wanted}; set scorer.precision to "
                "what is stored, or offload.weights=memory"
            )
