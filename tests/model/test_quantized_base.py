"""LoRA over a base in 8 or 4 bits: refused where bitsandbytes is missing; where it is there, factors train and the base stands."""

from __future__ import annotations

import importlib.util
import sys
from pathlib import Path

import pytest
import torch
from torch import Tensor

from adapt.core.errors import ConfigError
from adapt.model.hf import HFModel
from adapt.model.inputs import ModelInputs
from adapt.model.lora import add_lora
from adapt.model.lora_config import LoraConfig
from adapt.model.quantized_base import import_bitsandbytes
from tests.support.hf_checkpoints import make_model
from tests.support.lora_cases import opened

NEEDS_IT = pytest.mark.skipif(importlib.util.find_spec("bitsandbytes") is None, reason="bitsandbytes is not installed")


def loss_of(model: HFModel) -> Tensor:
    ids_BT = torch.arange(24).reshape(2, 12) % model.vocab_size
    inputs = ModelInputs(
        ids_BT=ids_BT, positions_BT=torch.arange(12).repeat(2, 1), documents_BT=torch.ones_like(ids_BT),
        domains_BT=torch.zeros_like(ids_BT), is_packed=False,
    )  # fmt: skip
    logits_BTV = model.logits(model(inputs).hidden_BTH)
    return torch.nn.functional.cross_entropy(logits_BTV[:, :-1].flatten(0, 1).float(), ids_BT[:, 1:].flatten())


def test_another_number_of_bits_is_refused() -> None:
    with pytest.raises(ConfigError, match="base_bits: 5 is none of 16, 8, 4"):
        LoraConfig(base_bits=5)


def test_without_the_package_it_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "bitsandbytes", None)
    with pytest.raises(ConfigError, match=r"lora.base_bits=4: needs the package bitsandbytes .*moe-adapt\[quantized\]"):
        import_bitsandbytes(4)


@NEEDS_IT
def test_a_device_that_it_does_not_serve_is_one_line(monkeypatch: pytest.MonkeyPatch) -> None:
    def fails(*_: object, **__: object) -> None:
        raise RuntimeError("no kernel here\nand more")

    monkeypatch.setattr("adapt.model.quantized_base._quantized", fails)
    with pytest.raises(ConfigError, match=r"does not serve on this machine's \w+ \(no kernel here\); use 16"):
        import_bitsandbytes(8)


@NEEDS_IT
@pytest.mark.parametrize(("bits", "most_apart"), [(8, 0.02), (4, 0.2)])
def test_factors_train_beside_a_rounded_base_that_stands(bits: int, most_apart: float, tmp_path: Path) -> None:
    place = make_model(tmp_path, "llama", 64)
    exact, rounded = opened(place), opened(place)
    whole = float(loss_of(exact))
    add_lora(rounded, LoraConfig(base_bits=bits), seed=1)
    first = float(loss_of(rounded))
    assert first == pytest.approx(whole, abs=most_apart) and first != whole
    before = {name: p.detach().clone() for name, p in rounded.named_parameters() if not p.requires_grad}
    trained = [p for p in rounded.parameters() if p.requires_grad]
    optimizer = torch.optim.AdamW(trained, lr=1e-2)
    for _ in range(8):
        optimizer.zero_grad()
        loss = loss_of(rounded)
        loss.backward()
        assert all(p.grad is not None for p in trained)
        optimizer.step()
    assert float(loss_of(rounded)) < first - 0.05
    for name, parameter in rounded.named_parameters():
        if not parameter.requires_grad:
            assert torch.equal(parameter, before[name]), name
    assert {p.dtype for n, p in rounded.named_parameters() if "q_proj.base_layer" in n} == {
        torch.int8 if bits == 8 else torch.uint8
    }
