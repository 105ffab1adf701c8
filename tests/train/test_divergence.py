"""A loss that is not finite, or explodes, ends a run before its update and says where it began; a run says what it will take."""

from __future__ import annotations

from collections import namedtuple
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import nn

import adapt.train.cost_estimate
from adapt.core.errors import ConfigError, TrainingError
from adapt.core.spans import LabelForm
from adapt.model.batches import collate
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.objective import token_nll
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.train.cost_estimate import estimate
from adapt.train.divergence import first_bad_layer
from adapt.train.engine_config import EngineConfig
from adapt.train.loop import Trainer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig
from tests.support.plain_engine import PlainEngine
from tests.support.ranks.rank_cases import readings
from tests.support.tiny_models import tiny_config

OPTIMIZER = OptimizerConfig(lr=3e-3)
TRAIN = TrainConfig(steps=8, batch_rows=5, optimizer=OPTIMIZER, save_every_steps=2)


def made() -> GPT:
    return materialize(GPT(tiny_config([3, 5], vocab_size=120, context_length=48)), seed=1)


def trainer_of(model: GPT) -> Trainer:
    engine: Any = PlainEngine(model, OPTIMIZER)
    return Trainer(engine, EngineConfig(micro_batch=4), ObjectiveConfig(), seed=5)


class Poison(NoTracker):
    """Sets values of a parameter after a step."""

    def __init__(self, parameter: nn.Parameter, value: float, step: int) -> None:
        self.parameter, self.value, self.step = parameter, value, step

    def log(self, metrics: Any, step: int) -> None:
        if step == self.step:
            with torch.no_grad():
                self.parameter.view(-1)[:4] = self.value


def poisoned(model: GPT, name: str, value: float, work: Path) -> None:
    poison = Poison(dict(model.named_parameters())[name], value, step=3)
    trainer_of(model).train(ReadingList(readings(LabelForm.CLM)), TRAIN, work, poison)


def test_a_loss_that_is_not_finite_names_its_part_and_the_first_bad_layer_and_leaves_a_good_state(tmp_path: Path) -> None:
    with pytest.raises(
        TrainingError, match=r"loss/context is nan at step 4, first in the output of blocks\.2\.attention\."
    ) as raised:
        poisoned(made(), "blocks.2.attention.qkv.weight", float("nan"), tmp_path)
    assert "last saved state is kept" in str(raised.value)
    assert [path.name for path in tmp_path.iterdir()] == ["step-00000002"]
    whole, resumed = made(), made()
    (tmp_path / "whole").mkdir()
    history = trainer_of(whole).train(ReadingList(readings(LabelForm.CLM)), TRAIN, tmp_path / "whole", NoTracker()).history
    assert trainer_of(resumed).train(ReadingList(readings(LabelForm.CLM)), TRAIN, tmp_path, NoTracker()).history == history
    wanted = dict(named_state(whole))
    assert all(torch.equal(tensor, wanted[name]) for name, tensor in named_state(resumed))


def test_an_exploding_loss_ends_the_run(tmp_path: Path) -> None:
    with pytest.raises(TrainingError, match=r"loss/context is .* nats a token at step 4, .* training explodes"):
        poisoned(made(), "final_norm.bias", 1e4, tmp_path)


@pytest.mark.parametrize("name", ["embedding", "blocks.1.mlp.experts", "blocks.3.mlp_norm", "final_norm"])
def test_the_first_bad_layer_is_the_innermost_one_where_it_begins(name: str) -> None:
    model = made()
    with torch.no_grad():
        for parameter in model.get_submodule(name).parameters():
            parameter.fill_(float("inf"))
    batch = collate([[reading] for reading in readings(LabelForm.CLM)])
    assert first_bad_layer(model, [collate([]), batch], lambda values: values) == name


def test_a_sound_model_has_no_bad_layer() -> None:
    batch = collate([[reading] for reading in readings(LabelForm.CLM)])
    assert first_bad_layer(made(), [batch], lambda values: values) is None


def test_losses_by_row_are_those_of_each_row_by_itself() -> None:
    model, rows = made(), readings(LabelForm.CLM)[:7]
    found = trainer_of(model).row_losses(ReadingList(rows))[0]
    with torch.no_grad():
        for reading, (total, count) in zip(rows, found, strict=True):
            batch = collate([[reading]])
            keep = batch.targets_BT >= 0
            nll = token_nll(model, model.eval()(batch.inputs).hidden_BTH[keep], batch.targets_BT[keep])
            assert count == len(nll)
            assert total == pytest.approx(float(nll.double().sum()), rel=1e-5)
    assert np.isfinite(found).all()


def test_an_estimate_says_steps_time_and_disk(tmp_path: Path) -> None:
    model = made()
    n = sum(parameter.numel() for parameter in model.parameters())
    found = estimate(model, TRAIN, tokens_per_step=100, forward_tokens_per_s=50.0, work=tmp_path)
    assert (found.steps, found.seconds) == (8, pytest.approx(8 * 100 * 3 / 50))
    assert found.disk == 3 * 12 * n + 4 * n
    model.embedding.weight.requires_grad_(False)
    assert estimate(model, TRAIN, 100, None, tmp_path).disk == found.disk - 3 * 8 * model.embedding.weight.numel()
    assert "8 steps of about 100 tokens, at least 48 s" in str(found)


def test_a_disk_that_cannot_hold_the_states_is_refused_before_the_first_step(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    usage = namedtuple("usage", "total used free")
    monkeypatch.setattr(adapt.train.cost_estimate.shutil, "disk_usage", lambda place: usage(10, 10, 1000))
    with pytest.raises(ConfigError, match=r"training needs up to .* GB there .* are free; free space, or choose another run\.dir"):
        estimate(made(), TRAIN, 100, None, tmp_path)
