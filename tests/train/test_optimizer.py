"""The learning rate as a function of the step, and which parameters decay."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from adapt.core.errors import ConfigError
from adapt.model.gpt import GPT
from adapt.train.optimizer import parameter_groups, set_learning_rate
from adapt.train.optimizer_config import OptimizerConfig, Schedule, learning_rate
from tests.support.every_case import for_every
from tests.support.tiny_models import tiny_config

STEPS = 200
every_schedule = pytest.mark.parametrize("schedule", list(Schedule))


class Untied(torch.nn.Module):
    """A model whose output layer has weights of its own."""

    vocab_size = 7

    def __init__(self) -> None:
        super().__init__()
        self.first, self.middle, self.last = torch.nn.Embedding(7, 4), torch.nn.Linear(4, 4), torch.nn.Linear(4, 7)


def changed_to(name: str, value: Any) -> OptimizerConfig:
    return OptimizerConfig(**{name: value})


def rates(schedule: Schedule, steps: int = STEPS, **settings: Any) -> list[float]:
    config = OptimizerConfig(schedule=schedule, lr=3e-4, **settings)
    return [learning_rate(config, step, steps) for step in range(steps)]


@every_schedule
def test_warm_up_rises_linearly_to_the_full_rate(schedule: Schedule) -> None:
    warm = rates(schedule, warmup_share=0.1)[:20]
    assert warm == pytest.approx([3e-4 * (step + 1) / 20 for step in range(20)])
    assert warm[-1] == pytest.approx(3e-4)


@every_schedule
@for_every(steps=[1, 2, 3, 10, 997], warmup_share=[0.0, 0.1, 0.5, 1.0])
def test_a_rate_is_above_zero_and_never_above_the_full_rate(schedule: Schedule, steps: int, warmup_share: float) -> None:
    found = rates(schedule, steps, warmup_share=warmup_share)
    assert min(found) > 0
    assert max(found) == pytest.approx(3e-4)


@every_schedule
def test_the_rate_never_rises_after_the_warm_up(schedule: Schedule) -> None:
    after = rates(schedule, warmup_share=0.1)[20:]
    assert after[0] == pytest.approx(3e-4)
    assert all(later <= earlier + 1e-12 for earlier, later in zip(after, after[1:], strict=False))


@pytest.mark.parametrize("schedule", [Schedule.COSINE, Schedule.LINEAR, Schedule.WSD])
@pytest.mark.parametrize("floor", [0.0, 0.01, 0.3])
def test_a_decaying_rate_ends_near_its_floor(schedule: Schedule, floor: float) -> None:
    last = rates(schedule, 5000, min_lr_ratio=floor)[-1]
    assert floor * 3e-4 <= last <= (floor + 0.003) * 3e-4


def test_cosine_falls_slowly_at_both_ends_and_is_half_way_down_in_the_middle() -> None:
    found = rates(Schedule.COSINE, warmup_share=0.1, min_lr_ratio=0.2)
    assert found[20 + 60] == pytest.approx((0.2 + 0.8 * 0.75) * 3e-4)
    assert found[20 + 90] == pytest.approx(0.6 * 3e-4)
    for early in range(1, 90):
        assert found[20 + early] + found[20 + 180 - early] == pytest.approx(2 * 0.6 * 3e-4)


def test_linear_falls_by_the_same_amount_each_step() -> None:
    after = rates(Schedule.LINEAR, warmup_share=0.1)[20:]
    falls = [earlier - later for earlier, later in zip(after, after[1:], strict=False)]
    assert falls == pytest.approx([falls[0]] * len(falls))
    assert falls[0] > 0


def test_wsd_is_constant_and_then_decays_linearly() -> None:
    found = rates(Schedule.WSD, warmup_share=0.0, decay_share=0.25, min_lr_ratio=0.0)
    assert found[:151] == pytest.approx([3e-4] * 151)
    assert found[150:] == pytest.approx([3e-4 * (STEPS - step) / 50 for step in range(150, STEPS)])


def test_constant_stays_constant() -> None:
    assert rates(Schedule.CONSTANT, warmup_share=0.1)[20:] == pytest.approx([3e-4] * 180)


@every_schedule
def test_the_shape_scales_with_the_full_rate(schedule: Schedule) -> None:
    one, ten = (
        [learning_rate(OptimizerConfig(lr=lr, schedule=schedule), step, STEPS) for step in range(STEPS)] for lr in (1e-4, 1e-3)
    )
    assert [10 * rate for rate in one] == pytest.approx(ten)


@pytest.mark.parametrize("experts", [[0], [4], [2, 6]])
def test_every_parameter_is_in_one_group_exactly_once(experts: list[int]) -> None:
    model = GPT(tiny_config(experts))
    grouped = [id(parameter) for group in parameter_groups(model, OptimizerConfig()) for parameter in group["params"]]
    assert len(grouped) == len(set(grouped))
    assert set(grouped) == {id(parameter) for parameter in model.parameters()}


@pytest.mark.parametrize("experts", [[0], [4]])
def test_norms_and_biases_do_not_decay(experts: list[int]) -> None:
    model = GPT(tiny_config(experts))
    decay_of = {
        id(parameter): group["weight_decay"]
        for group in parameter_groups(model, OptimizerConfig(weight_decay=0.3))
        for parameter in group["params"]
    }
    for name, parameter in model.named_parameters():
        is_bias = name.split(".")[-1] in ("bias", "up_bias", "down_bias")
        is_norm = isinstance(model.get_submodule(name.rpartition(".")[0]), torch.nn.LayerNorm)
        assert decay_of[id(parameter)] == (0.0 if is_bias or is_norm else 0.3), name


def test_token_tables_have_a_group_where_their_rate_differs() -> None:
    model = GPT(tiny_config())
    *others, tables = parameter_groups(model, OptimizerConfig(lr=0.1, embedding_lr_ratio=3.0))
    assert tables["params"] == [model.embedding.weight], "positions are none"
    assert sum(len(group["params"]) for group in others) == len(list(model.parameters())) - 1
    optimizer = torch.optim.AdamW([*others, tables])
    set_learning_rate(optimizer.param_groups, 0.2)
    assert [group["lr"] for group in optimizer.param_groups] == [0.2, 0.2, pytest.approx(0.6)]
    assert len(parameter_groups(model, OptimizerConfig())) == 2
    untied = Untied()
    apart = parameter_groups(untied, OptimizerConfig(embedding_lr_ratio=0.0))[-1]
    assert [id(parameter) for parameter in apart["params"]] == [id(untied.first.weight), id(untied.last.weight)]
    assert apart["lr_ratio"] == 0


def test_groups_make_an_optimizer_that_shrinks_matrices_alone() -> None:
    torch.manual_seed(0)
    model = torch.nn.Sequential(torch.nn.Linear(3, 4), torch.nn.Linear(4, 2))
    before = {name: parameter.detach().clone() for name, parameter in model.named_parameters()}
    optimizer = torch.optim.AdamW(parameter_groups(model, OptimizerConfig(weight_decay=0.5)), lr=0.1)
    for parameter in model.parameters():
        parameter.grad = torch.zeros_like(parameter)
    optimizer.step()
    for name, parameter in model.named_parameters():
        shrink = 1.0 if name.endswith("bias") else 1.0 - 0.1 * 0.5
        torch.testing.assert_close(parameter.detach(), before[name] * shrink)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("lr", -1.0), ("lr", float("nan")), ("lr", float("inf")), ("weight_decay", -0.1), ("eps", -1e-8), ("clip", -1.0),
        ("min_lr_ratio", 1.5), ("warmup_share", 2.0), ("warmup_share", -0.1), ("decay_share", 1.1), ("beta1", 1.0), ("beta2", -0.1),
    ],
)  # fmt: skip
def test_settings_that_cannot_train_are_refused_by_name(name: str, value: float) -> None:
    with pytest.raises(ConfigError, match=f"^{name}: {value} "):
        changed_to(name, value)


@pytest.mark.parametrize(
    ("name", "value"), [("lr", 0.0), ("clip", 0.0), ("warmup_share", 0.0), ("warmup_share", 1.0), ("beta1", 0.0)]
)
def test_the_ends_of_what_settings_may_be_are_allowed(name: str, value: float) -> None:
    assert getattr(changed_to(name, value), name) == value
