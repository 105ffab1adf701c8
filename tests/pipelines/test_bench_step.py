"""The plain loop of `bench step`: as large as the dense model that it is timed with, and it learns."""

from __future__ import annotations

import shutil

import pytest
import torch

from adapt.core.precision import Precision
from adapt.model.config import GPTConfig
from adapt.model.counting import count_parameters
from adapt.train.optimizer_config import OptimizerConfig
from pipelines.bench import plain_loop

SIZES = GPTConfig(n_layers=2, n_heads=2, hidden_size=16, context_length=12, vocab_size=40)


def test_the_plain_model_has_the_dense_models_weights() -> None:
    weights = sum(parameter.numel() for parameter in plain_loop.PlainGPT(SIZES).parameters())
    assert weights == count_parameters(SIZES).total


def test_a_plain_step_trains_and_says_that_it_is_not_compiled(monkeypatch: pytest.MonkeyPatch) -> None:
    losses: list[float] = []
    forward = plain_loop.PlainGPT.forward

    def watched(model: plain_loop.PlainGPT, ids_BT: torch.Tensor) -> torch.Tensor:
        loss = forward(model, ids_BT)
        losses.append(loss.item())
        return loss

    monkeypatch.setattr(plain_loop.PlainGPT, "forward", watched)
    monkeypatch.setattr(shutil, "which", lambda _: None)
    step, how = plain_loop.plain_step(SIZES, 3, Precision.FP32, OptimizerConfig())
    assert how == plain_loop.EAGER
    for _ in range(30):
        step()
    assert losses[-1] < losses[0]
