"""What a routed layer keeps for the backward pass: its tokens, the values before GELU, and a few numbers a token."""

from __future__ import annotations

import pytest
import torch
from torch import Tensor

from adapt.model.inputs import ModelInputs
from adapt.model.moe import MoELayer
from adapt.model.routers.contract import RouterConfig
from adapt.model.routers.top1 import Top1Config
from adapt.model.routers.top2 import Top2Config

HIDDEN, WIDTH, EXPERTS, ROWS, POSITIONS = 64, 256, 4, 4, 128
TOKENS = ROWS * POSITIONS
NUMBERS_PER_TOKEN = 200  # bytes: ids, places, probabilities, logits


def layer_of(router: RouterConfig, dtype: torch.dtype) -> MoELayer:
    layer = MoELayer(HIDDEN, WIDTH, EXPERTS, router, is_residual=False)
    for name, parameter in layer.named_parameters():
        parameter.data.normal_(0.0, 0.1, generator=torch.Generator().manual_seed(len(name)))
    layer.experts.to(dtype)
    return layer.train()


def kept_bytes(layer: MoELayer, x_BTH: Tensor, inputs: ModelInputs) -> int:
    """Add up all memory that the backward pass is given, but for the weights."""
    kept: dict[int, int] = {}

    def keep(tensor: Tensor) -> Tensor:
        storage = tensor.untyped_storage()
        kept[storage.data_ptr()] = storage.nbytes()
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
        out_BTH, _ = layer(x_BTH, inputs)
    for parameter in layer.parameters():
        kept.pop(parameter.untyped_storage().data_ptr(), None)
    assert out_BTH.requires_grad
    return sum(kept.values())


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
@pytest.mark.parametrize(("router", "k"), [(Top1Config(), 1), (Top2Config(), 2)])
@pytest.mark.parametrize("n_padding", [0, 37])
def test_a_layer_keeps_its_tokens_and_the_values_before_gelu(
    router: RouterConfig, k: int, dtype: torch.dtype, n_padding: int
) -> None:
    ids_BT = torch.zeros(ROWS, POSITIONS, dtype=torch.int64)
    documents_BT = torch.ones_like(ids_BT)
    documents_BT[0, POSITIONS - n_padding :] = 0
    positions_BT = torch.arange(POSITIONS).expand_as(ids_BT)
    inputs = ModelInputs(ids_BT=ids_BT, positions_BT=positions_BT, documents_BT=documents_BT, is_packed=False)
    x_BTH = torch.randn(ROWS, POSITIONS, HIDDEN, generator=torch.Generator().manual_seed(1)).to(dtype).requires_grad_()
    found = kept_bytes(layer_of(router, dtype), x_BTH, inputs)
    wanted = (TOKENS - n_padding) * (HIDDEN + k * WIDTH) * dtype.itemsize
    assert wanted <= found <= wanted + k * TOKENS * NUMBERS_PER_TOKEN
