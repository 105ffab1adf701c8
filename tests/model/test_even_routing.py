"""Even routing: every expert gets its share, a token's experts differ, and neighbours do not matter."""

from __future__ import annotations

import torch

from adapt.model.gpt import GPT, materialize
from adapt.model.inputs import ModelInputs
from adapt.model.routers.top2 import Top2Config
from tests.support.tiny_models import tiny_config


def inputs_of(ids_BT: torch.Tensor) -> ModelInputs:
    positions = torch.arange(ids_BT.shape[1]).repeat(len(ids_BT), 1)
    return ModelInputs(ids_BT=ids_BT, positions_BT=positions, documents_BT=torch.ones_like(ids_BT), is_packed=False)


@torch.inference_mode()
def test_every_expert_gets_its_share_of_random_weights_tokens() -> None:
    ids = torch.randint(0, 2400, (8, 64), generator=torch.Generator().manual_seed(0))
    model = materialize(GPT(tiny_config(experts=[8], router=Top2Config(), even_routing=True)), seed=0).eval()
    for report in model(inputs_of(ids)).routing:
        assert report.counts_E.sum() == 2 * ids.numel()
        assert report.counts_E.min() > 0.7 * 2 * ids.numel() / 8
        pairs = torch.stack([report.token_K, report.expert_K]).unique(dim=1)
        assert pairs.shape[1] == len(report.token_K), "a token's two experts differ"


@torch.inference_mode()
def test_a_token_is_sent_alike_whatever_stands_beside_it() -> None:
    ids = torch.randint(0, 2400, (3, 20), generator=torch.Generator().manual_seed(1))
    model = materialize(GPT(tiny_config(even_routing=True)), seed=0).eval()
    together, alone = model(inputs_of(ids)), model(inputs_of(ids[1:2]))
    for one, other in zip(together.routing, alone.routing, strict=True):
        assert torch.equal(one.expert_K[20:40], other.expert_K)
