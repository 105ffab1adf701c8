"""The inner parts of a model with their types: torch says no more of a submodule's attribute than `Tensor | Module`."""

from __future__ import annotations

from torch import Tensor, nn

from adapt.model.gpt import GPT, Block
from adapt.model.moe import MoELayer


def block_of(model: GPT, place: int) -> Block:
    block = model.blocks[place]
    assert isinstance(block, Block)
    return block


def moe_blocks(model: GPT) -> list[tuple[Block, MoELayer]]:
    """Return the blocks with experts, in order, each with its MoE layer."""
    return [(block, block.mlp) for block in model.blocks if isinstance(block, Block) and isinstance(block.mlp, MoELayer)]


def moe_layers(model: GPT) -> list[MoELayer]:
    return [layer for _, layer in moe_blocks(model)]


def parameter_of(module: nn.Module, name: str = "weight") -> nn.Parameter:
    parameter = getattr(module, name)
    assert isinstance(parameter, nn.Parameter)
    return parameter


def buffer_of(module: nn.Module, name: str) -> Tensor:
    buffer = getattr(module, name)
    assert isinstance(buffer, Tensor)
    return buffer


def gradient_of(parameter: Tensor) -> Tensor:
    assert parameter.grad is not None
    return parameter.grad
