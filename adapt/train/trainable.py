"""What of a model is trained: all of it, or one kind of its parameters while the others stay as they are.

`lora` leaves all of it as it is and trains a low-rank update beside it (`adapt.model.lora`).

`experts` are the routed experts' weights, `router` the gates', `head` the matrix that makes logits (with tied embeddings that is
the embedding too), `dense` whatever is neither expert nor gate: attention, norms, embeddings, dense and residual MLPs.
"""

from __future__ import annotations

from typing import Any, cast

import torch
from torch import Tensor, nn

from adapt.core.errors import ConfigError
from adapt.model.hf import HFModel
from adapt.model.inputs import CausalBase
from adapt.model.lora import add_lora
from adapt.model.lora_config import LoraConfig
from adapt.train.train_config import Trained

NO_LORA = (
    "trains=lora: is for Hugging Face bases, and this base is a model of this project's own; use all, dense, experts, router or "
    "head"
)


def train_only(model: nn.Module, trained: Trained, lora: LoraConfig | None = None, seed: int = 0) -> None:
    """Let gradients flow only to the parameters of one kind, or, with `lora`, to factors that are put beside them.

    Raises:
        ConfigError: the model has none of that kind.
    """
    if trained is Trained.ALL:
        return
    if trained is Trained.LORA:
        if not isinstance(model, HFModel):
            raise ConfigError(NO_LORA)
        add_lora(model, lora or LoraConfig(), seed)
        return
    base = cast(CausalBase, model)
    gates = {id(parameter) for layer in base.gates() for parameter in layer}
    experts = {id(parameter) for name, parameter in model.named_parameters() if ".experts." in name}
    everything = {id(parameter) for parameter in model.parameters()}
    chosen = {
        Trained.DENSE: everything - experts - gates,
        Trained.EXPERTS: experts - gates,
        Trained.ROUTER: gates,
        Trained.HEAD: _head(base),
    }[trained]
    if not chosen:
        raise ConfigError(f"trains={trained.value}: this model has no parameters of that kind; use all, or another one")
    for parameter in model.parameters():
        parameter.requires_grad_(id(parameter) in chosen)


def _head(base: CausalBase) -> set[int]:
    """Return the parameters that logits are made of: those at the ends of their graph."""
    weight = next(iter(cast(Any, base).parameters()))
    with torch.enable_grad():
        logits = base.logits(weight.new_zeros(1, base.hidden_size))
    found: set[int] = set()
    waiting: list[Any] = [logits.grad_fn]
    while waiting:
        node = waiting.pop()
        if node is None:
            continue
        variable: Tensor | None = getattr(node, "variable", None)
        if variable is not None:
            found.add(id(variable))
        waiting.extend(following for following, _ in node.next_functions)
    return found
