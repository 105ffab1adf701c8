"""Training with every router: the loss falls, what received tokens moves, a killed run goes on bit for bit, state is saved."""

from __future__ import annotations

import functools
import sys
from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import pytest
import torch
from torch import Tensor

import adapt.model.routers
import adapt.model.routers.settings
from adapt.checkpoint.weights import load_model, save_model, save_trained
from adapt.core.errors import CheckpointError, TrainingError
from adapt.core.precision import FORMATS, Precision
from adapt.core.spans import LabelForm
from adapt.model.buffers import named_state
from adapt.model.gpt import GPT, materialize
from adapt.model.routers.contract import ROUTERS, RouterConfig, all_routers
from adapt.model.routers.sigmoid_bias import SigmoidBiasConfig
from adapt.model.routers.top1 import Top1Config
from adapt.objective import PARTS
from adapt.objective_config import BalanceConfig, ObjectiveConfig
from adapt.text.packing import ReadingList
from adapt.text.tokenizer import Tokenizer
from adapt.train.engine_config import EngineConfig
from adapt.train.loop import Trainer
from adapt.train.optimizer_config import OptimizerConfig, Schedule
from adapt.train.tracking import NoTracker
from adapt.train.train_config import TrainConfig
from tests.support.inner_parts import moe_layers, parameter_of
from tests.support.plain_engine import PlainEngine
from tests.support.ranks.rank_cases import readings
from tests.support.tiny_models import tiny_config

STEPS = 20
# Without weight decay, only gradients move a weight.
OPTIMIZER = OptimizerConfig(lr=1e-2, schedule=Schedule.CONSTANT, warmup_share=0.0, weight_decay=0.0)
TRAIN = TrainConfig(steps=STEPS, batch_rows=9, optimizer=OPTIMIZER, save_every_steps=10)
OBJECTIVE = ObjectiveConfig(balance=BalanceConfig(weight=0.05))
HEALTH = ("max_load", "dead", "balance", "entropy", "dropped", "overload", "z")
every_router = pytest.mark.parametrize("name", list(all_routers()))


class Killed(Exception):
    """Stands for whatever ends a process."""


class KillAt(NoTracker):
    """Ends the run when a step is logged."""

    def __init__(self, step: int) -> None:
        self.step = step

    def log(self, metrics: Mapping[str, float], step: int) -> None:
        if step == self.step:
            raise Killed


def config_of(name: str) -> RouterConfig:
    options: dict[str, Any] = {"top1": {"jitter": 0.1, "z_loss_weight": 0.01}, "sigmoid_bias": {"rate": 0.01}}
    return all_routers().get(name).config(**options.get(name, {}))


def made(router: RouterConfig, **changes: object) -> GPT:
    return materialize(GPT(tiny_config([3, 6], vocab_size=120, context_length=48, router=router, **changes)), seed=1)


def trained(model: GPT, work: Path, tracker: NoTracker | None = None, steps: int = STEPS) -> list[dict[str, float]]:
    engine: Any = PlainEngine(model, OPTIMIZER)
    trainer = Trainer(engine, EngineConfig(micro_batch=4), OBJECTIVE, seed=5)
    work.mkdir(exist_ok=True)
    settings = replace(TRAIN, steps=steps)
    return trainer.train(ReadingList(readings(LabelForm.CLM)), settings, work, tracker or NoTracker()).history


@dataclass(frozen=True, kw_only=True)
class WholeRun:
    """A model as it came and as a whole run left it, with the tokens that experts received in each step."""

    before: GPT
    after: GPT
    history: list[dict[str, float]]
    counts: list[list[Tensor]]


@pytest.fixture(scope="module")
def whole_run(tmp_path_factory: pytest.TempPathFactory) -> Callable[[str], WholeRun]:
    """Return a function that trains with a router, once."""

    @functools.cache
    def run(name: str) -> WholeRun:
        model, counts = made(config_of(name)), []
        adapt_routers = model.after_step

        def watched(counts_LE: Sequence[Tensor]) -> None:
            counts.append(list(counts_LE))
            adapt_routers(counts_LE)

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(model, "after_step", watched)
            history = trained(model, tmp_path_factory.mktemp("whole"))
        return WholeRun(before=made(config_of(name)), after=model, history=history, counts=counts)

    return run


