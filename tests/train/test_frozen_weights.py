"""Frozen weights in their files: the same bits as in memory, no converted form outlives its layer, and what is refused."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor
from torch.multiprocessing.reductions import StorageWeakRef

from adapt.checkpoint.offload import FrozenWeightsIn, OffloadConfig
from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.core.precision import Precision
from adapt.model.config import Recompute
from adapt.model.hf import HFModel
from adapt.model.hf_families import DENSE_FAMILIES
from adapt.model.inputs import ModelInputs
from adapt.model.lora_config import LoraConfig
from adapt.model.mapped_base import MappedBase
from adapt.train.engine_config import EngineConfig
from adapt.train.frozen_weights import check_frozen_weights, refuse_mapped_own
from adapt.train.hf_memory_plan import plan_foreign
from adapt.train.train_config import Trained
from adapt.train.trainable import train_only
from tests.support.forked_ranks import launch_ranks
from tests.support.hf_checkpoints import make_model, make_model_in
from tests.support.ranks.frozen_cases import CASES

VOCAB = 90
MAPPED = OffloadConfig(frozen_weights=FrozenWeightsIn.MAPPED)
FAST = ("gemma2", "gpt_oss")


def inputs() -> ModelInputs:
    ids = torch.randint(0, VOCAB, (3, 17), generator=torch.Generator().manual_seed(4))
    return ModelInputs(ids_BT=ids, positions_BT=torch.arange(17).expand(3, -1), documents_BT=torch.ones_like(ids), is_packed=False)


def head_gradient(model: HFModel) -> tuple[Tensor, Tensor]:
    """Return logits, and the gradient of the first layer's first trained matrix."""
    (first, *_) = [p for p in model.parameters() if p.requires_grad]
    logits = model.logits(model(inputs()).hidden_BTH.flatten(0, 1))
    logits.float().square().sum().backward()
    assert first.grad is not None
    return logits.detach(), first.grad


def opened(base: Path, frozen: FrozenWeightsIn) -> HFModel:
    """Open a base of which only the first matrix of the first layer is trained."""
    model = load_model(base, frozen=frozen)
    assert isinstance(model, HFModel)
    for parameter in model.requires_grad_(False).parameters():
        parameter.requires_grad_(parameter is next(p for p in model.layers()[0].parameters() if p.dim() > 1))
    if model.mapped is not None:
        model.mapped.settle(torch.float32)
    return model.train()


def test_ranks_train_the_same_bits_with_frozen_weights_in_their_files(tmp_path: Path) -> None:
    results = launch_ranks("frozen_cases", tmp_path, 2)
    for name in CASES:
        found, wanted = results[name], results[f"{name}, in memory"]
        assert found["history"] == wanted["history"] and found["measured"] == wanted["measured"], name
        assert found["weights"].keys() == wanted["weights"].keys(), name
        assert all(torch.equal(found["weights"][key], weight) for key, weight in wanted["weights"].items()), name
        assert found["formats"] and found["read-only"], name


@pytest.mark.parametrize(
    "family",
    [pytest.param(family, marks=() if family in FAST else pytest.mark.slow) for family in (*DENSE_FAMILIES, "gpt_oss")],
)
def test_a_family_computes_the_same_bits_of_converted_weights(family: str, tmp_path: Path) -> None:
    base = make_model_in(tmp_path / "base", family, VOCAB, torch.bfloat16)
    wanted, found = (head_gradient(opened(base, frozen)) for frozen in FrozenWeightsIn)
    assert all(torch.equal(*pair) for pair in zip(found, wanted, strict=True))


def test_no_converted_weight_outlives_its_layer(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    model = opened(make_model_in(tmp_path / "base", "llama", VOCAB, torch.bfloat16), FrozenWeightsIn.MAPPED)
    made: list[StorageWeakRef] = []
    replaced: Callable[..., AbstractContextManager[None]] = MappedBase._replaced

    def noted(self: MappedBase, slots: Any, converted: list[Tensor]) -> AbstractContextManager[None]:
        made.extend(StorageWeakRef(tensor.untyped_storage()) for tensor in converted)
        return replaced(self, slots, converted)

    monkeypatch.setattr(MappedBase, "_replaced", noted)
    logits = model.logits(model(inputs()).hidden_BTH.flatten(0, 1))
    assert logits.requires_grad and len(made) > 10
    assert all(storage.expired() for storage in made)


def test_the_plan_counts_a_layer_and_not_the_base(tmp_path: Path) -> None:
    base = make_model_in(tmp_path / "base", "llama", VOCAB, torch.bfloat16, num_hidden_layers=6)
    engine = EngineConfig(precision=Precision.FP32, micro_batch=2, activation_checkpointing=Recompute.FULL)
    held, mapped = (
        plan_foreign(base, engine, offload, Trained.LORA, LoraConfig(rank=2), 32, on_cpu=True)
        for offload in (OffloadConfig(), MAPPED)
    )
    frozen = held.training.counts.total
    assert held.memory["weights"] - mapped.memory["weights"] == 4 * frozen
    layer = sum(p.numel() for p in opened(base, FrozenWeightsIn.MEMORY).layers()[0].parameters())
    assert held.training.passing is not None
    assert held.moments["backward"] - mapped.moments["backward"] == pytest.approx(4 * frozen - 1.35 * 4 * layer, rel=0.02)


@pytest.mark.parametrize(
    ("family", "trains", "lora", "on_cpu", "words"),
    [
        ("llama", Trained.ALL, LoraConfig(), True, "trains=all freezes nothing; set trains=lora"),
        ("llama", Trained.LORA, LoraConfig(), False, "is for ranks that train on CPUs"),
        ("llama", Trained.LORA, LoraConfig(base_bits=4), True, "base_bits=4 makes a copy in memory"),
        ("mixtral", Trained.LORA, LoraConfig(), True, "stores experts one by one"),
    ],
)
def test_what_cannot_stay_in_its_files_is_refused(
    family: str, trains: Trained, lora: LoraConfig, on_cpu: bool, words: str, tmp_path: Path
) -> None:
    base = make_model(tmp_path / "base", family, VOCAB)
    with pytest.raises(ConfigError, match=f"^offload.frozen_weights=mapped: .*{words}"):
        check_frozen_weights(base, MAPPED, trains, lora, on_cpu=on_cpu)


def test_a_model_of_this_project_is_refused() -> None:
    with pytest.raises(ConfigError, match="offload.frozen_weights=mapped: is for Hugging Face bases"):
        refuse_mapped_own(MAPPED)


def test_trained_weights_of_a_mapped_base_are_its_own_in_fp32(tmp_path: Path) -> None:
    base = make_model_in(tmp_path / "base", "llama", VOCAB, torch.bfloat16)
    model = load_model(base, frozen=FrozenWeightsIn.MAPPED)
    assert isinstance(model, HFModel) and model.mapped is not None
    train_only(model, Trained.HEAD)
    views = {p.data_ptr() for p in model.parameters()}
    model.mapped.settle(torch.float32)
    for parameter in model.parameters():
        assert parameter.requires_grad == (parameter.dtype is torch.float32) == (parameter.data_ptr() not in views)
