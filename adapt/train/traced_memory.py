"""What a Hugging Face model's forward pass keeps for its backward pass, traced without computing or allocating anything.

Legend: L layers, V vocabulary.

The family's own code runs on fake tensors, which have shapes and no content, and every storage that is made is counted while
something holds it. So what is frozen, what LoRA adds and what a fused kernel keeps are counted as they are. Layers are alike: one
and two of them are traced, and the others take what the second adds. Logits are counted by hand, since the loss cuts them into many
small blocks.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch
from torch import Tensor, nn
from torch._subclasses.fake_tensor import FakeTensorMode
from torch.multiprocessing.reductions import StorageWeakRef
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from adapt.core.limits import GIVEN_BACK
from adapt.model.hf import HFModel, frame_of
from adapt.model.inputs import ModelInputs
from adapt.objective import LOGIT_ELEMENTS
from adapt.train.step_moments import Passing


@dataclass(frozen=True, kw_only=True)
class _Traced:
    """Bytes that some layers keep for backward, of them those in blocks that a CPU's allocator gives back, and what backward adds.

    The weights' gradients are no part of it.
    """

    kept: float
    mapped: float
    backward: float
    block: float


def trace_memory(directory: Path, prepare: Callable[[HFModel], None], rows: int, tokens: int, dtype: torch.dtype) -> Passing:
    """Trace a micro-batch of `rows` full rows of so many tokens; `prepare` chooses what is trained, and what is computed again.

    Raises:
        ConfigError: transformers is not installed, or what is to be trained is not there.
        CheckpointError: the family is not served.
    """
    one, two = (_traced(directory, prepare, rows, tokens, dtype, n_layers) for n_layers in (1, 2))
    frame = frame_of(directory)
    n_layers, positions = int(frame.causal.config.num_hidden_layers), rows * tokens
    prepare(frame)
    table = frame.causal.get_output_embeddings().weight
    logits = min(positions, max(LOGIT_ELEMENTS // frame.vocab_size, 1)) * frame.vocab_size * dtype.itemsize
    return Passing(
        kept=one.kept + (n_layers - 1) * (two.kept - one.kept),
        mapped=one.mapped + (n_layers - 1) * (two.mapped - one.mapped),
        logits=logits,
        is_chunked=positions * frame.vocab_size > LOGIT_ELEMENTS,
        layer=two.backward,
        layer_block=two.block,
        table=table.numel() * dtype.itemsize if table.requires_grad else 0.0,
    )


def _traced(
    directory: Path, prepare: Callable[[HFModel], None], rows: int, tokens: int, dtype: torch.dtype, n_layers: int
) -> _Traced:
    """Trace the first layers of a model, up to the hidden states of its last one."""
    model = frame_of(directory, n_layers).train()
    prepare(model)
    with FakeTensorMode():
        _put_on_the_cpu(model, dtype)
        for parameter in model.parameters():
            if parameter.requires_grad:
                parameter.register_post_accumulate_grad_hook(_taken)
        ids = torch.zeros(rows, tokens, dtype=torch.int64)
        # With a past to keep, the family does not ask the positions' content for documents, which is not there.
        inputs = ModelInputs(ids_BT=ids, positions_BT=ids, documents_BT=ids, is_packed=False, keeps_past=True)
        with _Live(model) as live:
            hidden = model(inputs).hidden_BTH
            kept, mapped = live.present(), live.present(GIVEN_BACK)
            live.peak, live.block = kept, 0
            if hidden.requires_grad:
                hidden.backward(torch.ones_like(hidden))
    return _Traced(kept=kept, mapped=mapped, backward=live.peak - kept, block=live.block)


def _put_on_the_cpu(model: HFModel, dtype: torch.dtype) -> None:
    """Replace a frame's parameters and buffers by fake ones: kernels keep other things on the CPU than on the meta device."""
    made: dict[int, nn.Parameter] = {}
    for module in model.modules():
        for name, weight in module._parameters.items():
            if weight is not None:
                if id(weight) not in made:
                    made[id(weight)] = nn.Parameter(torch.empty(weight.shape, dtype=dtype), weight.requires_grad)
                module._parameters[name] = made[id(weight)]
        for name, buffer in module._buffers.items():
            if buffer is not None:
                module._buffers[name] = torch.empty(buffer.shape, dtype=buffer.dtype)


def _taken(parameter: Tensor) -> None:
    """Drop a gradient as the engine does, which has a place of its own for it."""
    parameter.grad = None


class _Live(TorchDispatchMode):
    """Counts the bytes of storages that were made inside and are still held, those of a model's weights aside."""

    def __init__(self, model: HFModel) -> None:
        super().__init__()
        self._weights = {p.untyped_storage()._cdata for p in [*model.parameters(), *model.buffers()]}
        self._sizes: dict[int, tuple[StorageWeakRef, int]] = {}
        self.peak = self.block = 0

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        made = func(*args, **(kwargs or {}))
        for tensor in tree_leaves(made):
            if isinstance(tensor, Tensor):
                storage = tensor.untyped_storage()
                if storage._cdata not in self._weights:
                    self._sizes[storage._cdata] = (StorageWeakRef(storage), storage.nbytes())
                    self.block = max(self.block, storage.nbytes())
        self.peak = max(self.peak, self.present())
        return made

    def present(self, least: int = 0) -> int:
        """Return how many bytes are held now in blocks of at least so many."""
        self._sizes = {place: held for place, held in self._sizes.items() if not held[0].expired()}
        return sum(size for _, size in self._sizes.values() if size >= least)
