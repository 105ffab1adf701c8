"""Training the experts that a task's rows are routed to: the others keep their bits, on own models and Hugging Face ones."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import pytest
import torch

from adapt.checkpoint.weights import load_model
from adapt.core.errors import ConfigError
from adapt.core.spans import LabelForm
from adapt.model.exchange import ExpertShare
from adapt.model.experts import Experts
from adapt.model.gpt import GPT, materialize
from adapt.model.hf import HFModel
from adapt.objective_config import ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.train.chosen_experts import choose_experts, train_only_chosen
from adapt.train.engine_config import EngineConfig
from adapt.train.loop import Trainer
from adapt.train.optimizer_config import OptimizerConfig
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig, Trained
from adapt.train.trainable import train_only
from tests.support.hf_checkpoints import make_model
from tests.support.plain_engine import PlainEngine
from tests.support.ranks.rank_cases import readings
from tests.support.tiny_models import tiny_config

OPTIMIZER = OptimizerConfig(lr=1e-2, warmup_share=0.0, weight_decay=0.1)


def test_the_fewest_experts_that_take_the_wanted_share_are_chosen() -> None:
    loads = [[[0.1, 0.6, 0.3], [0.25, 0.25, 0.5, 0.0]]]
    assert choose_experts(loads, 0.6) == [[1], [0, 2]]
    assert choose_experts(loads, 0.61) == [[1, 2], [0, 2]]
    assert choose_experts(loads, 1.0) == [[0, 1, 2], [0, 1, 2]]
    assert choose_experts([*loads, [[0.9, 0.0, 0.1], [0.25, 0.25, 0.5, 0.0]]], 0.5) == [[0], [2]]


def test_rows_without_a_routed_token_choose_nothing() -> None:
    with pytest.raises(ConfigError, match="expert_coverage: no held-out row"):
        choose_experts([[[0.0, 0.0]]], 0.5)


@pytest.mark.parametrize("kind", ["own", "qwen2_moe", "gpt_oss"])
def test_the_other_experts_keep_their_bits(kind: str, tmp_path: Path) -> None:
    own = GPT(tiny_config([3, 4], vocab_size=120, context_length=48))
    model = materialize(own, seed=1) if kind == "own" else load_model(make_model(tmp_path / "base", kind, 120))
    assert isinstance(model, GPT | HFModel)
    train_only(model, Trained.EXPERTS)
    chosen = [[1], [0, 2]]
    config = TrainConfig(steps=3, batch_rows=9, optimizer=OPTIMIZER, trains=Trained.EXPERTS, expert_coverage=0.5)
    engine = PlainEngine(cast(GPT, model), config.decayed_optimizer)
    n_trained = train_only_chosen(model, chosen, model.expert_counts, ExpertShare())
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    rows = ReadingList(readings(LabelForm.CLM))
    Trainer(cast(Any, engine), EngineConfig(micro_batch=4), ObjectiveConfig(), seed=5).train(rows, config, tmp_path, NoTracker())
    stacks = [name for name in before if ".experts." in name]
    layers = list(dict.fromkeys(name.split(".experts.")[0] for name in stacks))
    assert len(layers) == 2
    n_moved = 0
    for name, parameter in model.named_parameters():
        if name not in stacks:
            assert torch.equal(parameter, before[name]), name
            continue
        for expert, (now, then) in enumerate(zip(parameter, before[name], strict=True)):
            is_chosen = expert in chosen[layers.index(name.split(".experts.")[0])]
            assert torch.equal(now, then) is not is_chosen, (name, expert)
            n_moved += now.numel() * is_chosen
    assert n_trained == n_moved


def test_a_rank_masks_its_own_share() -> None:
    model = materialize(GPT(tiny_config([4, 4], vocab_size=120, context_length=48)), seed=1)
    share = ExpertShare(index=1, of=2)
    for module in model.modules():
        if isinstance(module, Experts):
            module.own(share)
    train_only(model, Trained.EXPERTS)
    up = next(parameter for name, parameter in model.named_parameters() if name.endswith("up_weight") and ".experts." in name)
    train_only_chosen(model, [[1, 2], [0]], model.expert_counts, share)
    up.sum().backward()
    assert up.grad is not None
    assert up.grad.abs().sum((1, 2)).bool().tolist() == [True, False]
