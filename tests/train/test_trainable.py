"""What is trained is one kind of a model's parameters; moments outlive the run that made them."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
import torch

from adapt.core.errors import CheckpointError, ConfigError
from adapt.core.spans import LabelForm
from adapt.model.gpt import GPT, materialize
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.train.engine_config import EngineConfig
from adapt.train.loop import Trainer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only
from adapt.train.training_state import MOMENTS, load_moments, save_moments
from tests.support.plain_engine import PlainEngine
from tests.support.ranks.rank_cases import readings
from tests.support.tiny_models import tiny_config

OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_share=0.0)
KINDS = {
    Trained.ALL: lambda name: True,
    Trained.DENSE: lambda name: ".experts." not in name and ".router." not in name,
    Trained.EXPERTS: lambda name: ".experts." in name,
    Trained.ROUTER: lambda name: ".router." in name,
    Trained.HEAD: lambda name: name == "embedding.weight",
}


def made(experts: list[int]) -> GPT:
    return materialize(GPT(tiny_config(experts, vocab_size=120, context_length=48)), seed=1)


def trained(model: GPT, trains: Trained, work: Path) -> Any:
    train_only(model, trains)
    engine: Any = PlainEngine(model, OPTIMIZER)
    config = TrainConfig(steps=3, batch_rows=9, optimizer=OPTIMIZER, trains=trains)
    Trainer(engine, EngineConfig(micro_batch=4), ObjectiveConfig(), seed=5).train(
        ReadingList(readings(LabelForm.CLM)), config, work, NoTracker()
    )
    return engine


@pytest.mark.parametrize("trains", list(KINDS))
def test_only_the_chosen_kind_of_parameters_moves(trains: Trained, tmp_path: Path) -> None:
    model = made([3, 5])
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    trained(model, trains, tmp_path)
    moved = {name for name, parameter in model.named_parameters() if not torch.equal(parameter, before[name])}
    assert moved == {name for name in before if KINDS[trains](name)}


@pytest.mark.parametrize("trains", [Trained.EXPERTS, Trained.ROUTER])
def test_a_kind_that_a_model_has_none_of_is_refused(trains: Trained) -> None:
    with pytest.raises(ConfigError, match=f"trains={trains.value}: this model has no parameters of that kind"):
        train_only(made([0]), trains)


def test_moments_are_taken_over_with_their_number_of_steps(tmp_path: Path) -> None:
    engine = trained(made([3, 5]), Trained.ALL, tmp_path)
    save_moments(tmp_path, engine)
    model = made([3, 5])
    train_only(model, Trained.EXPERTS)
    other: Any = PlainEngine(model, OPTIMIZER)
    load_moments(tmp_path, other)
    for which in MOMENTS:
        wanted = dict(engine.named_moments(which))
        found = dict(other.named_moments(which))
        assert set(found) == {name for name in wanted if ".experts." in name}
        assert all(torch.equal(found[name], wanted[name]) for name in found)
    assert {float(state["step"]) for state in other._adamw.state.values()} == {3.0}


def test_damaged_moments_are_named(tmp_path: Path) -> None:
    engine = trained(made([3]), Trained.ALL, tmp_path)
    save_moments(tmp_path, engine)
    (tmp_path / "moments" / "exp_avg.safetensors").unlink()
    with pytest.raises(CheckpointError, match="damaged optimizer moments"):
        load_moments(tmp_path, engine)