@every_router
def test_the_loss_falls_and_whatever_received_tokens_moves(name: str, whole_run: Callable[[str], WholeRun]) -> None:
    run = whole_run(name)
    before = dict(run.before.named_parameters())
    assert run.history[-1]["loss/context"] < run.history[0]["loss/context"] - 0.3
    received_LE = [sum(counts) for counts in zip(*run.counts, strict=True)]
    for key, value in run.after.named_parameters():
        if ".experts." in key:
            received_E = received_LE[int(key.split(".")[1]) // 2]
            moved_E = (value != before[key]).flatten(1).any(-1)
            assert torch.equal(moved_E, received_E > 0), key
        else:
            assert not torch.equal(value, before[key]), key
    for key, buffer in run.after.named_buffers():
        assert buffer.any(), key


@every_router
def test_history_has_the_health_of_every_layer_and_the_routers_own_losses(name: str, tmp_path: Path) -> None:
    model = made(config_of(name), capacity_factor=0.9)
    line = trained(model, tmp_path / "work", steps=3)[-1]
    for layer in (0, 1):
        for key in HEALTH:
            assert line[f"router/{key}/{layer}"] >= 0
        assert line[f"router/dropped/{layer}"] > 0 or name == "expert_choice"
    assert line["router/looks_ahead"] == 1.0
    own = {key for key in line if key.startswith("loss/")} - {f"loss/{part}" for part in (*PARTS, "total")}
    assert own == {f"loss/{key}" for key in model.router_traits.loss_weights}


@every_router
def test_a_killed_run_ends_with_the_bits_of_one_that_was_not(
    name: str, whole_run: Callable[[str], WholeRun], tmp_path: Path
) -> None:
    whole, resumed = whole_run(name), made(config_of(name))
    with pytest.raises(Killed):
        trained(made(config_of(name)), tmp_path / "killed", KillAt(12))
    assert trained(resumed, tmp_path / "killed") == whole.history
    wanted = dict(named_state(whole.after))
    for key, tensor in named_state(resumed):
        assert torch.equal(tensor, wanted[key]), key


def test_a_run_whose_balance_loss_moves_no_router_ends_before_its_first_step(tmp_path: Path) -> None:
    model = made(Top1Config())
    before = {key: value.clone() for key, value in model.named_parameters()}
    parameter_of(moe_layers(model)[1].router).requires_grad_(False)
    with pytest.raises(TrainingError, match="MoE layer 1 gets no gradient"):
        trained(model, tmp_path / "work")
    assert all(torch.equal(value, before[key]) for key, value in model.named_parameters())


@pytest.mark.parametrize("precision", FORMATS)
def test_biases_are_saved_exactly_with_the_weights(tmp_path: Path, tokenizer: Tokenizer, precision: Precision) -> None:
    model = materialize(GPT(tiny_config([3, 6], router=SigmoidBiasConfig())), seed=1)
    for _, bias in model.named_buffers():
        bias.normal_()
    save_trained(tmp_path, model, named_state(model), tokenizer, precision)
    for dtype in (None, torch.bfloat16):
        loaded = dict(load_model(tmp_path, dtype=dtype).named_buffers())
        assert sorted(loaded) == [f"blocks.{layer}.mlp.router.selection_bias" for layer in (1, 3)]
        assert all(torch.equal(loaded[name], bias) for name, bias in model.named_buffers())


def test_a_checkpoint_without_its_biases_is_refused(tmp_path: Path, tokenizer: Tokenizer) -> None:
    model = materialize(GPT(tiny_config([3, 6], router=SigmoidBiasConfig())), seed=1)
    save_model(tmp_path, model.config, model.named_parameters(), tokenizer)
    with pytest.raises(CheckpointError, match=r"selection_bias is missing \(2 in all\)"):
        load_model(tmp_path)


LAST_ID = '''
"""The expert is the token id's last digit: a router in one new file."""

from __future__ import annotations

from dataclasses import dataclass

from torch import Tensor

from adapt.model.inputs import RouterInputs, Routing
from adapt.model.routers.contract import ROUTERS, RouterConfig, RouterEntry
from adapt.model.routers.fixed import FixedRouter


@dataclass(frozen=True, kw_only=True)
class LastDigitConfig(RouterConfig):
    name: str = "last_digit"


class LastDigitRouter(FixedRouter):
    def __init__(self, config: LastDigitConfig, hidden_size: int, n_experts: int) -> None:
        super().__init__(n_experts)

    def route(self, x_NH: Tensor, inputs: RouterInputs) -> Routing:
        return self.routed_to(inputs.token_ids_N % 10 % self.n_experts)


ROUTERS.register("last_digit")(RouterEntry(config=LastDigitConfig, build=LastDigitRouter))
'''


@pytest.fixture
def new_router(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[str]:
    """Put a file with a router where routers are found, and take it away again."""
    (tmp_path / "last_digit.py").write_text(LAST_ID, encoding="utf-8")
    monkeypatch.setattr(adapt.model.routers, "__path__", [*adapt.model.routers.__path__, str(tmp_path)])
    yield "last_digit"
    ROUTERS._entries.pop("last_digit", None)
    adapt.model.routers.settings._CHOICES.pop("last_digit", None)
    sys.modules.pop("adapt.model.routers.last_digit", None)


def test_a_router_is_one_new_file(new_router: str, tmp_path: Path) -> None:
    assert new_router in RouterConfig.choices()
    history = trained(made(config_of(new_router)), tmp_path / "work")
    assert history[-1]["loss/context"] < history[0]["loss/context"] - 0.3
