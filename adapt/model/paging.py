"""Where a model gets weights that it does not hold: the protocol of a provider, and of a model that wants many batches at once."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from contextlib import AbstractContextManager
from dataclasses import dataclass
from typing import Protocol, runtime_checkable

from torch import Tensor

from adapt.model.inputs import ModelInputs, ModelOutput


@dataclass(frozen=True, kw_only=True)
class ExpertWeights:
    """The two matrices of one expert."""

    up_FH: Tensor
    down_HF: Tensor


class WeightProvider(Protocol):
    """Gives a model's weights layer by layer and expert by expert, and reads ahead what it was told to expect.

    What is expected is read in that order; it is taken in that order too. Tensors are valid inside their `with` block, and are
    as they were stored.
    """

    def resident(self) -> Mapping[str, Tensor]:
        """Return the weights outside the blocks, by name; they stay."""
        ...

    def expect_layer(self, layer: int) -> None:
        """Read a layer's weights next, but for its experts' matrices."""
        ...

    def expect_experts(self, layer: int, experts: Sequence[int]) -> None:
        """Read these experts' matrices next."""
        ...

    def forget_experts(self, layer: int, experts: Sequence[int]) -> None:
        """Do not read these experts' matrices after all."""
        ...

    def layer(self, layer: int) -> AbstractContextManager[Mapping[str, Tensor]]:
        """Give a layer's weights by their names within the block, but for its experts' matrices."""
        ...

    def expert(self, layer: int, expert: int) -> AbstractContextManager[ExpertWeights]:
        """Give one expert's matrices."""
        ...


@runtime_checkable
class PassesTogether(Protocol):
    """A model to which a pass over its weights is dear: it takes several batches through each layer at once."""

    @property
    def pass_tokens(self) -> int:
        """Return how many tokens, padding included, are worth a pass."""
        ...

    def run_together(self, batches: Sequence[ModelInputs]) -> list[ModelOutput]:
        """Return each batch's output, the same bits as if it had come by itself."""
        ...
